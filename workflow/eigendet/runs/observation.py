"""Choose the feature maps of a detector whose covariances are computed, and go over images for these.

They are those at `covariance.points`. Of a channel group that has no map there (a linear bottleneck has no activation,
and a function such as torch.relu is not a module), they are those at the nearest point where it has one, so that there
are spectra from which its width can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from torch import Tensor, nn

from eigendet.channels.groups import Channels
from eigendet.config.sections import CovarianceSettings
from eigendet.observe.keys import Point, TapKey
from eigendet.observe.passes import covariances, gradients
from eigendet.observe.points import point_of
from eigendet.observe.tap import Gradient, Tap
from eigendet.widths.dimensions import OTHER_POINTS, nearest_point


def observed_taps(
    model: nn.Module,
    settings: CovarianceSettings,
    images: Sequence[list[Tensor]],
    first: list[Tensor] | None = None,
    groups: Channels | None = None,
) -> Iterator[Tap]:
    """Yield the taps of a detector over images. Those of its backbone are named as in the backbone alone.

    Args:
        model: the detector, in evaluation mode.
        settings: say which points of which modules are tapped.
        images: batches for the detector.
        first: the batch that decides which maps follow from others, see `covariances`.
        groups: those that are each observed somewhere; None: only the points of the settings.
    """
    prefix, chosen = _chosen(model, settings, groups)
    counted = settings.weighting
    for tap in covariances(model, images, **chosen, calibration=first, image_means=True, weighting=counted):
        yield replace(tap, key=_named(tap.key, prefix))


def observed_gradients(
    model: nn.Module,
    settings: CovarianceSettings,
    batches: Iterable[Any],
    loss: Callable[[Any], Tensor],
    groups: Channels | None = None,
) -> Iterator[tuple[TapKey, Gradient]]:
    """Yield the moments of a loss's gradient at the taps that `observed_taps` yields.

    Args:
        model: the detector, in the mode in which it computes losses.
        settings: say which points of which modules are tapped.
        batches: what the loss is of, an image each.
        loss: runs the detector on a batch, and returns its loss.
        groups: those that are each observed somewhere.
    """
    prefix, chosen = _chosen(model, settings, groups)
    for key, gradient in gradients(model, batches, loss, **chosen):
        yield _named(key, prefix), gradient


class _Taps(TypedDict):
    """Which taps are observed, and how many at once: arguments of `covariances` and `gradients`."""

    points: list[Point]
    modules: str | list[str]
    keys: Container[TapKey]
    memory: float | None


def _chosen(model: nn.Module, settings: CovarianceSettings, groups: Channels | None) -> tuple[str, _Taps]:
    """Return what the paths of the backbone's modules begin with, and which taps are observed."""
    prefix = f"{model.backbone_path}."
    pyramids = [path for path, module in model.named_modules() if point_of(module) == "fpn"]
    elsewhere = {} if groups is None else taps_elsewhere(model, groups, settings.points)
    return prefix, {
        "points": list(dict.fromkeys([*settings.points, *elsewhere.values()])),
        "modules": "*" if settings.heads else [f"{prefix}*", *pyramids],
        "keys": _Chosen(settings.points, elsewhere, prefix),
        "memory": None if settings.memory is None else settings.memory * 2**30,
    }


def _named(key: TapKey, prefix: str) -> TapKey:
    """Return the key of a tap of a detector as it is named in the backbone alone, if it is of the backbone."""
    return TapKey(key.module.removeprefix(prefix), key.call, key.point)


def taps_elsewhere(model: nn.Module, groups: Channels, points: Sequence[Point]) -> dict[tuple[str, int], Point]:
    """Return the taps of channel groups that have none at these points: (module, call) -> the nearest point they have.

    Args:
        model: the detector; modules of its backbone are named as in the backbone alone.
        groups: its own, or those of its backbone.
        points: what is observed anyway; where these are none at which widths are read, nothing else is.
    """
    if not set(points).intersection(OTHER_POINTS):
        return {}
    prefix = f"{model.backbone_path}."
    modules = {path.removeprefix(prefix): module for path, module in model.named_modules()}
    by_group: dict[str, dict[tuple[str, int], Point]] = {group: {} for group in groups.widths}
    for (path, call), group in groups.outputs.items():
        if path in modules and group in by_group:
            by_group[group][path, call] = point_of(modules[path])
    elsewhere: dict[tuple[str, int], Point] = {}
    for taps in by_group.values():
        nearest = nearest_point(set(taps.values()), points)
        elsewhere |= {tap: point for tap, point in taps.items() if point == nearest}
    return elsewhere


@dataclass(frozen=True)
class _Chosen(Container[TapKey]):
    """The keys of all taps at some points, and of some others."""

    points: Sequence[Point]
    elsewhere: Mapping[tuple[str, int], Point]
    prefix: str  # of the backbone's modules, which is left out of the names of `elsewhere`

    def __contains__(self, key: object) -> bool:
        return isinstance(key, TapKey) and (
            key.point in self.points or (key.module.removeprefix(self.prefix), key.call) in self.elsewhere
        )
