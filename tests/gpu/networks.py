"""The networks that are observed: torchvision's, with random weights and norms that know their samples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection, resnet18, resnet50
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

DETECTORS = {
    "Faster R-CNN": detection.FasterRCNN,
    "Mask R-CNN": detection.MaskRCNN,
    "RetinaNet": detection.RetinaNet,
}
FEW_REGIONS = {"rpn_post_nms_top_n_test": 50, "box_detections_per_img": 5}


def canvas(small: bool) -> tuple[int, int]:
    """Return height and width of a batch of images."""
    return (96, 160) if small else (800, 1216)


def detector(name: str, device: torch.device, small: bool) -> nn.Module:
    """Return one of DETECTORS over ResNet-50-FPN, as torchvision builds it, in evaluation mode.

    It leaves images of `canvas(small)` at their size. If `small`, it is one over ResNet-18-FPN and sees few regions.
    """
    torch.manual_seed(0)
    height, width = canvas(small)
    options: dict[str, Any] = FEW_REGIONS if small else {}
    levels: dict[str, Any] = {}
    if name == "RetinaNet":
        options, levels = {}, {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
    backbone: Any = resnet_fpn_backbone(
        backbone_name="resnet18" if small else "resnet50", weights=None, norm_layer=nn.BatchNorm2d, **levels
    )
    model = DETECTORS[name](backbone, 91, min_size=height, max_size=width, **options).to(device)
    _settle(backbone.body, torch.randn(2, 3, height, width, device=device))
    return model.eval()


def classifier(device: torch.device, small: bool) -> nn.Module:
    """Return a ResNet-50, or ResNet-18 if `small`, in evaluation mode."""
    torch.manual_seed(0)
    model = (resnet18 if small else resnet50)(weights=None).to(device)
    _settle(model, torch.randn(2, 3, *canvas(small), device=device))
    return model.eval()


def _settle(body: nn.Module, images: Tensor) -> None:
    """Give norms random factors and offsets, and the statistics of random images; else each were the identity."""
    for norm in (module for module in body.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.3)
        norm.momentum = 1.0
    with torch.no_grad():
        body.train()(images)


def freeze_norms(model: nn.Module) -> None:
    """Turn batch norms into frozen ones, as networks with pre-trained weights have them."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(model, name, frozen.to(child.weight.device))
        else:
            freeze_norms(child)


def convolving(precision: str) -> AbstractContextManager[None]:
    """Let cuDNN convolve float32 in this precision, "ieee" or "tf32", which is its default."""
    return _computing(torch.backends.cudnn.conv, precision)  # type: ignore[attr-defined]


def float32_products(precision: str) -> AbstractContextManager[None]:
    """Let cuBLAS take float32 products in this precision, "ieee", which is its default, or "tf32"."""
    return _computing(torch.backends.cuda.matmul, precision)


@contextlib.contextmanager
def _computing(operations: Any, precision: str) -> Iterator[None]:
    before = operations.fp32_precision
    operations.fp32_precision = precision
    try:
        yield
    finally:
        operations.fp32_precision = before
