"""Residual networks of torchvision."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt

from eigendet.plugins import backbone

if TYPE_CHECKING:
    from torch import nn


@backbone
def resnet(
    *,
    depth: Annotated[Literal[18, 34, 50, 101], Field(description="number of its layers")] = 50,
    norm: Annotated[
        Literal["group", "batch", "sync_batch", "frozen_batch"], Field(description="after every convolution")
    ] = "group",
    norm_groups: Annotated[PositiveInt, Field(description="of each GroupNorm; it divides every width")] = 32,
) -> "nn.Module":
    """Build torchvision's ResNet-18, 34, 50 or 101; feature maps of strides 4, 8, 16 and 32.

    Its state dict has torchvision's names, so that published weights fit.
    """
    from torch import Tensor
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    from eigendet.networks.norms import with_norm

    block, blocks = {
        18: (BasicBlock, [2, 2, 2, 2]),
        34: (BasicBlock, [3, 4, 6, 3]),
        50: (Bottleneck, [3, 4, 6, 3]),
        101: (Bottleneck, [3, 4, 23, 3]),
    }[depth]

    class Features(ResNet):
        """ResNet without its classifier."""

        def __init__(self) -> None:
            super().__init__(block, blocks, num_classes=1)
            del self.avgpool, self.fc

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
            features = {}
            for name in ("layer1", "layer2", "layer3", "layer4"):
                x = features[name] = getattr(self, name)(x)
            return features

    return with_norm(Features(), norm, norm_groups)
