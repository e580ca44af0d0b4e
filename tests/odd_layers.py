"""More blocks: layers of other kinds, and what code does with weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks import Net, between, block, layer, maps_of, tokens

# Layers of other kinds.


@block
def weights_computed_from_others() -> nn.Module:
    norm = nn.utils.parametrizations
    first, second = norm.weight_norm(nn.Conv2d(16, 20, 3)), norm.spectral_norm(nn.Conv2d(20, 24, 3))
    return between(lambda s, x: s.second(s.first(x)), 16, 24, first=first, second=second)


@block
def one_weight_for_two() -> nn.Module:
    first, second = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
    second.weight = first.weight
    return between(lambda s, x: s.second(s.first(x).relu()), 16, first=first, second=second)


@block
def one_layer_for_two_maps() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Any:
        return [s.head(s.left(x)), s.head(s.right(x))]

    parts = {"left": nn.Conv2d(12, 16, 1), "right": layer(12, 16, stride=2), "head": layer(16, 8)}
    return nn.Sequential(layer(3, 12, stride=2), Net(forward, **parts))


@block
def copies() -> nn.Module:
    unit = nn.Sequential(layer(16, 16), layer(16, 16))
    return between(lambda s, x: s.units(x), 16, units=nn.Sequential(*(copy.deepcopy(unit) for _ in range(2))))


@block
def lazy() -> nn.Module:
    return between(lambda s, x: s.read(x), 16, 24, read=nn.LazyConv2d(24, 3))


class Dynamic(nn.Module):
    """Convolves with a mixture of kernels that depends on the image."""

    def __init__(self, read: int, written: int) -> None:
        super().__init__()
        self.scores = nn.Linear(read, 3)
        self.kernels = nn.Parameter(torch.randn(3, written, read, 3, 3))

    def forward(self, maps: Tensor) -> Tensor:
        n, c, h, w = maps.shape
        mixed = self.scores(maps.mean((2, 3))).softmax(1) @ self.kernels.flatten(1)
        kernels = mixed.view(-1, *self.kernels.shape[2:])
        return F.conv2d(maps.reshape(1, n * c, h, w), kernels, padding=1, groups=n).view(n, -1, h, w)


@block
def mixture_of_kernels() -> nn.Module:
    return between(lambda s, x: s.mix(x), 16, 24, mix=Dynamic(16, 24))


@block
def looks_at_values() -> nn.Module:
    return between(lambda s, x: s.read(x) * (2 if x.mean().item() > 0 else 1), 16, 24, read=layer(16, 24))


class Kernels(nn.Module):
    """Convolves with kernels of its own that another module's map scales in every dimension."""

    def __init__(self, read: int, written: int) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(2, written, read, 3, 3))

    def forward(self, maps: Tensor, scale: Tensor) -> Tensor:
        n, c, h, w = maps.shape
        kernels = (self.kernels * scale.view(n, 2, 1, 1, 1, 1)).sum(1).view(-1, c, 3, 3)
        return F.conv2d(maps.reshape(1, n * c, h, w), kernels, padding=1, groups=n).view(n, -1, h, w)


@block
def kernels_of_two_maps() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.kernels(x, s.scale(x.mean((2, 3))).softmax(1))

    return between(forward, 16, 24, scale=nn.Linear(16, 2), kernels=Kernels(16, 24))


@block
def recurrent() -> nn.Module:
    """Read rows one after another, with products that a CPU has a kernel of its own for."""

    def forward(s: Any, x: Tensor) -> Tensor:
        return s.out(s.rows(x.mean(3).transpose(1, 2))[0])[:, :, :, None]

    return nn.Sequential(
        layer(3, 16, stride=4),
        Net(forward, rows=nn.LSTM(16, 20, batch_first=True), out=nn.Linear(20, 12)),
        layer(16, 8),
    )


@block
def a_bias_in_parts() -> nn.Module:
    """Attention whose keys have no bias."""

    def forward(s: Any, x: Tensor) -> Tensor:
        bias = torch.cat([s.query, torch.zeros_like(s.value), s.value])
        query, key, value = F.linear(tokens(x), s.inside.weight, bias).chunk(3, -1)
        return x + maps_of(s.out((query @ key.transpose(1, 2)).softmax(-1) @ value), x)

    parts = {"query": nn.Parameter(torch.zeros(24)), "value": nn.Parameter(torch.zeros(24))}
    return between(forward, 16, inside=nn.Linear(16, 72, bias=False), out=nn.Linear(24, 16), **parts)


@block
def one_score_beside_keys_and_values() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        score, key, value = s.inside(x).split((1, s.width, s.width), 1)
        return x + s.out(value.relu() * (key * score.flatten(2).softmax(-1).view_as(score)).sum((2, 3), keepdim=True))

    return between(forward, 16, inside=nn.Conv2d(16, 49, 1), out=nn.Conv2d(24, 16, 1), width=24)


@block
def scaled_weights() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        return F.conv2d(x, s.read.weight * s.mask, s.read.bias, padding=1)

    mask = nn.Parameter(torch.ones(1, 1, 3, 3), requires_grad=False)
    return between(forward, 16, 24, read=nn.Conv2d(16, 24, 3), mask=mask)


@block
def frequencies() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = torch.fft.rfft2(x, norm="ortho")
        n, _, h, w = y.shape
        y = s.mix(torch.stack((y.real, y.imag), 2).view(n, -1, h, w)).view(n, -1, 2, h, w)
        y = torch.view_as_complex(y.permute(0, 1, 3, 4, 2).contiguous())
        return x + torch.fft.irfft2(y, s=x.shape[2:], norm="ortho")

    return between(forward, 16, mix=layer(32, 32, 1))


@block
def gated_halves_and_every_second() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = F.glu(s.inside(x), 1)
        return s.out(torch.cat([y[:, ::2], y[:, 1::2]], 1))

    return between(forward, 16, inside=nn.Conv2d(16, 48, 1), out=nn.Conv2d(24, 16, 1))


@block
def scores_of_neighbors() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        scores = s.span(s.reduce(x)).view(n, s.groups, 9, h, w).unsqueeze(2)
        return (scores * F.unfold(x, 3, padding=1).view(n, s.groups, c // s.groups, 9, h, w)).sum(3).view(n, c, h, w)

    return between(forward, 16, reduce=layer(16, 8, 1), span=nn.Conv2d(8, 18, 1), groups=2)


@block
def mixed_positions() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = tokens(x)
        y = y + s.down(F.gelu(s.up(s.norm(y).transpose(1, 2)))).transpose(1, 2)
        return maps_of(y + s.mlp(y), x)

    mlp = nn.Sequential(nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 16))
    return between(forward, 16, up=nn.Linear(256, 32), down=nn.Linear(32, 256), norm=nn.LayerNorm(16), mlp=mlp)


@block
def images_as_depth() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.last(s.norm(s.first(x[:, None])).relu()).flatten(1, 2)

    return Net(
        forward, first=nn.Conv3d(1, 12, 3, (1, 4, 4), 1), norm=nn.BatchNorm3d(12), last=nn.Conv3d(12, 18, (3, 1, 1))
    )


@block
def encoder() -> nn.Module:
    """Two layers of the library's transformer."""
    one = nn.TransformerEncoderLayer(16, 2, 40, batch_first=True, norm_first=True)
    return between(
        lambda s, x: maps_of(s.encoder(tokens(x)), x),
        16,
        encoder=nn.TransformerEncoder(one, 2, enable_nested_tensor=False),
    )


@block
def even_widths_only() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        y: Tensor = s.read(x)
        assert y.shape[1] % 2 == 0, "channels come in pairs"
        return y

    return between(forward, 16, 24, read=layer(16, 24))


@block
def other_dimensions() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.line(s.up(x).flatten(2)).unflatten(2, (32, 32))

    return between(forward, 16, 20, up=nn.ConvTranspose2d(16, 12, 2, 2), line=nn.Conv1d(12, 20, 3, padding=1))
