"""What is known of the tensors of a pass by what they were made from: where their channels are, and what they show."""

from __future__ import annotations

import weakref
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eigendet.observe.padding import Canvas, region_paths
from eigendet.observe.points import default_channel_dim, inherited_channel_dim, own_channel_dim


class Kind(NamedTuple):
    """What is known of one tensor."""

    tensor: weakref.ref[Tensor]
    channel_dim: int  # from 0 on
    of_images: bool | None  # a map of the batch's images, not of regions or boxes; None: there was no canvas yet


class Lineage:
    """The tensors that modules of a model gave in the present pass.

    >>> convolution, pooling = nn.Conv1d(3, 4, 3), nn.MaxPool1d(2)
    >>> lineage, images = Lineage(nn.Sequential(convolution, pooling)), torch.zeros(2, 3, 18)
    >>> one = convolution(images)
    >>> lineage.note("0", convolution, images, one, None).channel_dim
    1
    >>> lineage.note("1", pooling, one, pooling(one), None).channel_dim  # which by itself could be the last
    1
    """

    def __init__(self, model: nn.Module) -> None:
        self._regions = region_paths(model)
        self._kinds: dict[int, Kind] = {}  # by identity of the tensor
        self._channel_dims: dict[torch.Size, int] = {}  # of the latest tensor of a shape
        self._latest: dict[int, tuple[int, int]] = {}  # of that of a number of dimensions, and its number of channels

    def clear(self) -> None:
        """Forget the tensors of an earlier pass."""
        self._kinds.clear()
        self._channel_dims.clear()
        self._latest.clear()

    def of(self, tensor: Tensor | None) -> Kind | None:
        """Return what is known of a tensor, if it was noted."""
        kind = self._kinds.get(id(tensor))
        return kind if kind is not None and kind.tensor() is tensor else None

    def note(self, path: str, module: nn.Module, source: Tensor | None, output: Tensor, canvas: Canvas | None) -> Kind:
        """Note a tensor that a module gave.

        Args:
            path: of the module.
            module: what gave it.
            source: what it was computed from: the module's first input, if that is a tensor.
            output: the tensor.
            canvas: of the images of the pass, as far as it is known.
        """
        same, parent = self.of(output), self.of(source)
        dim = own_channel_dim(module, output)
        if dim is None and same is not None:
            dim = same.channel_dim
        if dim is None and source is not None and (before := self._channel_dim_of(source, parent)) is not None:
            dim = inherited_channel_dim(module, source, output, before)
        if dim is None:
            dim = self._guess(output)
        dim %= output.dim()
        kind = Kind(weakref.ref(output), dim, self._of_images(path, same, parent, output, dim, canvas))
        self._kinds[id(output)] = kind
        self._channel_dims[output.shape] = dim
        self._latest[output.dim()] = dim, output.shape[dim]
        return kind

    def _channel_dim_of(self, source: Tensor, parent: Kind | None) -> int | None:
        """Return where a tensor has its channels, or by its shape seems to, if a function has made it of others."""
        return self._channel_dims.get(source.shape) if parent is None else parent.channel_dim

    def _guess(self, output: Tensor) -> int:
        """Return where a tensor seems to have its channels: where others of its shape have, or as many."""
        dim, channels = self._latest.get(output.dim(), (0, -1))
        default = dim if output.shape[dim] == channels else default_channel_dim(output)
        return self._channel_dims.get(output.shape, default)

    def _of_images(
        self, path: str, same: Kind | None, parent: Kind | None, output: Tensor, dim: int, canvas: Canvas | None
    ) -> bool | None:
        if canvas is None:
            return None
        if path.startswith(self._regions):
            return False
        if same is not None and same.of_images is not None:
            return same.of_images
        source = None if parent is None else parent.tensor()
        if parent is not None and parent.of_images is not None and source is not None and source.dim() == output.dim():
            return parent.of_images
        return canvas.fits(output, dim)
