"""What an allocator sees of each channel group; see `plugins` for the contract of allocators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from eigendet import plugins
from eigendet.channels.groups import Channels, Widths
from eigendet.config.sections import WidthSettings
from eigendet.spectra.metrics import intrinsic_dimension
from eigendet.widths.allocation import Budget, seal
from eigendet.widths.dimensions import GroupSpectra
from eigendet.widths.weighting import product_eigenvalues, root


@dataclass(frozen=True)
class MapView:
    """One map of a group in one seed, over the probe images.

    Attributes:
        seed: of the run.
        eigenvalues: of the map's covariance, (C,), descending, none negative.
        covariance: (C, C), where it was asked for; the raw second moment with `widths.centered: false`.
        gradient: mean of g gᵀ over positions, g the gradient of the loss of one image at the map, (C, C), likewise.
        positions: of one image, on average, where the gradient was asked for.
    """

    seed: int
    eigenvalues: np.ndarray
    covariance: np.ndarray | None = None
    gradient: np.ndarray | None = None
    positions: float = 0.0

    def __post_init__(self) -> None:
        seal(self)

    @cached_property
    def loss_spectrum(self) -> np.ndarray:
        """Eigenvalues of Σ^½ G Σ^½ times positions, (C,), descending, where covariance and gradient were asked for.

        >>> MapView(0, np.array([4.0, 1.0]), np.diag([4.0, 1.0]), np.diag([1.0, 2.0]), positions=3.0).loss_spectrum
        array([12.,  6.])
        """
        assert self.covariance is not None and self.gradient is not None
        spectrum = self.positions * product_eigenvalues(root(self.covariance), self.gradient)
        spectrum.flags.writeable = False
        return spectrum


@dataclass(frozen=True)
class Kernel:
    """The weights of a layer that reads a group and nothing else.

    Attributes:
        module: the layer's path.
        weight: (blocks, written / blocks, C / blocks, elements), of a convolution that is not grouped with one block.
    """

    module: str
    weight: np.ndarray

    def __post_init__(self) -> None:
        seal(self)

    @property
    def gram(self) -> np.ndarray:
        """Sum over the kernel's elements of WᵀW, (C, C): how strongly the layer reads each direction.

        >>> Kernel("conv", np.array([[[[1.0], [2.0]]]])).gram.tolist()
        [[1.0, 2.0], [2.0, 4.0]]
        """
        blocks, _, read, _ = self.weight.shape
        gram = np.zeros((blocks * read, blocks * read))
        for number, block in enumerate(self.weight):
            rows = block.transpose(0, 2, 1).reshape(-1, read)
            gram[number * read : (number + 1) * read, number * read : (number + 1) * read] = rows.T @ rows
        return gram


@dataclass(frozen=True)
class Unfolding:
    """A layer's weights at one snapshot as a matrix: a row for each channel of a group that it reads, or writes.

    Attributes:
        module: the layer's path.
        step: of the snapshot.
        shape: channels and weights of each, of a block; of a convolution that is not grouped there is one.
        values: singular values of every block, (blocks, the smaller of the shape), descending.
    """

    module: str
    step: int
    shape: tuple[int, int]
    values: np.ndarray

    def __post_init__(self) -> None:
        seal(self)


@dataclass(frozen=True)
class GroupView:
    """A channel group, as an allocator sees it. Groups come in the order in which the network runs.

    Attributes:
        name: the first layer that writes it.
        reference: its width in the reference.
        multiple: what its width will be a multiple of.
        dimension: its intrinsic dimension by the experiment's rule, the largest of its maps, averaged over seeds.
        rule: the experiment's rule: from eigenvalues to a dimension.
        maps: every map of every seed; those of all taps that the group ties.
        kernels: by seed, of the layers that read the group, where they were asked for.
        history: by seed, likewise, of the layers that read or write the group, at every snapshot.
        readers: how many layers with weights read it.
        macs: multiply-accumulates that one channel more costs beside the reference's widths.
        parameters: likewise.
    """

    name: str
    reference: int
    multiple: int
    dimension: float
    rule: Callable[[np.ndarray], float]
    maps: tuple[MapView, ...]
    kernels: Mapping[int, tuple[Kernel, ...]] = field(default_factory=dict)
    history: Mapping[int, tuple[Unfolding, ...]] = field(default_factory=dict)
    readers: int = 0
    macs: float = 0.0
    parameters: float = 0.0

    def over_maps(self, values: Callable[[MapView], np.ndarray | float]) -> np.ndarray:
        """Return the largest over the maps of each seed, averaged over seeds: what the most demanding map asks for.

        >>> spectra = [(0, [3.0, 1.0]), (0, [2.0, 2.0]), (1, [1.0, 1.0])]
        >>> maps = [MapView(seed, np.array(values)) for seed, values in spectra]
        >>> view = GroupView("conv1", 2, 1, 2.0, len, tuple(maps))
        >>> view.over_maps(lambda one: one.eigenvalues).tolist()
        [2.0, 1.5]
        """
        seeds: dict[int, list[np.ndarray]] = {}
        for one in self.maps:
            seeds.setdefault(one.seed, []).append(np.asarray(values(one)))
        mean: np.ndarray = np.mean([np.max(own, axis=0) for own in seeds.values()], axis=0)
        return mean


@dataclass(frozen=True)
class Moments:
    """The matrices of one map; see `MapView`."""

    covariance: np.ndarray
    gradient: np.ndarray | None = None
    positions: float = 0.0


@dataclass(frozen=True)
class Seen:
    """What was read beside eigenvalues, by seed and group: nothing, unless the allocator needs it."""

    moments: Mapping[int, Mapping[str, Sequence[Moments]]] = field(default_factory=dict)
    kernels: Mapping[int, Mapping[str, tuple[Kernel, ...]]] = field(default_factory=dict)
    history: Mapping[int, Mapping[str, tuple[Unfolding, ...]]] = field(default_factory=dict)


def group_views(
    budget: Budget,
    channels: Channels,
    reference: Widths,
    spectra: GroupSpectra,
    settings: WidthSettings,
    seen: Seen | None = None,
) -> list[GroupView]:
    """Return the view of every group, in the budget's order."""
    seen = seen or Seen()
    rule = plugins.bind("rule", settings.rule, "widths.rule")
    dimension = spectra.dimensions(settings)
    macs, parameters, _ = budget.costs.gradient(np.array([reference[group] for group in budget.costs.groups], float))
    readers = dict.fromkeys(budget.costs.groups, 0)
    for layer in channels.layers:
        for group, _ in layer.source.terms if layer.source and layer.kind in ("conv", "linear") else ():
            readers[group] += 1
    return [
        GroupView(
            name=group,
            reference=reference[group],
            multiple=int(budget.multiple[place]),
            dimension=dimension[group],
            rule=lambda values: intrinsic_dimension(values, rule),
            maps=tuple(_maps(group, spectra, seen)),
            kernels={seed: own.get(group, ()) for seed, own in seen.kernels.items()},
            history={seed: own.get(group, ()) for seed, own in seen.history.items()},
            readers=readers[group],
            macs=float(macs[place]),
            parameters=float(parameters[place]),
        )
        for place, group in enumerate(budget.costs.groups)
    ]


def _maps(group: str, spectra: GroupSpectra, seen: Seen) -> list[MapView]:
    views = []
    for seed, taps in spectra.groups[group].items():
        moments = seen.moments[seed][group] if seed in seen.moments else [None] * len(taps)
        for values, own in zip(taps, moments, strict=True):
            view = MapView(seed, np.sort(values)[::-1])
            if own is not None:
                view = MapView(seed, view.eigenvalues, own.covariance, own.gradient, own.positions)
            views.append(view)
    return views
