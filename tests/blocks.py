"""Small networks of today's building blocks, each a function of the maps of one stem or two."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS: dict[str, Callable[[], nn.Module]] = {}


def block(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Note what builds a network, under its name."""
    BLOCKS[build.__name__] = build
    return build


class Net(nn.Module):
    """Layers and numbers by name, and what is computed with them."""

    def __init__(self, function: Callable[[Any, Tensor], Any], /, **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, maps: Tensor) -> Any:
        return self.function(self, maps)


def layer(read: int, written: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    convolution = nn.Conv2d(read, written, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(written), nn.ReLU())


def between(function: Callable[[Any, Tensor], Any], width: int, out: int = 0, /, **parts: Any) -> nn.Module:
    """Put a block between two layers."""
    return nn.Sequential(layer(3, width, stride=4), Net(function, **parts), Last(out or width))


class Last(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = layer(width, 20, kernel=1)

    def forward(self, maps: Tensor) -> dict[str, Tensor]:
        return {"maps": self.layer(maps)}


# Split and concatenate.


@block
def chunks() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        first, second = s.split(x).chunk(2, 1)
        return torch.cat([first, second, s.more(second)], 1)

    return between(forward, 16, 48, split=layer(16, 32, 1), more=layer(16, 16))


@block
def split_at_a_number() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        first, second = s.split(x).split((s.hidden, s.hidden), 1)
        return torch.cat([first, second, s.more(second)], 1)

    return between(forward, 16, 36, split=layer(16, 24, 1), more=layer(12, 12), hidden=12)


@block
def cascade_of_parts() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        parts = torch.split(s.reduce(x), s.width, 1)
        done = [parts[0]]
        for convolution, part in zip(s.each, parts[1:], strict=True):
            done.append(convolution(part + done[-1]))
        return x + s.expand(torch.cat(done, 1))

    each = nn.ModuleList(layer(6, 6) for _ in range(3))
    return between(forward, 20, reduce=layer(20, 24, 1), each=each, expand=layer(24, 20, 1), width=6)


@block
def ghost() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        primary = s.primary(x)
        return torch.cat([primary, s.cheap(primary)], 1)[:, : s.wanted]

    half = math.ceil(30 / 2)
    return between(forward, 16, 30, primary=layer(16, half, 1), cheap=layer(half, half, groups=half), wanted=30)


@block
def two_paths() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.both(x)
        return torch.cat([x + y[:, : s.added], y[:, s.added :]], 1)

    return between(forward, 16, 24, both=layer(16, 24), added=16)


@block
def partial_convolution() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        changed, kept = torch.split(x, s.sizes, dim=1)
        return torch.cat([s.spatial(changed), kept], 1)

    return between(forward, 32, spatial=nn.Conv2d(8, 8, 3, padding=1), sizes=[8, 24])


@block
def dense() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        for convolution in s.each:
            x = torch.cat([x, convolution(x)], 1)
        return x

    return between(forward, 12, 36, each=nn.ModuleList(layer(12 + 8 * n, 8) for n in range(3)))


@block
def padded_shortcut() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)) + s.path(x)

    return between(forward, 16, 24, path=layer(16, 24, stride=2))


@block
def coordinates() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        rows = torch.linspace(-1, 1, x.shape[2], device=x.device)[:, None].expand(len(x), 1, *x.shape[2:])
        return s.read(torch.cat([x, rows], 1))

    return between(forward, 16, 24, read=layer(17, 24))


# Attention of channels and of places.


@block
def attention_of_channels_and_places() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        x = x * s.excite(x.mean((2, 3))).sigmoid()[:, :, None, None]
        seen = torch.cat([x.max(1, keepdim=True)[0], x.mean(1, keepdim=True)], 1)
        return x * s.places(seen).sigmoid()

    excite = nn.Sequential(nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 24))
    return between(forward, 24, excite=excite, places=nn.Conv2d(2, 1, 7, padding=3))


@block
def convolution_along_channels() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        weights = s.along(x.mean((2, 3))[:, None])[:, 0]
        return x * weights.sigmoid()[:, :, None, None]

    return between(forward, 24, along=nn.Conv1d(1, 1, 3, padding=1, bias=False))


@block
def selected_kernels() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        maps = torch.stack([path(x) for path in s.paths], 1)
        hidden = s.reduce(maps.sum(1).mean((2, 3))).relu()
        weights = torch.stack([score(hidden) for score in s.scores], 1).softmax(1)
        return (maps * weights[..., None, None]).sum(1)

    scores = nn.ModuleList(nn.Linear(8, 20) for _ in range(2))
    return between(
        forward, 16, 20, paths=nn.ModuleList([layer(16, 20), layer(16, 20, 5)]), reduce=nn.Linear(20, 8), scores=scores
    )


@block
def response_normalization_over_frames() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        x = s.norm(s.second(s.first(torch.stack([x, x.flip(3)], 2)))).mean(2)
        response = x.norm(dim=(2, 3), keepdim=True)
        return x + x * s.gain * response / (response.mean(1, keepdim=True) + 1e-6)

    first, second = nn.Conv3d(3, 12, (1, 3, 3), (1, 2, 2), (0, 1, 1)), nn.Conv3d(12, 16, 3, padding=1)
    gain = nn.Parameter(torch.zeros(1, 16, 1, 1))
    return nn.Sequential(Net(forward, first=first, second=second, norm=nn.BatchNorm3d(16), gain=gain), Last(16))


@block
def gray() -> nn.Module:
    """Forget the channels of the image at once."""
    return nn.Sequential(
        Net(lambda s, x: s.read(x.mean(1, keepdim=True).repeat(1, 2, 1, 1)), read=layer(2, 16)), Last(16)
    )


# Attention of tokens.


def tokens(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


def maps_of(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.transpose(1, 2).reshape(len(like), -1, *like.shape[2:])


@block
def heads_by_the_library() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.norm(tokens(x))
        y = y + s.attention(y, y, y, need_weights=False)[0]
        return maps_of(y + s.mlp(y), x)

    mlp = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24))
    return between(
        forward, 24, attention=nn.MultiheadAttention(24, 4, batch_first=True), norm=nn.LayerNorm(24), mlp=mlp
    )


@block
def fused_attention() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        parts = (part.view(len(x), part.shape[1], 4, -1).transpose(1, 2) for part in s.inside(tokens(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        return x + maps_of(s.out(y), x)

    return between(forward, 32, inside=nn.Linear(32, 96), out=nn.Linear(32, 32))


@block
def attention_with_a_width_for_each_head() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        query, key, value = s.inside(tokens(x)).reshape(len(x), -1, 3, s.heads, s.width).permute(2, 0, 3, 1, 4)
        y = (query @ key.transpose(-2, -1)).softmax(-1) @ value
        return x + maps_of(s.out(y.transpose(1, 2).flatten(2)), x)

    return between(forward, 32, inside=nn.Linear(32, 72), out=nn.Linear(24, 32), heads=2, width=12)


@block
def attention_in_the_shape_that_it_read() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = tokens(x)
        n, count, width = y.shape
        query, key, value = s.inside(y).reshape(n, count, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        y = (query @ key.transpose(-2, -1)).softmax(-1) @ value
        return x + maps_of(s.out(y.transpose(1, 2).reshape(n, count, width)), x)

    return between(forward, 32, inside=nn.Linear(32, 96), out=nn.Linear(32, 32))


@block
def windows() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        inside = s.inside(x).reshape(n, 3, 4, -1, h * w)
        query, key, value = inside[:, 0], inside[:, 1], inside[:, 2]
        y = value @ (query.transpose(-2, -1) @ key).softmax(-1).transpose(-2, -1)
        return x + s.out(y.reshape(n, -1, h, w))

    return between(forward, 32, inside=nn.Conv2d(32, 96, 1), out=nn.Conv2d(32, 32, 1))


@block
def pooling_by_attention() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = tokens(x)
        weights = (s.query @ s.key(y).transpose(1, 2)).softmax(-1)
        return s.score((weights @ s.value(y))[:, 0])

    parts = {"key": nn.Linear(24, 16), "value": nn.Linear(24, 20), "score": nn.Linear(20, 10)}
    return nn.Sequential(layer(3, 24, stride=4), Net(forward, query=nn.Parameter(torch.zeros(1, 1, 16)), **parts))


@block
def sums_of_products() -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        query, key, value = (read(x).flatten(2) for read in s.reads)
        weights = torch.einsum("ncp,ncq->npq", query, key).softmax(-1)
        return x + s.out(torch.einsum("npq,ncq->ncp", weights, value).view(len(x), -1, *x.shape[2:]))

    return between(forward, 20, reads=nn.ModuleList(nn.Conv2d(20, 12, 1) for _ in range(3)), out=nn.Conv2d(12, 20, 1))
