"""What taps add to a forward pass of Faster R-CNN R-50-FPN at 800x1216, beside what users write themselves, and why.

Contenders run in turns on the same images, so that a noisy machine is noisy to all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eigendet.moments import fused
from eigendet.observe.keys import Point
from eigendet.observe.taps import tap
from tests.gpu.accuracy import plain
from tests.gpu.by_hand import hooked, others
from tests.gpu.figures import Figure, guarded, in_turns, synchronize
from tests.gpu.networks import canvas, convolving, detector
from tests.gpu.profiles import launches, profiled, waits, write_kernels
from tests.gpu.roofline import roofline

ALL: tuple[Point, ...] = ("conv", "norm", "act", "block", "fpn")
LIMIT = 1.30  # of the pass with all activations of the backbone, to the bare float32 pass
ROUNDS = {1: 7, 2: 7, 8: 5}  # by the images in a batch
Contexts = dict[str, Callable[[], AbstractContextManager[Any]]]


def figures(device: torch.device, small: bool, out: Path) -> Iterator[Figure]:
    """Yield ratios to the bare pass, what a tap costs the host, and the same in lower precisions."""
    model = detector("Faster R-CNN", device, small)
    rounds = {1: 1} if small else ROUNDS
    limit = LIMIT if device.type == "cuda" and not small else None
    for batch in rounds:
        title = f"float32, batch {batch}"
        yield from guarded(title, passes(title, model, images(device, small, batch), rounds[batch], limit))
    yield from guarded("over many passes", sustained(model, images(device, small, 1), small, limit))
    yield from guarded("host", host(model, torch.rand(1, 3, *canvas(small), device=device)))
    yield from guarded("profile", profile(model, images(device, small, 1), out))
    yield from guarded("roofline", roofline(device, small))
    for batch in rounds:
        title = f"cuDNN set to TF32, batch {batch}"
        yield from guarded(title, passes(title, model, images(device, small, batch), rounds[batch], precision="tf32"))
    batch = max(batch for batch in rounds if batch <= 2)
    title = f"autocast to bfloat16, batch {batch}"
    autocast = partial(torch.autocast, device.type, torch.bfloat16)
    yield from guarded(
        title, passes(title, model, images(device, small, batch), rounds[batch], precision="tf32", around=autocast)
    )


def images(device: torch.device, small: bool, batch: int) -> list[Tensor]:
    """Return images of the canvas's size, so without padding."""
    return list(torch.rand(batch, 3, *canvas(small), device=device))


def passes(
    title: str,
    model: nn.Module,
    batch: list[Tensor],
    rounds: int,
    limit: float | None = None,
    precision: str = "ieee",
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[Figure]:
    """Yield the median time of the bare pass, and of all contenders relative to it and to eigendet's.

    Args:
        title: begins the names of the figures.
        model: the detector.
        batch: its images.
        rounds: how often each contender has its turn.
        limit: of activations to the bare pass.
        precision: of cuDNN's convolutions.
        around: the context that the network runs in.
    """

    def work() -> None:
        with around():
            model(batch)

    contexts: Contexts = {"bare": nullcontext, **tapping(model)}
    backbone: Any = model.backbone
    contexts |= {name: partial(hooked, backbone, make) for name, make in others().items()}
    with convolving(precision), torch.no_grad():
        times = in_turns(batch[0].device, contexts, work, rounds)
    bare, own = times.pop("bare"), times["act"]
    yield Figure(f"{title}: bare pass", 1e3 * bare, "ms")
    for name, duration in times.items():
        yield Figure(f"{title}: {name}, time over bare", duration / bare, limit=limit if name == "act" else None)
    for name in others() if own > bare else ():
        ratio = (times[name] - bare) / (own - bare)
        yield Figure(f"{title}: {name}, added time over eigendet's", ratio)


def sustained(model: nn.Module, batch: list[Tensor], small: bool, limit: float | None) -> Iterator[Figure]:
    """Yield the ratio over so many passes that what is done once in a while is done, and counted in."""
    rounds, repeats = (1, 4) if small else (3, 40)
    device, act = batch[0].device, tapping(model)["act"]
    contexts: Contexts = {"bare": nullcontext, "act": act}
    if fused.is_right(device):
        contexts["act in plain torch"] = lambda: in_plain_torch(act)
    with convolving("ieee"), torch.no_grad():
        times = in_turns(device, contexts, lambda: [model(batch) for _ in range(repeats)], rounds)
    title = f"float32, batch 1, {repeats} passes in one go"
    bare = times.pop("bare")
    for name, duration in times.items():
        yield Figure(f"{title}: {name}, time over bare", duration / bare, limit=limit if name == "act" else None)


@contextmanager
def in_plain_torch(context: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Open a context without the kernels of `eigendet.moments.fused`."""
    with plain(), context():
        yield


def tapping(model: nn.Module) -> Contexts:
    """Return contexts that tap the activations of a detector's backbone, and nearly all that can be tapped."""
    return {
        "act": partial(tap, model, "act", modules="backbone*"),
        "conv, norm, act, block, fpn": partial(tap, model, ALL),
    }


def host(model: nn.Module, batch: Tensor, repeats: int = 10) -> Iterator[Figure]:
    """Yield what taps cost the host: time of this thread in a pass of the backbone, which waits for no device."""
    backbone: Any = model.backbone
    contexts: Contexts = {"bare": nullcontext, "act": partial(tap, backbone, "act"), "all": partial(tap, backbone, ALL)}
    note = "" if batch.is_cuda else "without a GPU this is the work itself"
    times: dict[str, float] = {}
    for name, context in contexts.items():
        with convolving("ieee"), torch.no_grad(), context() as taps:
            backbone(batch)
            samples = [thread_seconds(batch.device, partial(backbone, batch)) for _ in range(repeats)]
        times[name] = statistics.median(samples)
        if name == "bare":
            yield Figure("host: bare pass of the backbone", 1e3 * times[name], "ms", note=note)
        else:
            added = (times[name] - times["bare"]) / len(taps)
            yield Figure(f"host: added a map, {name} ({len(taps)} maps)", 1e6 * added, "µs", note=note)


def thread_seconds(device: torch.device, work: Callable[[], Any]) -> float:
    """Return the time that this thread computes in a call, from an idle device on and without waiting for it."""
    synchronize(device)
    start = time.thread_time()
    work()
    return time.thread_time() - start


def profile(model: nn.Module, batch: list[Tensor], out: Path) -> Iterator[Figure]:
    """Yield how many kernels a pass launches and how often it waits, and write where its time goes."""
    counts: dict[str, tuple[int, int]] = {}
    profiled(batch[0].device, lambda: None)  # the first of a process starts what the others use
    for name, context in {"bare": nullcontext, **tapping(model)}.items():
        with convolving("ieee"), torch.no_grad(), context() as taps:
            model(batch)
            events = profiled(batch[0].device, partial(model, batch))
        counts[name] = launches(events), waits(events)
        if name == "bare":
            yield Figure("profile: kernels launched in a bare pass", counts[name][0])
            continue
        kernels, waiting = (tapped - bare for tapped, bare in zip(counts[name], counts["bare"], strict=True))
        yield Figure(f"profile: kernels launched a map, {name}", kernels / len(taps), note=f"{len(taps)} maps")
        yield Figure(f"profile: waits for the device that taps add to a pass, {name}", waiting, limit=0)
        if name == "act":
            write_kernels(out / "profile_act.txt", events)
