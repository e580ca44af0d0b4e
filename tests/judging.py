"""What becomes of a network that is resized: followed and built narrower, wider and mixed, against what is built."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from eigendet import channels
from eigendet.channels.groups import ChannelError, Channels, Widths
from eigendet.errors import first_line

EXPECTED = ("an output of the network", "a single channel")  # reasons that hold for any method
SPREADS = ((1.0, 1.0), (0.3, 0.9), (1.1, 1.8), (0.5, 1.5))  # of widths, to those of the network


class Verdict(NamedTuple):
    """What became of a network, and why not more."""

    word: Literal["whole", "part", "refused", "wrong", "crash"]
    detail: str
    groups: int
    kept: dict[str, str]


def judge(build: Callable[[], nn.Module], size: tuple[int, int] = (64, 64)) -> Verdict:
    """Trace, build with several widths each, train a step, and compare parameters and MACs with those predicted."""
    try:
        traced = channels.trace(build, size)
    except ChannelError as error:
        return Verdict("refused", str(error), 0, {})
    kept = {layer: why for layer, why in traced.fixed.items() if not why.startswith(EXPECTED)}
    for widths in _several_widths(traced):
        try:
            predicted = (traced.parameters(widths), traced.macs(widths))
            counted = costs(channels.rebuild(build, traced, widths), size)
        except Exception as error:  # whatever is raised is a result
            return Verdict("crash", f"{widths}: {type(error).__name__}: {first_line(error)}", len(widths), kept)
        if counted != predicted:
            return Verdict("wrong", f"{widths}: {counted} where {predicted} were predicted", len(widths), kept)
    word: Literal["whole", "part", "refused"] = "part" if kept else "whole"
    return Verdict(
        word if traced.widths else "refused", "; ".join(dict.fromkeys(kept.values())), len(traced.widths), kept
    )


def costs(model: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """Train a step, and return the parameters, and the multiply-accumulates that torch counts for one image."""
    fast, mkldnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        leaves = [leaf for leaf in tree_leaves(model.train()(torch.rand(2, 3, *size))) if isinstance(leaf, Tensor)]
        torch.stack([leaf.float().sum() for leaf in leaves]).sum().backward()
        # Attention in its two products, recurrent layers in theirs: counters do not know a CPU's own kernels for them.
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.eval()(torch.rand(1, 3, *size))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.enabled = mkldnn
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2


def _several_widths(traced: Channels) -> list[Widths]:
    rng = random.Random(1)
    several = [dict(traced.widths)]
    for low, high in SPREADS[1:]:
        several.append({
            group: multiple * max(1, round(traced.widths[group] * rng.uniform(low, high) / multiple))
            for group, multiple in traced.multiples.items()
        })  # fmt: skip
    return several
