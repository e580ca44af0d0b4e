"""The gradient of a detector's loss at its feature maps, over the probe images with their objects.

Detectors compute losses in training mode alone, and maps are observed in evaluation mode. So for its loss only those
modules of a detector are in training mode that decide what it computes: outside of its backbone, with parts of their
own. Dropout is left out, normalization has its fixed statistics, and images are resized as in evaluation, so that the
backbone gives the very maps whose covariance is observed. Region heads see the regions that the loss samples.

The loss is the sum of all that a detector gives, as in training, of one image at a time. What it samples is fixed by
the image, and what it keeps in buffers is put back, so neither order nor shards matter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from eigendet.channels.groups import Channels
from eigendet.config.sections import CovarianceSettings
from eigendet.data.batches import as_float, learned_objects, stream_seed
from eigendet.data.datasets import Detection
from eigendet.errors import UserError
from eigendet.moments.covariance import Covariance
from eigendet.networks.backbones import backbone_of
from eigendet.observe.keys import TapKey
from eigendet.observe.tap import Gradient
from eigendet.runs import training
from eigendet.runs.images import Decoded, ahead, pinned_for
from eigendet.runs.losses import Losses
from eigendet.runs.observation import observed_gradients

DROPOUT = {
    functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d, functional.alpha_dropout,
    functional.feature_alpha_dropout, torch.dropout, torch.alpha_dropout, torch.feature_dropout,
    torch.feature_alpha_dropout,
}  # fmt: skip


class Sample(NamedTuple):
    """An image with its objects, as a detector learns from them, on its device."""

    number: int
    image: Tensor
    objects: dict[str, Tensor]


class Samples(Sequence[Sample]):
    """Some images of a data set with their objects, the next ones read by a thread meanwhile.

    Args:
        decoded: the images.
        indices: numbers of those that are shown, in this order; each has objects.
        masks: whether the detector learns masks.
        device: of the detector.
        looked: called as each is shown.

    Examples:
        >>> from eigendet.data.samples import Rectangles
        >>> sample, = Samples(Decoded(Rectangles(32)), [2], masks=False, device=torch.device("cpu"))
        >>> sample.number, sample.image.shape, sorted(sample.objects)
        (2, torch.Size([3, 32, 32]), ['boxes', 'labels'])
    """

    def __init__(
        self,
        decoded: Decoded,
        indices: Sequence[int],
        masks: bool,
        device: torch.device,
        looked: Callable[[], None] = lambda: None,
    ) -> None:
        self.decoded, self.indices, self.masks, self.device, self.looked = decoded, indices, masks, device, looked

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: Any) -> Any:
        return self._show(self._read(self.indices[place]))

    def __iter__(self) -> Iterator[Sample]:
        return map(self._show, ahead(self._read, self.indices))

    def _read(self, index: int) -> Sample:
        image, target = self.decoded.sample(index)
        return Sample(index, pinned_for(self.device, as_float(image)), learned_objects(target, self.masks))

    def _show(self, sample: Sample) -> Sample:
        self.looked()
        image = sample.image.to(self.device, non_blocking=True)
        return Sample(sample.number, image, {name: value.to(self.device) for name, value in sample.objects.items()})


def with_objects(dataset: Detection, indices: Sequence[int], name: str) -> list[int]:
    """Return those images of a data set that have an object to learn from; of others, as in training, there is no loss.

    Raises:
        UserError: none has, in the data set of that name.

    Examples:
        >>> from eigendet.data.samples import Rectangles
        >>> with_objects(Rectangles(32), [0, 2], "data.detection.train")
        [0, 2]
    """
    labeled = [index for index in indices if dataset.objects(index)]
    if not labeled:
        raise UserError(
            f"covariance.gradients is true, but none of the {len(indices)} probe images of {name} has an object to "
            "learn from, so there is no loss; annotate them, choose another split, or leave it false."
        )
    return labeled


def loss_gradients(
    model: nn.Module,
    settings: CovarianceSettings,
    samples: Sequence[Sample],
    taps: dict[TapKey, int],
    groups: Channels | None = None,
) -> Iterator[tuple[TapKey, Gradient]]:
    """Yield the moments of the gradient of a detector's loss at each of these taps.

    Args:
        model: the detector.
        settings: say which points of which modules are tapped.
        samples: what it computes losses of.
        taps: those that were observed in evaluation, with their numbers of channels; of one that the loss does not
            reach in any image there are no samples.
        groups: those that are each observed somewhere, see `observed_gradients`.

    Raises:
        UserError: a loss is not finite, or as `computing_losses`.
    """
    left = dict(taps)
    if samples:
        with computing_losses(model) as losses:

            def total(sample: Sample) -> Tensor:
                own = losses(sample)
                loss = torch.stack(list(own.values())).sum()
                if not loss.isfinite():
                    values = ", ".join(f"{name} {float(value.detach()):g}" for name, value in own.items())
                    raise UserError(f"probe image {sample.number}: its losses are {values}.")
                return loss

            for key, gradient in observed_gradients(model, settings, samples, total, groups):
                if left.pop(key, None) is not None:
                    yield key, gradient
    for key, channels in left.items():
        yield key, Gradient(Covariance(channels), len(samples))


@contextlib.contextmanager
def computing_losses(model: nn.Module) -> Iterator[Callable[[Sample], Losses]]:
    """Let a detector compute losses over the maps that it has in evaluation.

    Yields:
        What gives the losses of an image, the same at every call. The detector is as before once the context has ended.

    Raises:
        UserError: it gives none.
    """
    modes = {module: module.training for module in model.modules()}
    within = set(backbone_of(model).modules())
    for module in modes:  # torch.nn's own, of which attention has parts, do nothing but drop out in training mode
        has_parts = next(module.children(), None) is not None
        module.training = has_parts and module not in within and not type(module).__module__.startswith("torch.nn.")
    model.training = True
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    versions = [buffer._version for buffer in model.buffers()]

    def restore() -> None:
        with torch.no_grad():
            for place, (buffer, before) in enumerate(buffers):
                if buffer._version != versions[place]:
                    versions[place] = buffer.copy_(before)._version

    def losses(sample: Sample) -> Losses:
        restore()  # not earlier: the backward pass reads them
        training.seed_everything(stream_seed(0, "gradient", sample.number))
        with _WithoutDropout():
            computed: Losses = model([sample.image], [sample.objects])
        if not isinstance(computed, dict) or not computed:
            raise UserError(
                f"the detector {type(model).__name__} gives no losses where its layers and its backbone are in "
                "evaluation mode, as for covariance.gradients; leave that false."
            )
        return computed

    try:
        yield losses
    finally:
        restore()
        for module, mode in modes.items():
            module.training = mode


class _WithoutDropout(TorchFunctionMode):
    """Leaves out the dropout of functions, which modules outside of `torch.nn` call with their own mode."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in DROPOUT:
            return args[0] if args else kwargs["input"]
        if function is functional.scaled_dot_product_attention:
            by_place = len(args) > 4
            args = (*args[:4], 0.0, *args[5:]) if by_place else args
            kwargs = kwargs if by_place else kwargs | {"dropout_p": 0.0}
        return function(*args, **kwargs)
