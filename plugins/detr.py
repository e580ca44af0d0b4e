"""DETR: a transformer that gives a set of boxes, from transformers' parts, over any backbone."""

import math
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, PositiveInt, model_validator

from eigendet.plugins import Options, detector

if TYPE_CHECKING:
    from torch import Tensor, nn


class DETROptions(Options):
    """Options of DETR."""

    d_model: PositiveInt = Field(256, description="channels of the tokens; a multiple of 4 and of `heads`")
    layers: PositiveInt = Field(6, description="of the encoder, and as many of the decoder")
    heads: PositiveInt = Field(8, description="of each attention")
    ffn_dim: PositiveInt = Field(2048, description="channels between the two linear layers after each attention")
    queries: PositiveInt = Field(100, description="boxes that it gives for each image, so more than there are objects")

    @model_validator(mode="after")
    def _divided(self) -> Self:
        if self.d_model % math.lcm(4, self.heads):
            raise ValueError(
                f"d_model is {self.d_model}; expected a multiple of 4, into which positions divide it, and of heads, "
                f"{self.heads}"
            )
        return self


@detector
def detr(backbone: "nn.Module", classes: int, size: tuple[int, int], *, options: DETROptions) -> "nn.Module":
    """Build transformers' DETR over the backbone's coarsest map, from random weights, with losses at every layer."""
    import torch
    from torch import Tensor, nn
    from torchvision.models.detection.transform import GeneralizedRCNNTransform
    from torchvision.ops import box_convert, clip_boxes_to_image

    class DETR(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            normalization = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
            self.transform = GeneralizedRCNNTransform(*size, *normalization, _skip_resize=True)
            self.network: Any = _network(backbone, classes, options)

        def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
            batch, targets = self.transform(images, targets)
            mask = torch.zeros_like(batch.tensors[:, 0])
            for own, (height, width) in zip(mask, batch.image_sizes, strict=True):
                own[:height, :width] = 1
            sizes = batch.tensors.new_tensor([[width, height] * 2 for height, width in batch.image_sizes])
            if self.training:
                output = self.network(batch.tensors, mask, labels=_labels(targets or [], sizes))
                return _losses(output.loss_dict, self.network.config)
            output = self.network(batch.tensors, mask)
            objects, _ = output.logits.softmax(-1).split([classes, 1], dim=-1)
            scores, labels = objects.max(-1)
            boxes = box_convert(output.pred_boxes, "cxcywh", "xyxy") * sizes[:, None]
            detections = [
                {"boxes": clip_boxes_to_image(own, shape), "labels": label + 1, "scores": score}
                for own, shape, label, score in zip(boxes, batch.image_sizes, labels, scores, strict=True)
            ]
            return self.transform.postprocess(detections, batch.image_sizes, [image.shape[-2:] for image in images])

    return DETR()


def _network(backbone: "nn.Module", classes: int, options: DETROptions) -> "nn.Module":
    """Build the library's model with this backbone in place of its own, and with DETR's initial weights."""
    from torch import Tensor, nn
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    from eigendet.networks.parts import feature_channels

    class Features(nn.Module):
        """Takes the place of the library's own backbone, which freezes its norms and stages."""

        def __init__(self) -> None:
            super().__init__()
            self.body = backbone

        def forward(self, images: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
            *_, coarsest = self.body(images).values()
            return [(coarsest, nn.functional.interpolate(mask[None], coarsest.shape[-2:])[0].bool())]

    settings: dict[str, Any] = {
        "num_labels": classes,
        "num_queries": options.queries,
        "d_model": options.d_model,
        "auxiliary_loss": True,
        "attn_implementation": "eager",  # whose products are seen, and so counted
        "backbone_config": ResNetConfig(embedding_size=1, hidden_sizes=[4], depths=[1]),  # replaced below
    }
    for part in ("encoder", "decoder"):
        settings[f"{part}_layers"] = options.layers
        settings[f"{part}_attention_heads"] = options.heads
        settings[f"{part}_ffn_dim"] = options.ffn_dim
    network = DetrForObjectDetection(DetrConfig(**settings))
    # As DETR begins; the library, which has weights to load in mind, begins so small that all queries are one.
    nn.init.normal_(network.model.query_position_embeddings.weight)
    for weight in (*network.model.encoder.parameters(), *network.model.decoder.parameters()):
        if weight.dim() > 1:
            nn.init.xavier_uniform_(weight)
    *_, coarsest = feature_channels(backbone).values()
    network.model.backbone = Features()
    network.model.input_projection = nn.Conv2d(coarsest, options.d_model, 1)
    return network


def _labels(targets: "list[dict[str, Tensor]]", sizes: "Tensor") -> "list[dict[str, Tensor]]":
    """Return what DETR learns from: labels from 0, and boxes by their centers, as shares of their image."""
    from torchvision.ops import box_convert

    boxes = [box_convert(target["boxes"], "xyxy", "cxcywh") for target in targets]
    return [
        {"class_labels": target["labels"] - 1, "boxes": own / size}
        for target, own, size in zip(targets, boxes, sizes, strict=True)
    ]


def _losses(losses: "dict[str, Tensor]", config: Any) -> "dict[str, Tensor]":
    """Weight the three losses as DETR does, each summed over all layers of the decoder."""
    weights = {"loss_ce": 1, "loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient}
    return {
        name: weight * sum(value for key, value in losses.items() if key.startswith(name))
        for name, weight in weights.items()
    }
