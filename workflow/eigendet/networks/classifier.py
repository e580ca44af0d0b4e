"""The classifier as which a backbone is pre-trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eigendet.networks import parts


class Classifier(nn.Module):
    """Global average pooling of the coarsest feature map, then one linear layer. Images float in [0, 1]."""

    backbone_path = "backbone"  # of a detector, the path at which its plugin put the backbone

    def __init__(self, backbone: nn.Module, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        *_, channels = parts.feature_channels(backbone).values()
        self.head = nn.Linear(channels, classes)
        # The same normalization as torchvision's detectors.
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, 3, H, W)."""
        *_, coarsest = self.backbone((images - self.mean) / self.std).values()
        logits: Tensor = self.head(coarsest.mean((2, 3)))
        return logits
