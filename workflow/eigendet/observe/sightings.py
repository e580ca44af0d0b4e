"""What an observer notes of a tensor: where it was seen, what its moments follow from, and that they are kept."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

from torch import Tensor, nn

from eigendet.observe.keys import TapKey
from eigendet.observe.points import own_channel_dim
from eigendet.observe.shortcuts import Affine, state_of


@dataclass(frozen=True)
class Sighting:
    """A tensor at one call of a module: in its output, or its input."""

    module: nn.Module
    path: str  # of the module
    key: TapKey
    tensor: Tensor
    channel_dim: int  # from 0 on
    of_images: bool | None  # see `lineage.Kind`
    stride: tuple[int, ...] = ()  # of the positions that are accumulated; (): all
    source: Tensor | None = None  # what an output was computed from: the module's first input, if that is a tensor

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.tensor.shape[self.channel_dim]

    def of_source(self, source: Tensor, stride: tuple[int, ...]) -> Sighting:
        """Return the sighting of the module's input, at the positions of a stride."""
        key = TapKey(self.key.module, self.key.call, "input")
        channel_dim = (own_channel_dim(self.module, source) or 0) % source.dim()
        return Sighting(self.module, self.path, key, source, channel_dim, self.of_images, stride)


@dataclass(frozen=True)
class Link:
    """A tensor whose moments follow from another's; `affine` is None where both are the same tensor."""

    source: TapKey
    affine: Affine | None = None
    module: nn.Module | None = None
    state: tuple[object, ...] = ()  # of the module when the link was made

    @property
    def is_current(self) -> bool:
        """Whether its module is as it was when the link was made."""
        return self.module is None or state_of(self.module) == self.state


@dataclass(frozen=True)
class Registered:
    """A tensor of the present pass whose moments are kept under `key`."""

    tensor: weakref.ref[Tensor]
    version: int
    key: TapKey
    channel_dim: int
