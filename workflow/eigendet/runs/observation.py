"""Choose the feature maps of a detector whose covariances are computed, and go over images for these.

They are those at `covariance.points`. Of a channel group that has no map there (a linear bottleneck has no activation,
and a function such as torch.relu is not a module), they are those at the nearest point where it has one, so that there
are spectra from which its width can be read.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from eigendet.channels.groups import Channels
from eigendet.config.sections import CovarianceSettings
from eigendet.observe.keys import Point, TapKey
from eigendet.observe.passes import covariances
from eigendet.observe.points import point_of
from eigendet.observe.tap import Tap
from eigendet.widths.dimensions import OTHER_POINTS


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
    prefix = f"{model.backbone_path}."
    pyramids = [path for path, module in model.named_modules() if point_of(module) == "fpn"]
    elsewhere = {} if groups is None else taps_elsewhere(model, groups, settings.points)
    for tap in covariances(
        model,
        images,
        list(dict.fromkeys([*settings.points, *elsewhere.values()])),
        modules="*" if settings.heads else [f"{prefix}*", *pyramids],
        keys=_Chosen(settings.points, elsewhere, prefix),
        memory=None if settings.memory is None else settings.memory * 2**30,
        calibration=first,
        image_means=True,
    ):
        yield replace(tap, key=TapKey(tap.key.module.removeprefix(prefix), tap.key.call, tap.key.point))


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
        there = [point for point in OTHER_POINTS if point in taps.values()]
        if there and not set(there).intersection(points):
            elsewhere |= {tap: point for tap, point in taps.items() if point == there[0]}
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
