"""SSD and SSDlite, from torchvision's parts, over any backbone."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from eigendet.plugins import Options, detector

if TYPE_CHECKING:
    from torch import nn

Level = Callable[[int, int], "nn.Module"]  # from channels read and written
Head = Callable[[list[int], list[int], int], "nn.Module"]  # from channels and default boxes of each level, and classes


class SSDOptions(Options):
    """Options of SSD."""

    skip_maps: NonNegativeInt = Field(1, description="how many of the backbone's finest maps are left out")
    extra_channels: list[Annotated[int, Field(ge=2)]] = Field(
        [512, 256, 256], description="of the levels that are added to the backbone's maps, each half as fine as before"
    )
    scales: list[PositiveFloat] = Field(
        [0.07, 0.15, 0.33, 0.51, 0.69, 0.87],
        description="sides of default boxes, one a level, finest first, as shares of the images' shorter side",
    )
    aspect_ratios: list[PositiveFloat] = Field(
        [2, 3], description="of default boxes, upright and lying, beside squares"
    )


class SSDLiteOptions(SSDOptions):
    """Options of SSDlite: those of SSD with other defaults, and its normalization."""

    skip_maps: NonNegativeInt = Field(2, description="how many of the backbone's finest maps are left out")
    extra_channels: list[Annotated[int, Field(ge=2)]] = Field(
        [512, 256, 256, 128], description="of the levels that are added to the backbone's maps, each half as fine"
    )
    scales: list[PositiveFloat] = Field(
        [0.2, 0.35, 0.5, 0.65, 0.8, 0.95],
        description="sides of default boxes, one a level, finest first, as shares of the images' shorter side",
    )
    norm_groups: PositiveInt = Field(32, description="of each GroupNorm, at most")


@detector
def ssd(backbone: "nn.Module", classes: int, size: tuple[int, int], *, options: SSDOptions) -> "nn.Module":
    """Build torchvision's SSD over the backbone's maps and levels of its own, without normalization."""
    from torch import nn
    from torchvision.models.detection.ssd import SSDHead
    from torchvision.ops import Conv2dNormActivation

    def level(source: int, out: int) -> nn.Module:
        return nn.Sequential(
            Conv2dNormActivation(source, out // 2, 1, norm_layer=None),
            Conv2dNormActivation(out // 2, out, 3, stride=2, norm_layer=None),
        )

    return _ssd(backbone, classes, size, options, level, SSDHead)


@detector
def ssdlite(backbone: "nn.Module", classes: int, size: tuple[int, int], *, options: SSDLiteOptions) -> "nn.Module":
    """Build torchvision's SSDlite: SSD with separable convolutions, and with GroupNorm."""
    from functools import partial

    from torch import nn
    from torchvision.models.detection.ssdlite import SSDLiteHead
    from torchvision.ops import Conv2dNormActivation

    from eigendet.networks.parts import group_norm

    norm = group_norm(options.norm_groups)
    layer = partial(Conv2dNormActivation, norm_layer=norm, activation_layer=nn.ReLU6)

    def level(source: int, out: int) -> nn.Module:
        half = out // 2
        return nn.Sequential(layer(source, half, 1), layer(half, half, 3, stride=2, groups=half), layer(half, out, 1))

    return _ssd(backbone, classes, size, options, level, partial(SSDLiteHead, norm_layer=norm))


def _ssd(
    backbone: "nn.Module", classes: int, size: tuple[int, int], options: SSDOptions, level: Level, head: Head
) -> "nn.Module":
    """Build an SSD with this kind of block for its own levels, and this head."""
    from torch import Tensor, cat, nn
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.ssd import SSD

    from eigendet.networks.parts import check_levels, coarser_maps, feature_channels

    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = backbone
            maps = coarser_maps(backbone, options.skip_maps)
            self.maps = list(maps)
            sources = [*maps.values(), *options.extra_channels][len(maps) - 1 :]
            self.extra = nn.ModuleList(map(level, sources, options.extra_channels))
            for layer in self.extra.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.xavier_uniform_(layer.weight)

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            features = self.body(images)
            maps = {name: features[name] for name in self.maps}
            x = maps[self.maps[-1]]
            for number, block in enumerate(self.extra):
                x = maps[f"extra{number}"] = block(x)
            return maps

    class DefaultBoxes(DefaultBoxGenerator):
        """Takes scales as shares of the images' own side, not of a canvas that depends on the rest of a batch."""

        def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
            boxes = super().forward(image_list, feature_maps)
            first, last = boxes[0].split(2, dim=1)
            shares = (last - first) / boxes[0].new_tensor(image_list.tensors.shape[:1:-1])
            middle, half = (first + last) / 2, shares * size[0] / 2
            return [cat([middle - half, middle + half], dim=1)] * len(boxes)

    levels, scales = Levels(), options.scales
    check_levels("scales", scales, levels, "shares of the images' shorter side")
    last, before = scales[-1], scales[-2] if len(scales) > 1 else scales[-1]
    scales = [*scales, 2 * last - before]  # a level has boxes of its scale, and of one on to the next
    boxes = DefaultBoxes([options.aspect_ratios] * (len(scales) - 1), scales=scales, clip=False)
    heads = head(list(feature_channels(levels).values()), boxes.num_anchors_per_location(), classes + 1)
    model = SSD(levels, boxes, size, classes + 1, head=heads, _skip_resize=True)  # in training, images come resized
    model.transform.fixed_size, model.transform.size_divisible = None, 32  # keep their shape, as in other detectors
    return model
