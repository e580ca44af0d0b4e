"""Which networks can be resized: every classifier of torchvision, and three fixed lists of timm's.

    python -m tests.benchmarks.channels          writes tests/benchmarks/channels.md

A network counts as resized if it was built with random widths, every group between half and one and a half of its
own, ran forward and backward, and has exactly the parameters and multiply-accumulates that were predicted; and if at
least half of its layers can change. The table says how many of them keep their widths, and why. A transformer, whose
tokens often have the one width that its tables of positions have, counts if every feed-forward part can change inside;
beside that it says in how many layers of attention, but for the last of each, the width can.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from eigendet import channels
from eigendet.channels.groups import ChannelError, Channels
from tests.benchmarks.inner_widths import inner_layers
from tests.benchmarks.network_names import CONVOLUTIONAL, FURTHER, HYBRIDS
from tests.watching import watched

TRANSFORMERS = ("maxvit", "swin", "vit")
SIDE = 128  # pixels, of images for a real pass through a network that takes any size
EXPECTED = ("an output of the network", "a single channel")  # reasons that hold for any method


@dataclass(frozen=True)
class Result:
    """What came of resizing one network."""

    groups: int = 0
    layers: int = 0
    kept: int = 0  # layers that cannot change, beyond those that no method could change
    reason: str = ""  # of the first of them
    refused: str = ""  # why it could not be built at all, or was not as predicted
    seconds: float = 0.0  # to trace
    hidden: tuple[int, int] = (0, 0)  # layers that write the inner width of a feed-forward part: that change, of all
    heads: tuple[int, int] = (0, 0)  # layers of attention but for the last of each: that change, of all

    @property
    def resized(self) -> bool:
        return not self.refused and 2 * self.kept <= self.layers

    @property
    def resized_inside(self) -> bool:
        """Whether all feed-forward parts are; a network without any counts as others do."""
        changed, count = self.hidden
        return not self.refused and changed == count if count else self.resized


def torchvision_network(name: str) -> tuple[Callable[[], nn.Module], tuple[int, int]]:
    """How to build a classifier of torchvision without weights, and the image size it is meant for."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    side = 299 if name == "inception_v3" else 224
    return partial(torchvision.models.get_model, name, weights=None, **options), (side, side)


def timm_network(name: str) -> tuple[Callable[[], nn.Module], tuple[int, int]]:
    import timm

    settings = timm.get_pretrained_cfg(name)
    height, width = settings.input_size[1:] if settings else (224, 224)
    return partial(timm.create_model, name, pretrained=False), (height, width)


def resized(build: Callable[[], nn.Module], size: tuple[int, int], seed: int = 0) -> Result:
    """Trace, build with random widths, run forward and backward, and count."""
    start = time.perf_counter()
    try:
        traced = channels.trace(build, size)
    except ChannelError as error:
        return Result(refused=str(error))
    seconds = time.perf_counter() - start
    kept = [why for why in traced.fixed.values() if not why.startswith(EXPECTED)]
    rng = random.Random(seed)
    widths = {
        group: traced.multiples[group] * max(1, round(width * rng.uniform(0.5, 1.5) / traced.multiples[group]))
        for group, width in traced.widths.items()
    }
    model = channels.rebuild(build, traced, widths).eval()
    fault = _fault(model, traced, widths, size)
    free = {layer.module for layer in traced.layers if layer.module not in traced.fixed}
    hidden, heads = ((sum(path in free for path in paths), len(paths)) for paths in inner_layers(model))
    return Result(len(widths), len(traced.layers), len(kept), kept[0] if kept else "", fault, seconds, hidden, heads)


Group = frozenset[tuple[str, str]]  # layers, and the side of each that has the group's channels


def groups_of_both(build: Callable[[], nn.Module], size: tuple[int, int]) -> tuple[set[Group], set[Group]]:
    """Our groups and Torch-Pruning's, of the layers that evaluation runs, without those that end in classes."""
    traced = channels.trace(build, size)
    theirs = _groups_of_torch_pruning(build(), size)
    used = {layer for group in theirs for layer, _ in group}  # without heads that only training runs
    once = {layer.module for layer in traced.layers if layer.depthwise}  # whose two sides are one
    theirs = {frozenset((layer, "out" if layer in once else side) for layer, side in group) for group in theirs}
    classes = {(layer, "out") for layer in traced.fixed}
    ours = {
        frozenset((layer, "out" if layer in once else side) for layer, side in traced.members(group) if layer in used)
        for group in traced.widths
    }
    return {group for group in ours if group}, {group for group in theirs if not group & classes}


def _groups_of_torch_pruning(model: nn.Module, size: tuple[int, int]) -> set[Group]:
    """Its dependency groups, as layers and the side of each that is pruned."""
    import torch_pruning

    graph = torch_pruning.DependencyGraph().build_dependency(model.eval(), torch.zeros(1, 3, *size))
    names = {module: name for name, module in model.named_modules()}
    found = set()
    for group in graph.get_all_groups(root_module_types=(nn.Conv2d, nn.Linear)):
        members = set()
        for dependency, _ in group:
            layer = dependency.target.module
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                reads = graph.is_in_channel_pruning_fn(dependency.handler) and not isinstance(layer, nn.BatchNorm2d)
                members.add((names[layer], "in" if reads else "out"))
        found.add(frozenset(members))
    return found


def _compared(build: Callable[[], nn.Module], size: tuple[int, int]) -> str:
    try:
        ours, theirs = groups_of_both(build, size)
    except Exception as error:  # whatever another library raises is a result
        return f"it fails ({type(error).__name__})"
    return "the same" if ours == theirs else "others"


def _fault(model: nn.Module, traced: Channels, widths: dict[str, int], size: tuple[int, int]) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    small = min(size[0], SIDE), min(size[1], SIDE)  # a real pass; costs are counted on one without memory
    try:
        try:
            result = model(torch.rand(1, 3, *small))
        except Exception:  # it takes no other images
            result = model(torch.rand(1, 3, *size))
        sum(leaf.sum() for leaf in tree_leaves(result)).backward()
        with FlopCounterMode(display=False) as counter:
            model.requires_grad_(False).to("meta")(torch.empty(1, 3, *size, device="meta"))
    except Exception as error:  # whatever a network's own code raises is a result
        return f"does not run: {type(error).__name__}: {error}"
    macs = counter.get_total_flops() // 2
    if (parameters, macs) != (traced.parameters(widths), traced.macs(widths)):
        return f"{parameters}, {macs} instead of the predicted {traced.parameters(widths)}, {traced.macs(widths)}"
    return ""


def _section(title: str, results: dict[str, Result]) -> list[str]:
    done = sum(result.resized for result in results.values())
    whole = sum(result.resized and not result.kept for result in results.values())
    lines = [
        f"## {title}: {done} of {len(results)} resized, {whole} of them in every layer", "",
        "| network | groups | layers | keep their width | trace, s | |", "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, result in results.items():
        lines.append(
            f"| {name} | {result.groups} | {result.layers} | {result.kept} | {result.seconds:.1f} | "
            f"{'' if result.resized else '**not resized** '}{_note(result)} |"
        )
    return [*lines, ""]


def _section_of_transformers(title: str, results: dict[str, Result]) -> list[str]:
    done = sum(result.resized_inside for result in results.values())
    whole = sum(result.resized_inside and 0 < result.heads[1] == result.heads[0] for result in results.values())
    lines = [
        f"## {title}: {done} of {len(results)} resized in feed-forward parts, {whole} of them in all of attention too",
        "",
        "| network | groups | feed-forward | attention | layers | keep their width | trace, s | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, result in results.items():
        hidden, heads = (f"{changed} of {count}" for changed, count in (result.hidden, result.heads))
        lines.append(
            f"| {name} | {result.groups} | {hidden} | {heads} | {result.layers} | {result.kept} | "
            f"{result.seconds:.1f} | {'' if result.resized_inside else '**not resized** '}{_note(result)} |"
        )
    return [*lines, ""]


def _note(result: Result) -> str:
    return (result.refused or result.reason).replace("|", "/").replace("\n", " ")[:160]


def _all(
    names: Sequence[str], network: Callable[[str], tuple[Callable[[], nn.Module], tuple[int, int]]]
) -> dict[str, Result]:
    return {name: resized(*network(name)) for name in watched(names, "channels")}


def main() -> int:
    names = list(torchvision.models.list_models(module=torchvision.models))
    transformers = [name for name in names if name.startswith(TRANSFORMERS)]
    names = [name for name in names if name not in transformers]
    lines = ["# Which networks can be resized", "", *(__doc__ or "").strip().split("\n\n", 2)[2].split("\n"), ""]
    lines += _section(f"torchvision {torchvision.__version__}", _all(names, torchvision_network))
    lines += _section_of_transformers("torchvision's transformers", _all(transformers, torchvision_network))
    try:
        import timm

        lines += _section(f"timm {timm.__version__}", _all(CONVOLUTIONAL, timm_network))
        lines += _section("further ones of timm, with attention among them", _all(FURTHER, timm_network))
        lines += _section_of_transformers("transformers and hybrids of timm", _all(HYBRIDS, timm_network))
    except ImportError:
        lines += ["timm is not installed, so its networks were left out."]
    compared = {name: _compared(*torchvision_network(name)) for name in watched(names, "Torch-Pruning")}
    lines += ["## Torch-Pruning's groups, beside ours", ""]
    lines += [
        f"- {outcome}: {', '.join(name for name in names if compared[name] == outcome)}"
        for outcome in dict.fromkeys(compared.values())
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join([*lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
