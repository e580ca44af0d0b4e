"""A backbone plugin: a plain network, to change into your own."""

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt

from eigendet.plugins import backbone

if TYPE_CHECKING:
    from torch import nn


# The first line of the docstring is what `eigendet plugins` lists; keyword-only parameters are the options, checked by
# their types before anything runs. `eigendet plugins show example` prints them.
@backbone
def example(*, channels: PositiveInt = 32, blocks: Annotated[int, Field(ge=1, le=8)] = 1) -> "nn.Module":
    """Build a small residual network of five stages, `channels` wide in the first and doubling."""
    from torch import Tensor, nn  # here, so that options are checked without waiting for torch

    def layer(source: int, width: int, stride: int) -> nn.Module:
        # Group norm does not depend on the batch.
        return nn.Sequential(
            nn.Conv2d(source, width, 3, stride, 1, bias=False), nn.GroupNorm(8, width), nn.ReLU(inplace=True)
        )

    class ResidualBlock(nn.Module):  # a name that ends in Block makes its sum a tap of the point `block`
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.second = layer(width, width, 1), layer(width, width, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.second(self.first(x))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = layer(3, channels, 2)
            widths = [channels * 2**stage for stage in range(5)]
            self.stages = nn.ModuleList(
                nn.Sequential(layer(narrow, wide, 2), *(ResidualBlock(wide) for _ in range(blocks)))
                for narrow, wide in pairwise(widths)
            )

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            # Images come normalized. Maps are named, finest first.
            x = self.stem(images)
            maps = {}
            for number, stage in enumerate(self.stages):
                x = maps[f"stage{number}"] = stage(x)
            return maps

    # Nothing here says how widths may change: `eigendet channels` finds that out by following one pass.
    return Network()
