"""Layers whose output is an affine map of each position, so that its moments follow from those of the input.

For y = W x + b at every position, Σ_y = W Σ_x Wᵀ and μ_y = W μ_x + b. In a bottleneck network the widest maps are 1x1
convolutions of maps four times narrower, and every normalization with fixed statistics is a factor a channel.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torchvision.ops import FrozenBatchNorm2d

from eigendet.moments.covariance import Covariance

# How many times larger than that of a float32 product the relative error of a map's moments may be: by the first pass,
# and by all of them.
AMPLIFICATION_LIMIT, AMPLIFICATION_BOUND = 8.0, 30.0
TOLERANCE = 1e-5  # of one position of a map; float32 products of 4096 channels are within 1e-6, bfloat16's are not
_norm = torch.linalg.vector_norm


@dataclass(frozen=True)
class Affine:
    """y = W x + b at every position, or every `stride`-th one.

    Attributes:
        weight: (C', C), or (C,): a factor for each channel.
        bias: (C',), or None for 0.
        stride: of the spatial dimensions; (): all positions.

    Examples:
        >>> doubled_and_one_more = Affine(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 1.0]))
        >>> doubled_and_one_more.apply(torch.tensor([[0.0, 3.0]])).tolist()
        [[1.0, 7.0]]
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...] = ()

    @property
    def is_matrix(self) -> bool:
        """Whether it mixes channels."""
        return self.weight.dim() == 2

    def apply(self, samples: Tensor) -> Tensor:
        """Map samples (N, C) to (N, C'), in float64."""
        weight, samples = self.weight.double(), samples.double()
        mapped = samples * weight if weight.dim() == 1 else samples @ weight.mT
        return mapped if self.bias is None else mapped + self.bias.double()

    def equals(self, other: Affine | None) -> bool:
        """Return whether the weights, the bias and the stride of two maps are the same."""
        if other is None or (self.bias is None) != (other.bias is None):
            return False
        same_bias = self.bias is None or other.bias is None or torch.equal(self.bias, other.bias)
        return self.stride == other.stride and same_bias and torch.equal(self.weight, other.weight)

    def agrees(self, source: Tensor, output: Tensor) -> bool:
        """Return whether an output (C', ...) is the map of a source (C, ...) in the middle, to float32's rounding.

        What changes a layer, its weights or a map without a trace, whatever it is, changes the middle, too.

        >>> images = torch.rand(2, 9, 9)
        >>> double = Affine(torch.tensor([2.0, 2.0]), None)
        >>> double.agrees(images, 2 * images), double.agrees(images, 3 * images)
        (True, False)
        """
        if source.shape[1:] != output.shape[1:] or source.dtype != output.dtype:
            return False
        if not output.numel():
            return True
        x, y = source, output
        for size in output.shape[1:]:
            x, y = x.select(1, size // 2), y.select(1, size // 2)
        weight, bias, gain = self._own if x.dtype == torch.float32 else (self.weight, self.bias, self._own[2])
        expected = torch.mv(weight, x) if self.is_matrix else weight * x
        if bias is not None:
            expected += bias
        return not float(torch.dist(expected, y)) > TOLERANCE * (gain * float(_norm(x)) + float(_norm(y)))

    @functools.cached_property
    def _own(self) -> tuple[Tensor, Tensor | None, float]:
        """Weight and bias in float32, and how much longer a sample may become."""
        gain = _norm(self.weight) if self.is_matrix else self.weight.abs().max()
        return self.weight.float(), None if self.bias is None else self.bias.float(), float(gain)


def affine_of(module: nn.Module) -> Affine | None:
    """Return the affine map that a module is, in copies of its weights, or None if it is another function.

    Subclasses, hooks, parametrizations and replaced methods may change what a layer computes, so only plain layers
    count, and of these only what is computed in full float32: see `is_exact`.

    >>> affine_of(nn.Conv2d(3, 4, kernel_size=1, stride=2)).stride
    (2, 2)
    >>> affine_of(nn.Conv2d(3, 4, kernel_size=3)) is None
    True
    """
    if not is_plain(module) or not is_exact(module):
        return None
    if any(tensor.is_inference() for tensor in _tensors(module)):
        return None  # changes of these cannot be seen
    kind = type(module)
    if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in _tensors(module)):
        return None  # quantized weights, say, whose products are their own
    if kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        if set(module.kernel_size) != {1} or module.groups != 1 or module.padding not in (0, "valid", "same", *_ZEROS):
            return None
        stride = () if set(module.stride) == {1} else tuple(module.stride)
        return Affine(module.weight.detach().flatten(1).clone(), _copy(module.bias), stride)
    if kind is nn.Linear:
        assert isinstance(module, nn.Linear)
        return Affine(module.weight.detach().clone(), _copy(module.bias))
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, FrozenBatchNorm2d):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            return None  # statistics of the batch
        return _fixed_normalization(module)
    return None


def state_of(module: nn.Module) -> tuple[object, ...]:
    """Return what changes when weights or statistics are replaced or written to, or the module goes to training.

    >>> layer = nn.Linear(3, 4)
    >>> before = state_of(layer)
    >>> with torch.no_grad():
    ...     scaled = layer.weight.mul_(2)
    >>> state_of(layer) == before
    False
    """
    tensors = ((id(tensor), tensor._version, tensor.untyped_storage()._cdata) for tensor in _tensors(module))
    return (module.training, is_plain(module), is_exact(module), *tensors)


def is_near(tensor: Tensor) -> bool:
    """Return whether to look at a tensor takes no waiting for a GPU."""
    return tensor.device.type == "cpu"


def is_still(affine: Affine, module: nn.Module) -> bool:
    """Return whether a layer seems to be the affine map that it was: of a matrix its first row, and the bias.

    What writes to `.data` leaves no trace, so weights themselves are looked at; on a GPU that would be to wait for it.
    """
    tensors = _tensors(module)
    if not all(map(is_near, (affine.weight, *tensors))):
        return True
    if affine.weight.dim() == 1:
        return affine.equals(affine_of(module))
    bias = affine.bias is None or torch.equal(tensors[1], affine.bias)
    return bias and torch.equal(tensors[0].detach().flatten(1)[0], affine.weight[0])


def is_plain(module: nn.Module) -> bool:
    """Return whether a module is a layer of torch that computes what its class did when torch was imported.

    >>> layer = nn.Linear(3, 4)
    >>> plain = layer.forward
    >>> is_plain(layer)
    True
    >>> layer.forward = lambda samples: plain(samples).sin()
    >>> is_plain(layer)
    False
    """
    if module._forward_hooks or module._forward_pre_hooks or is_parametrized(module):
        return False
    return _methods(type(module)) == _PLAIN.get(type(module)) and not _METHODS & vars(module).keys()


def is_exact(module: nn.Module) -> bool:
    """Return whether a layer's products are float32's, as the process is set, and not those of TF32 or bfloat16.

    cuDNN convolves in TF32 unless told otherwise; moments that were computed from the input's would be 3e-4 away from
    those of what the layer gave.

    >>> before = torch.get_float32_matmul_precision()
    >>> is_exact(nn.Linear(3, 4))
    True
    >>> torch.set_float32_matmul_precision("medium")
    >>> is_exact(nn.Linear(3, 4)), is_exact(nn.BatchNorm2d(3))
    (False, True)
    >>> torch.set_float32_matmul_precision(before)
    """
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return False
    if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or module.weight.dtype == torch.float64:
        return True
    device, is_linear = module.weight.device.type, isinstance(module, nn.Linear)
    if device == "cuda":
        backend: Any = torch.backends.cuda.matmul if is_linear else torch.backends.cudnn.conv  # type: ignore[attr-defined]
    elif device == "cpu":
        backend = torch.backends.mkldnn.matmul if is_linear else torch.backends.mkldnn.conv  # type: ignore[attr-defined]
    else:
        return device == "meta"
    return backend.fp32_precision in ("none", "ieee")


def strided(feature_map: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Return the positions of a map (N, C, ...) that a 1x1 convolution with this stride reads.

    >>> strided(torch.zeros(1, 3, 8, 8), (2, 4)).shape
    torch.Size([1, 3, 4, 2])
    """
    for dim, step in enumerate(stride, start=feature_map.dim() - len(stride)):
        feature_map = feature_map.movedim(dim, 0)[::step].movedim(0, dim)
    return feature_map


def amplification(source: Covariance, affine: Affine) -> float:
    """Return how much the relative error of Σ_y = W Σ_x Wᵀ may exceed that of a float32 product, for a matrix W.

    Errors of Σ_x without direction, ε ‖Σ_x‖, pass W with its mean gain ‖W‖² / C, whereas the signal has the gain
    ‖W Σ_x Wᵀ‖ / ‖Σ_x‖, Frobenius norms throughout. The ratio is large where W suppresses what varies most. The layer
    itself rounds, too, see `rounding`. Where nothing has varied yet, in a black image, nothing is known: infinite.

    >>> source = Covariance.from_moments(9, torch.zeros(2), torch.diag(torch.tensor([1e6, 1.0])))
    >>> round(amplification(source, Affine(torch.tensor([[1.0, 0.0]]), None)), 1)
    0.7
    >>> round(amplification(source, Affine(torch.tensor([[0.0, 1.0]]), None)))
    500000
    """
    weight, scatter = affine.weight.double(), source.scatter
    if not weight.any():
        return 1.0
    narrow = len(weight) < weight.shape[1]  # the smaller of two products with the same norm and trace
    passed = weight @ scatter @ weight.mT if narrow else (weight.mT @ weight) @ scatter
    signal = float((passed * passed.mT).sum().clamp(min=0).sqrt())
    gain = float(weight.square().sum() / weight.shape[1])
    means = float(source.mean.square().sum()) if source.count else 0.0
    size = gain * (float(scatter.trace()) / max(source.count, 1) + means)
    own = rounding(size, float(passed.trace()) / max(source.count, 1), affine.bias)
    return max(own, gain * float(scatter.norm()) / signal if signal > 0 else math.inf)


def amplification_by(source: Tensor, affine: Affine) -> float:
    """Return the same for a factor for each channel, which amplifies nothing, but rounds; by a source (C, ...).

    >>> images = 1000 + torch.tensor([[-1.0, 1.0]])
    >>> round(amplification_by(images, Affine(torch.tensor([5.0]), None)))
    1000
    """
    factor = affine.weight.double().square()
    if not factor.any():
        return 1.0
    variance, mean = torch.var_mean(source, tuple(range(1, source.dim())), correction=0)
    varying = float((factor * variance).sum())
    return rounding(varying + float((factor * mean.double().square()).sum()), varying, affine.bias)


def rounding(size: float, variance: float, bias: Tensor | None) -> float:
    """Return how large what a layer adds up is for how much the sum varies, as a root of mean squares.

    A layer rounds to ε of what it adds up, means and all. What it gives then differs from W x + b by so many ε for its
    standard deviation, and its moments from those of W x + b.

    >>> round(rounding(size=4.0, variance=1.0, bias=None))
    2
    """
    added = 0.0 if bias is None else float(bias.double().square().sum())
    return math.sqrt((size + added) / variance) if variance > 0 else math.inf


def _fixed_normalization(module: Any) -> Affine:
    factor = (module.running_var.double() + module.eps).rsqrt()
    factor = factor if module.weight is None else factor * module.weight.detach().double()
    offset = -module.running_mean.double() * factor
    return Affine(factor, offset if module.bias is None else offset + module.bias.detach().double())


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _methods(kind: type[nn.Module]) -> list[object]:
    return [getattr(kind, name, None) for name in ("forward", "_conv_forward")]


_METHODS = {"forward", "_conv_forward", "_call_impl"}  # that an instance may have of its own
_PLAIN = {
    kind: _methods(kind)
    for kind in (
        nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
        FrozenBatchNorm2d,
    )
}  # fmt: skip
_ZEROS = [(0,) * dimensions for dimensions in (1, 2, 3)]


def _copy(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().clone()
