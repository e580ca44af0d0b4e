"""Small networks of shapes, normalizations, parameters and layers of other kinds; noted in `blocks.BLOCKS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from tests.blocks import Net, between, block, layer

# Other shapes.


@block
def depth_to_space_by_view() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)

    return between(forward, 32, 8)


@block
def shuffled_by_view() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return s.read(x.view(n, s.groups, c // s.groups, h, w).transpose(1, 2).reshape(n, c, h, w))

    return between(forward, 24, read=layer(24, 24, groups=4), groups=4)


@block
def neighborhoods() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return s.read(F.unfold(x.roll(1, 2), 3, padding=1).view(n, c * 9, h, w))

    return between(forward, 12, 16, read=layer(108, 16, 1))


@block
def upsampling_by_content() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        kernels = s.kernels(x).softmax(1)[:, None]
        return (F.unfold(x, 3, padding=1).view(n, c, 9, h, w) * kernels).sum(2)

    return between(forward, 16, kernels=nn.Conv2d(16, 9, 3, padding=1))


@block
def values_at_points() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        return F.grid_sample(x, s.points(x).permute(0, 2, 3, 1).tanh(), align_corners=False)

    return between(forward, 16, points=nn.Conv2d(16, 2, 3, padding=1))


@block
def deformed() -> nn.Module:
    parts = {"offsets": nn.Conv2d(16, 18, 3, padding=1), "deform": DeformConv2d(16, 24, 3, padding=1)}
    return between(lambda s, x: s.deform(x, s.offsets(x)), 16, 24, **parts)


@block
def boxes() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        return (s.out(s.hidden(x)) * s.scale).permute(0, 2, 3, 1).reshape(len(x), -1, 4)

    parts = {"hidden": layer(16, 24), "out": nn.Conv2d(24, 12, 3, padding=1), "scale": nn.Parameter(torch.ones(1))}
    return nn.Sequential(layer(3, 16, stride=4), Net(forward, **parts))


@block
def scores_of_pixels() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        return F.interpolate(s.classes(s.down(x)), size=x.shape[2:], mode="bilinear")

    return Net(forward, down=nn.Sequential(layer(3, 16, stride=2), layer(16, 24)), classes=nn.Conv2d(24, 5, 1))


# Normalization.


@block
def groups_over_a_concatenation() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.read(s.norm(torch.cat([s.left(x), s.right(x)], 1)))

    parts = {"left": nn.Conv2d(16, 20, 1), "right": nn.Conv2d(16, 12, 1), "norm": nn.GroupNorm(8, 32)}
    return between(forward, 16, 24, read=layer(32, 24, groups=4), **parts)


@block
def instances() -> nn.Module:
    """Normalize every map of every image, with a head that only training runs beside it."""

    def forward(s: Any, x: Tensor) -> Any:
        x = s.plain(s.second(s.affine(s.first(x)).relu()))
        return [x, s.auxiliary(x)] if s.training else [x]

    first, second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 24, 3)
    norms = {"affine": nn.InstanceNorm2d(16, affine=True), "plain": nn.InstanceNorm2d(24)}
    return Net(forward, first=first, second=second, auxiliary=layer(24, 8), **norms)


@block
def root_mean_square() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.read(s.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    return between(forward, 16, 24, norm=nn.RMSNorm(16), read=nn.Linear(16, 24))


@block
def without_parameters() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.plain(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    return between(forward, 16, plain=nn.LayerNorm(16, elementwise_affine=False))


class Own(nn.Module):
    """Holds the parameters of a normalization under names of its own, and the shape of what it normalizes."""

    def __init__(self, width: int, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.gamma, self.beta, self.shape = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width)), (width,)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.function = function

    def forward(self, maps: Tensor) -> Tensor:
        return self.function(self, maps)


@block
def normalizations_of_its_own() -> nn.Module:
    def tokens_last(s: Any, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), s.shape, s.gamma, s.beta).permute(0, 3, 1, 2)

    norms = {
        "batch": Own(16, lambda s, x: F.batch_norm(x, s.mean, s.variance, s.gamma, s.beta, s.training)),
        "group": Own(20, lambda s, x: F.group_norm(x, 4, s.gamma, s.beta)),
        "instance": Own(24, lambda s, x: F.instance_norm(x, None, None, s.gamma, s.beta)),
        "last": Own(12, tokens_last),
    }

    def forward(s: Any, x: Tensor) -> Tensor:
        return s.last(s.third(s.instance(s.second(s.group(s.first(s.batch(x)))))))

    layers = {"first": nn.Conv2d(16, 20, 1), "second": nn.Conv2d(20, 24, 1), "third": nn.Conv2d(24, 12, 1)}
    return between(forward, 16, 12, **norms, **layers)


# Parameters.


class Gain(nn.Conv2d):
    """Has a gain of one number, and one for each channel that it reads."""

    def __init__(self, read: int, written: int, kernel: int) -> None:
        super().__init__(read, written, kernel)
        self.gain, self.smoothing = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(self.in_channels, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps * self.smoothing) * self.gain


class Hidden(nn.Conv2d):
    """Has a parameter that its forward pass does not use, one for each pair of channels."""

    def __init__(self, read: int, written: int) -> None:
        super().__init__(read, written, 3)
        self.pairs = nn.Parameter(torch.ones(self.out_channels // 2))


@block
def gains() -> nn.Module:
    return between(lambda s, x: s.second(s.first(x).relu()), 16, 24, first=Gain(16, 20, 3), second=Gain(20, 24, 1))


@block
def parameters_of_pairs() -> nn.Module:
    return between(lambda s, x: s.read(x), 16, 24, read=Hidden(16, 24))


@block
def positions() -> nn.Module:
    return between(lambda s, x: x + s.embedding, 16, embedding=nn.Parameter(torch.randn(1, 16, 16, 16)))


@block
def a_gain_in_a_shape() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        return x * s.gain.view(s.shape) + x.new_zeros(len(x), 1, 16, 16)

    return between(forward, 18, gain=nn.Parameter(torch.ones(18)), shape=(18, 1, 1))


@block
def embeddings_through_a_layer() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        return x + s.project(torch.linspace(0, 1, 6, device=x.device).repeat(1, 1)).view(1, -1, 1, 1)

    return between(forward, 16, project=nn.Linear(6, 16))


@block
def weighted_sum() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        weights = s.weights.relu() / s.weights.relu().sum()
        return weights[0] * x + weights[1] * s.path(x)

    return between(forward, 16, path=layer(16, 16), weights=nn.Parameter(torch.ones(2)))
