"""The accumulator on a device against float64 on the CPU: samples, lengths, settings, streams, what is not finite.

On a GPU where the kernels of `eigendet.moments.fused` are used, everything is done with them and once more without.
Where memory is short or goes back at once, only what that may break is done.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eigendet.errors import UserError
from eigendet.moments import fused
from eigendet.moments.covariance import Covariance, merged
from eigendet.moments.products import CHUNK_BYTES
from eigendet.observe.taps import tap
from tests.gpu.figures import Figure, error, exact_covariance, guarded, synchronize
from tests.gpu.plan import MEMORY

LIMIT = 1e-6
Samples = dict[str, tuple[Tensor, int]]  # with the dimension of the channels


def figures(device: torch.device, small: bool, out: Path) -> Iterator[Figure]:
    """Yield errors, and numbers of mistakes."""
    uses_kernels = fused.is_right(device)
    note = "Triton's kernels, as exact as float64 asks on this device" if uses_kernels else "plain torch"
    yield Figure("uses the kernels of two launches", float(uses_kernels), note=note)
    yield from paths(device, small, "as it comes", nullcontext())
    if uses_kernels:
        yield from paths(device, small, "plain", plain())


def paths(device: torch.device, small: bool, name: str, context: AbstractContextManager[Any]) -> Iterator[Figure]:
    """Yield all figures of one way to compute."""
    is_short = any(variable in os.environ for variable in (MEMORY, "PYTORCH_NO_CUDA_MEMORY_CACHING"))
    checks = UNDER_PRESSURE if is_short else CHECKS if name == "plain" else CHECKS | COMPILING
    with context:
        for what, check in checks.items():
            yield from guarded(f"{name}: {what}", check(f"{name}: {what}", device, small))


@contextmanager
def plain() -> Iterator[None]:
    """Take moments by torch alone."""
    before, fused.is_right = fused.is_right, lambda device: False  # type: ignore[assignment]
    try:
        yield
    finally:
        fused.is_right = before


def race(what: str, device: torch.device, small: bool) -> Iterator[Figure]:
    """Update again and again, while memory is taken and given back between updates."""
    worst, mistakes = 0.0, 0
    for trial in range(1 if small else 3):
        generator = torch.Generator().manual_seed(trial)
        parts = [
            torch.randn(8, 64, 10 + 5 * (i % 7), 90, generator=generator) + i % 3 for i in range(5 if small else 40)
        ]
        covariance = Covariance(64, device)
        for part in parts:
            covariance.update(part.to(device))  # whose memory is free as soon as this returns
            torch.full((2**20,), torch.nan, device=device)
        rows = torch.cat([part.movedim(1, -1).flatten(0, 2) for part in parts])
        worst = max(worst, error(covariance.covariance(), exact_covariance(rows)))
        mistakes += covariance.count != len(rows)
    yield Figure(f"{what}: worst error", worst, limit=LIMIT)
    yield Figure(f"{what}: wrong counts", mistakes, limit=0)


def means(what: str, device: torch.device, small: bool) -> Iterator[Figure]:
    """Move the mean away, in standard deviations of the first direction; the spectrum falls over six decades."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(256, 256, generator=generator, dtype=torch.float64))[0]
    spread = torch.logspace(0, -3, 256, dtype=torch.float64)
    drawn = torch.randn(4000 if small else 40_000, 256, generator=generator, dtype=torch.float64) * spread @ basis.T
    for mean in (0, 1, 10, 100):
        rows = (drawn + mean * basis[:, 0]).float()
        covariance = Covariance(256, device)
        for batch in rows.to(device).split(997):
            covariance.update(batch)
        exact = exact_covariance(rows)
        values, wanted = torch.linalg.eigvalsh(covariance.covariance().cpu()), torch.linalg.eigvalsh(exact)
        kept = wanted > 1e-6 * wanted[-1]
        worst = float(((values - wanted).abs() / wanted)[kept].max())
        note = f"eigenvalues above 1e-6 of the largest: {worst:.1e}"
        yield Figure(f"{what}: {mean} sd", error(covariance.covariance(), exact), limit=LIMIT, note=note)
        apart = float((covariance.mean.cpu() - rows.double().mean(0)).norm() / rows.double().std(0).norm())
        yield Figure(f"{what}: the mean itself at {mean} sd, in sd", apart, limit=LIMIT)
    dark = torch.zeros(997, 256)
    covariance.forget()
    for batch in (dark, *rows.split(997)):
        covariance.update(batch.to(device))
    exact = exact_covariance(torch.cat([dark, rows]))
    yield Figure(f"{what}: a black image first", error(covariance.covariance(), exact), limit=LIMIT)


def layouts(what: str, device: torch.device, small: bool) -> Iterator[Figure]:
    """Take samples of all types, in all layouts."""
    generator = torch.Generator().manual_seed(0)
    maps = (torch.randn(3, 48, 50, 61, generator=generator) * torch.rand(48, 1, 1, generator=generator) + 0.3).to(
        device
    )
    relu = maps.relu()
    samples: Samples = {
        "gaussian": (maps, 1), "ReLU": (relu, 1), "seven levels": ((maps * 2).round().clamp(-3, 3) * 3.7, 1),
        "half": (relu.half(), 1), "bfloat16": (relu.bfloat16(), 1), "float64": (relu.double(), 1),
        "channels last": (relu.to(memory_format=torch.channels_last), 1), "half, channels last":
        (relu.half().to(memory_format=torch.channels_last), 1), "tokens": (relu.flatten(2).mT, -1),
        "tokens, contiguous": (relu.flatten(2).mT.contiguous(), -1), "rows": (relu.movedim(1, -1).flatten(0, 2), 1),
        "every other row": (relu[:, :, ::2, 1::3], 1), "transposed": (relu.transpose(2, 3), 1),
        "a constant": (torch.full_like(relu, 1 / 3).index_copy(1, torch.tensor([0], device=device), relu[:, :1]), 1),
    }  # fmt: skip
    for name, (tensor, channel_dim) in samples.items():
        covariance = Covariance(48, device)
        for _ in range(2):
            covariance.update(tensor, channel_dim)
        rows = tensor.movedim(channel_dim, -1).flatten(0, -2)
        mistakes = "" if covariance.count == 2 * len(rows) else f"counted {covariance.count}, not {2 * len(rows)}"
        yield Figure(
            f"{what}: {name}", error(covariance.covariance(), exact_covariance(rows)), limit=LIMIT, note=mistakes
        )
        yield Figure(f"{what}: {name}, wrong count", float(bool(mistakes)), limit=0)
    sizes = [(50, 61), (7, 61), (50, 1)]
    for name, tensor in {"padding": relu, "padding, channels last": samples["channels last"][0]}.items():
        covariance = Covariance(48, device)
        covariance.update(tensor, sizes=sizes)
        real = [entry[:, :height, :width].flatten(1) for entry, (height, width) in zip(relu, sizes, strict=True)]
        exact = exact_covariance(torch.cat(real, 1).T)
        yield Figure(f"{what}: {name}", error(covariance.covariance(), exact), limit=LIMIT)


def lengths(what: str, device: torch.device, small: bool) -> Iterator[Figure]:
    """Take few and many channels over few and many positions, at the edges of slabs and chunks."""
    chunk = CHUNK_BYTES[device.type] // 4
    shapes = [
        (1, 1),
        (1, 2**14),
        (3, 127),
        (3, 129),
        (4, 2**16),
        (8, 1023),
        (16, 1025),
        (17, 2**15),
        (64, 4097),
        (65, 640),
    ]
    if not small:
        shapes += [
            (4, 2**20),
            (64, 2**18 - 5),
            (64, chunk // 64 - 1),
            (64, chunk // 64 + 1),
            (256, 2**16),
            (1000, 3001),
        ]
        shapes += [(2048, 950), (4096, 3000)]
    for channels, positions in shapes:
        generator = torch.Generator().manual_seed(channels + positions)
        samples = torch.randn(1, channels, positions, generator=generator)
        covariance = Covariance(channels, device)
        covariance.update(samples.to(device))
        exact = exact_covariance(samples[0].T)
        if positions == 1:
            yield Figure(f"{what}: {channels} x 1, what is not 0", float(covariance.covariance().abs().sum()), limit=0)
        else:
            yield Figure(f"{what}: {channels} x {positions}", error(covariance.covariance(), exact), limit=LIMIT)


def merging(what: str, device: torch.device, small: bool) -> Iterator[Figure]:
    """Merge what was seen on the device and on the CPU, go on from a state, and map."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3000, 40, generator=generator) * 3 + 7
    there, here = Covariance(40, device), Covariance(40)
    there.update(rows[:1000].to(device))
    there = Covariance.from_state_dict(there.state_dict())
    there.update(rows[1000:2000].to(device))
    here.update(rows[2000:])
    exact, weight = exact_covariance(rows), torch.randn(24, 40, generator=generator, dtype=torch.float64)
    both = merged([there, here])
    yield Figure(f"{what}: device and CPU", error(both.covariance(), exact), limit=LIMIT)
    yield Figure(f"{what}: CPU and device", error(merged([here, there]).covariance(), exact), limit=LIMIT)
    mapped = both.affine(weight.to(device)).covariance()
    yield Figure(f"{what}: mapped", error(mapped, weight @ exact @ weight.T), limit=LIMIT)


def network(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 48, 1), nn.ReLU(), nn.Conv2d(48, 64, 3)
    model = nn.Sequential(*layers, nn.ReLU()).eval()
    norm: Any = model[1]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return model.to(device)


def settings(what: str, device: torch.device, small: bool) -> Iterator[Figure]:
    """Let the process take every precision for its network, by the old interface and the new, and autocast."""
    backends: Any = torch.backends
    matmul = backends.cuda.matmul if device.type == "cuda" else backends.mkldnn.matmul
    choices: dict[str, Callable[[], object]] = {
        "as it comes": lambda: None,
        "allow_tf32": partial(setattr, backends.cuda.matmul, "allow_tf32", True),
        "matmul precision medium": partial(torch.set_float32_matmul_precision, "medium"),
        "fp32_precision tf32": partial(setattr, matmul, "fp32_precision", "tf32"),
        "fp32_precision tf32 for all": partial(setattr, backends, "fp32_precision", "tf32"),
        "convolutions in full": partial(setattr, backends.cudnn, "allow_tf32", False),
    }
    dtypes = {"autocast bfloat16": torch.bfloat16}
    if device.type == "cuda":
        dtypes["autocast half"] = torch.float16
    model, images = network(device), torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(1)).to(device)
    for name, choose in choices.items():
        with restored():
            choose()
            before = matmul.fp32_precision
            yield worst_tap(f"{what}: {name}", model, images)
            yield Figure(f"{what}: {name}, not as it was", float(matmul.fp32_precision != before), limit=0)
    for name, dtype in dtypes.items():
        yield worst_tap(f"{what}: {name}", model, images, partial(torch.autocast, device.type, dtype))


@contextmanager
def restored() -> Iterator[None]:
    """Give back torch's defaults."""
    backends: Any = torch.backends
    try:
        yield
    finally:
        backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        backends.mkldnn.matmul.fp32_precision = "none"
        backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = False, True


def worst_tap(
    what: str, model: nn.Module, images: Tensor, context: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Figure:
    """Compare every tap with what its module gave in the same pass."""
    seen: dict[str, Tensor] = {}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if module in names:
            seen[names[module]] = output.detach().clone()

    names = {module: name for name, module in model.named_children()}
    with ExitStack() as stack:
        stack.callback(nn.modules.module.register_module_forward_hook(note).remove)
        stack.enter_context(torch.no_grad())
        taps = stack.enter_context(tap(model, ("conv", "norm", "act")))
        with context():
            model(images)
    errors = {
        str(key): error(taps[key].covariance(), exact_covariance(seen[key.module].movedim(1, -1).flatten(0, 2)))
        for key in taps
    }
    worst = max(errors, key=lambda key: errors[key])
    return Figure(what, errors[worst], limit=LIMIT, note=f"{len(taps)} taps, the worst {worst}")


def streams(what: str, device: torch.device, small: bool) -> Iterator[Figure]:
    """Run the network on a stream for each image, without waiting in between, and read on another."""
    if device.type != "cuda":
        return
    model = network(device)
    images = [torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(i)).to(device) for i in range(12)]
    synchronize(device)

    def run(stream_of: Callable[[int], Any]) -> dict[str, Tensor]:
        with torch.no_grad(), tap(model, ("conv", "norm", "act")) as taps:
            for number, image in enumerate(images):
                stream = stream_of(number)
                with torch.cuda.stream(stream):
                    model(image)
                    torch.full((2**22,), torch.nan, device=device)
        return {str(key): taps[key].covariance().cpu() for key in taps}

    own = [torch.cuda.Stream(device) for _ in range(3)]
    current = torch.cuda.current_stream(device)
    expected = run(lambda number: current)
    for name, stream_of in {
        "three by turns": lambda n: own[n % 3],
        "one for each": lambda n: torch.cuda.Stream(device),
    }.items():
        results = run(stream_of)
        yield Figure(f"{what}: {name}", max(error(results[key], expected[key]) for key in expected), limit=LIMIT)


def not_finite(what: str, device: torch.device, small: bool) -> Iterator[Figure]:
    """Meet NaN, infinity and overflow: in an observed tensor, one that is derived, one that is hidden."""
    model = network(device)
    good = torch.randn(2, 3, 40, 40, device=device)
    mistakes = 0
    notes = []
    for value in (torch.nan, torch.inf, 1e30):
        bad = good.clone()
        bad[0, 1, 5, 5] = value
        for points, modules in [(("conv", "norm", "act"), "*"), (("norm",), "*"), (("conv",), "3")]:
            said = "nothing"
            try:
                with torch.no_grad(), tap(model, points, modules=modules) as taps:  # type: ignore[arg-type]
                    for image in (good, good, bad, good):
                        model(image)
            except UserError as refused:
                said = str(refused)
            if "forward pass 2" not in said:
                mistakes += 1
                notes.append(f"{value} in {points}: {said}")
    yield Figure(f"{what}: not named with its pass", mistakes, limit=0, note="; ".join(notes)[:300])
    with torch.no_grad(), tap(model, "act") as taps:
        model(good)
    yield Figure(f"{what}: counts that are wrong without it", float(taps["2#0:act"].count != 2 * 38 * 38), limit=0)


def compiled(what: str, device: torch.device, small: bool) -> Iterator[Figure]:
    """Compile the network inside the context."""
    model, images = network(device), torch.randn(2, 3, 40, 40, device=device)
    with torch.no_grad():
        with tap(model, ("conv", "act")) as plain_taps:
            model(images)
        with tap(model, ("conv", "act")) as taps:
            model.compile(backend="eager" if small else "inductor")
            model(images)
            model(images)
    missing = set(map(str, plain_taps)) - set(map(str, taps))
    yield Figure(f"{what}: taps lost", len(missing), limit=0, note=", ".join(sorted(missing)))
    worst = max(error(taps[key].covariance(), plain_taps[key].covariance()) for key in plain_taps if key in taps)
    yield Figure(f"{what}: apart from the plain network's", worst, limit=1e-2, note="TF32, and two passes, not one")


Checks = dict[str, Callable[[str, torch.device, bool], Iterator[Figure]]]
UNDER_PRESSURE: Checks = {
    "memory given back": race,
    "streams": streams,
    "samples": layouts,
    "not finite": not_finite,
}
CHECKS: Checks = {**UNDER_PRESSURE, "means": means, "lengths": lengths, "precision": settings, "merging": merging}
COMPILING: Checks = {"torch.compile inside": compiled}  # once, since it takes a while
