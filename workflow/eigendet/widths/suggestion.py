"""Widths for a classifier of one's own in one call: its spectra over some batches, and a budget spent accordingly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from eigendet import channels
from eigendet.channels.construction import built, construct
from eigendet.channels.groups import ChannelError, Channels, Widths
from eigendet.config.sections import WidthSettings
from eigendet.errors import UserError, first_line, kind, some
from eigendet.networks.widths_file import Cost
from eigendet.observe.passes import covariances
from eigendet.observe.points import refuse_hookless
from eigendet.spectra.spectrum import eigenvalues
from eigendet.widths.derivation import spend
from eigendet.widths.dimensions import OTHER_POINTS, GroupSpectra, spectra_by_group


@dataclass(frozen=True)
class SuggestedWidths:
    """Widths of every channel group of a network, beside those that it has. Its text is a table.

    Attributes:
        widths: by group, as `channels.rebuild` takes them.
        reference: those of the network as it is.
        channels: the groups, as `channels.rebuild` takes them if `suggest_widths` was given what builds the network.
        dimensions: what the spectra show of every group, in channels.
        targets: what was rounded to the widths.
        multiples: of which they are multiples.
        bound: what keeps each group from being wider: a cap, its range ("least", "most"), or its "target".
    """

    widths: Widths
    reference: Widths
    channels: Channels
    dimensions: dict[str, float]
    targets: dict[str, float]
    multiples: Widths
    bound: dict[str, str]

    @property
    def macs(self) -> Cost:
        """Multiply-accumulates for one image of the batches' size."""
        return Cost(self.channels.macs(self.reference), self.channels.macs(self.widths))

    @property
    def parameters(self) -> Cost:
        """Trainable parameters."""
        return Cost(self.channels.parameters(self.reference), self.channels.parameters(self.widths))

    def frame(self) -> pd.DataFrame:
        """Return a row for each group: name, reference, dimension, target, multiple, width, bound.

        `channels.frame` says of layers.
        """
        columns = {
            "reference": self.reference, "dimension": self.dimensions, "target": self.targets,
            "multiple": self.multiples, "width": self.widths, "bound": self.bound,
        }  # fmt: skip
        return pd.DataFrame(columns).rename_axis("name").reset_index()

    def __str__(self) -> str:
        costs = (("parameters", self.parameters), ("MACs", self.macs))
        said = ", ".join(f"{cost.result:,} {name} ({cost.share:.3f} of the reference's)" for name, cost in costs)
        return f"{self.frame().to_string(index=False, float_format='{:.1f}'.format)}\nin all {said}"


def suggest_widths(
    model: nn.Module | Callable[[], nn.Module],
    batches: Iterable[Any],
    macs: float = 1.0,
    *,
    build: Callable[[], nn.Module] | None = None,
) -> SuggestedWidths:
    """Suggest widths of a classifier's layers in proportion to the dimensions of their spectra, at a cost.

    They are what the workflow's stage `widths` derives with its default settings: rule `dof`, in proportion, multiples
    of 8, at most four times as wide as before, and never more operations than `macs` allows. (Multiples of 4, 2 or 1
    where those of 8 cost too much.) The model runs in evaluation mode and without gradients, is left in its own mode,
    and should be trained: of random weights the spectra say little.

    Args:
        model: a network that takes a batch of images and gives a number for each class. Or the function that builds
            one, which then has random weights.
        batches: tensors of images (N, C, H, W), or tuples that begin with one, such as those of a DataLoader. They are
            gone through once, and their size is that for which operations count. Give some thousand images: fewer
            samples than channels hide what is there.
        macs: how many multiply-accumulates the network may have, as a share of those that it has now.
        build: the function that builds such a network, anew each time, such as functools.partial(resnet18,
            weights=None). With it every group is tried with other widths first, and `channels.rebuild` can build the
            result.

    Raises:
        UserError: there are no batches, or of something else; `build` fails or builds another network; the network
            cannot be run on the batches or followed, or has layers that evaluation leaves out; the budget is too small.

    Examples:
        >>> class Net(nn.Sequential):
        ...     def __init__(self):
        ...         super().__init__(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(),
        ...                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
        >>> torch.manual_seed(0) and None
        >>> suggested = suggest_widths(Net(), [torch.rand(8, 3, 16, 16)], macs=0.5, build=Net)
        >>> suggested.reference, suggested.macs.share <= 0.5
        ({'0': 16, '2': 32}, True)
        >>> narrow = channels.rebuild(Net, suggested.channels, suggested.widths)
    """
    if isinstance(macs, bool) or not isinstance(macs, Real) or not 0 < macs <= 100:
        said = f"macs: got {macs!r}; expected a share of the network's operations above 0 and up to 100, such as 0.5."
        raise UserError(said)
    model, build = _built(model, build)
    refuse_hookless(model)
    images = _images(batches, next((tensor.device for tensor in model.parameters()), torch.device("cpu")))
    first = next(images, None)
    if first is None:
        raise UserError("batches: there are none; expected batches of images to read the spectra from.")
    size = (first.shape[2], first.shape[3])
    traced = channels.trace(model if build is None else build, size, first.shape[1])
    if not traced.widths:
        raise UserError(f"{type(model).__name__}: no layer has a width that can change.")
    settings = WidthSettings(macs=float(macs), round_to=_multiple(traced, float(macs)))
    spectra = _observed(model, chain([first], images), traced, settings)
    budget, dimensions, widths, target = spend(traced, traced.widths, spectra, settings)
    targets = dict(zip(widths, target.tolist(), strict=True))
    multiples, bound = budget.named(budget.multiple), budget.binding(widths, target)
    return SuggestedWidths(widths, traced.widths, traced, dimensions, targets, multiples, bound)


def _built(
    model: nn.Module | Callable[[], nn.Module], build: Callable[[], nn.Module] | None
) -> tuple[nn.Module, Callable[[], nn.Module] | None]:
    """Return the network, and what builds it where that is known."""
    for name, function in (("model", model), ("build", build)):
        if not (callable(function) or (function is None and name == "build")):
            raise UserError(f"{name}: got {kind(function)}; expected a network, or the function that builds it.")
    if isinstance(build, nn.Module):
        raise UserError("build: got a network; expected the function or class that builds it.")
    try:
        network = model if isinstance(model, nn.Module) else construct(model)
    except ChannelError as error:
        raise UserError(f"model: {error}.") from error
    if build is not None:
        _refuse_another(network, build)
    return network, build if isinstance(model, nn.Module) else build or model


def _refuse_another(model: nn.Module, build: Callable[[], nn.Module]) -> None:
    """Refuse a function that does not build networks with the model's parameters."""
    try:
        other = built(build).model
    except ChannelError as error:
        raise UserError(f"build: {error}.") from error
    own, others = (
        {name: f"of shape {tuple(tensor.shape)}" for name, tensor in network.named_parameters() if not is_lazy(tensor)}
        for network in (model, other)
    )
    for name in own | others:
        if own.get(name) != others.get(name):
            raise UserError(
                f"build: in what it builds, the parameter '{name}' is {others.get(name, 'missing')}; in the model it "
                f"is {own.get(name, 'missing')}. Expected the function that builds this model."
            )


def _multiple(traced: Channels, macs: float) -> int:
    """Return what widths are rounded to: 8, or less where the narrowest network would cost more than the budget."""
    full = traced.macs(traced.widths)
    for multiple in (8, 4, 2, 1):
        needed = traced.macs(traced.rounded_to(multiple)) / full
        if needed <= macs:
            return multiple
    raise UserError(
        f"macs: got {macs:g}; the narrowest that this network can be has {math.ceil(1e6 * needed) / 1e6:g} of its "
        "operations, so give at least that."
    )


def _images(batches: Iterable[Any], device: torch.device) -> Iterator[Tensor]:
    """Yield the images of each batch."""
    if not isinstance(batches, Iterable):
        raise UserError(f"batches: got {kind(batches)}; expected a list of batches or a DataLoader.")
    for number, batch in enumerate(batches):
        images = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
            raise UserError(
                f"batches: batch {number} is {kind(batch) if images is batch else f'a tuple with {kind(images)}'}; "
                "expected images as a floating-point tensor (N, C, H, W), or a tuple that begins with one."
            )
        if not images.numel():
            raise UserError(f"batches: batch {number} is empty, {kind(images)}; expected some images.")
        yield images.to(device)


def _observed(model: nn.Module, images: Iterator[Tensor], traced: Channels, settings: WidthSettings) -> GroupSpectra:
    """Return the spectra of every group.

    Raises:
        UserError: the model fails; a group has no feature map of its own.
    """

    def run(batch: Tensor) -> None:
        try:
            output = model(batch)
        except UserError:
            raise
        except Exception as error:  # whatever a network's own code raises
            raise UserError(f"{type(model).__name__}: fails on {kind(batch)}: {first_line(error)}") from error
        if not isinstance(output, Tensor) or output.dim() != 2:
            raise UserError(
                f"{type(model).__name__}: gives {kind(output)}; expected a classifier, a number for each class."
            )

    rows = []
    for tap in covariances(model, images, OTHER_POINTS, call=run):
        values = eigenvalues(tap.covariance.covariance().cpu().numpy(), tap.covariance.device)
        own = {"seed": 0, "step": 0, "module": tap.key.module, "call": tap.key.call, "point": tap.key.point}
        rows.append(pd.DataFrame({**own, "value": np.array(values)}))
    spectra = spectra_by_group(pd.concat(rows), traced, settings)
    bare = [group for group in traced.widths if group not in spectra.groups]
    running = {group for layer in traced.layers if layer.positions for group, _ in layer.out.terms}
    idle = [group for group in bare if group not in running]
    if idle:
        raise UserError(
            f"{type(model).__name__}: {some(idle)} did not run in evaluation mode, so there are no spectra to read "
            "their widths from; give a network without them."
        )
    if bare:
        raise UserError(
            f"{type(model).__name__}: the channel groups {some(bare)} have no feature map of their own in this network."
        )
    return spectra
