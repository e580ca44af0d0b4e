"""detectron2's detectors with a feature pyramid over any backbone, and its own ResNet as a backbone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from eigendet.errors import UserError, unknown
from eigendet.plugins import Options, backbone, detector

if TYPE_CHECKING:
    from torch import Tensor, nn

INSTALL = "pip install --no-build-isolation on a checkout of its repository, facebookresearch/detectron2"

# Configurations that detectron2 ships, by what they build; of the last, only the boxes.
NAMED = {
    "faster_rcnn": "Base-RCNN-FPN.yaml",
    "mask_rcnn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "retinanet": "Base-RetinaNet.yaml",
    "cascade_rcnn": "Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml",
}


class Detectron2(Options):
    """Options of detectron2's detectors."""

    model: str = Field(
        "faster_rcnn",
        description="faster_rcnn, mask_rcnn, retinanet, cascade_rcnn, or a yaml configuration of detectron2: a file, "
        "or one that it ships, by name. Its backbone, weights, frozen stages and training are left out",
    )
    fpn_channels: PositiveInt | None = Field(None, description="null, here and below: what the configuration says")
    head_channels: PositiveInt | None = Field(None, description="of the box head's linear layers")
    mask_channels: PositiveInt | None = Field(None, description="of each layer that looks at masks")
    anchor_sizes: list[PositiveInt] | None = Field(None, description="pixels, one for each level, finest first")
    proposals: PositiveInt | None = Field(None, description="regions of an image that the heads look at")
    box_samples: PositiveInt | None = Field(None, description="regions of an image in training")


@detector
def detectron2(backbone: "nn.Module", classes: int, size: tuple[int, int], *, options: Detectron2) -> "nn.Module":
    """Build detectron2's Faster, Mask or Cascade R-CNN or RetinaNet over an FPN, or one of its yaml configurations."""
    import torch
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage
    from torch import Tensor, nn
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    from eigendet.networks.parts import check_levels

    cfg = _configuration(options, classes)
    pyramid: Any = _pyramid(backbone, cfg)
    if options.anchor_sizes is not None:
        check_levels("anchor_sizes", options.anchor_sizes, pyramid)
    with _built_around(pyramid):
        inside: Any = build_model(cfg)
    averaging = hasattr(inside, "_ema_update")

    class Detector(nn.Module):
        """Resizes, normalizes and pads images as torchvision's detectors do, so that backbones see the same."""

        normalizer: Tensor

        def __init__(self) -> None:
            super().__init__()
            mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
            self.transform = GeneralizedRCNNTransform(
                *size, mean, std, size_divisible=pyramid.size_divisibility, _skip_resize=True
            )
            self.model: Any = inside
            # RetinaNet divides its losses by a running mean that its state dict does not hold, so that it would start
            # anew when training is resumed.
            self.register_buffer("normalizer", torch.tensor(100.0) if averaging else None)

        def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
            own = [(int(image.shape[1]), int(image.shape[2])) for image in images]
            batch, targets = self.transform(images, targets)
            crops = [image[:, :h, :w] for image, (h, w) in zip(batch.tensors, batch.image_sizes, strict=True)]
            inputs = [{"image": crop, "height": h, "width": w} for crop, (h, w) in zip(crops, own, strict=True)]
            if not self.training:
                return [_detections(entry["instances"]) for entry in self.model(inputs)]
            if averaging:
                self.model.loss_normalizer = float(self.normalizer)
            objects = [_objects(crop, target) for crop, target in zip(crops, targets or [], strict=True)]
            with EventStorage():
                losses = self.model([entry | own for entry, own in zip(inputs, objects, strict=True)])
            if averaging:
                self.normalizer.fill_(self.model.loss_normalizer)
            return losses

    model: Any = Detector()
    if cfg.MODEL.META_ARCHITECTURE != "RetinaNet":
        model.regions = {"model.roi_heads": cfg.MODEL.RPN.POST_NMS_TOPK_TEST}
        if cfg.MODEL.MASK_ON:
            model.regions["model.roi_heads.mask"] = cfg.TEST.DETECTIONS_PER_IMAGE
            model.learns_masks = True
    return model


def _objects(image: "Tensor", target: "dict[str, Tensor]") -> dict[str, Any]:
    """Return the objects of an image as detectron2 learns from them."""
    from detectron2.structures import BitMasks, Boxes, Instances

    instances: Any = Instances(image.shape[1:])
    instances.gt_boxes, instances.gt_classes = Boxes(target["boxes"]), target["labels"] - 1
    if "masks" in target:
        instances.gt_masks = BitMasks(target["masks"].bool())
    return {"instances": instances}


def _detections(instances: Any) -> "dict[str, Tensor]":
    """Return what detectron2 detected in an image as torchvision's detectors give it."""
    detections = {
        "boxes": instances.pred_boxes.tensor, "labels": instances.pred_classes + 1, "scores": instances.scores,
    }  # fmt: skip
    if instances.has("pred_masks"):
        detections["masks"] = instances.pred_masks[:, None].float()
    return detections


def _configuration(options: Detectron2, classes: int) -> Any:
    """Read detectron2's settings of the detector alone: images come normalized, and the backbone is given."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.merge_from_file(str(_file(options.model)))
    model = cfg.MODEL
    model.DEVICE, model.PIXEL_MEAN, model.PIXEL_STD = "cpu", [0.0] * 3, [1.0] * 3
    model.BACKBONE.NAME = "eigendet"
    model.ROI_HEADS.NUM_CLASSES = model.RETINANET.NUM_CLASSES = classes
    if options.model in NAMED:
        model.MASK_ON = options.model == "mask_rcnn"
    if not model.FPN.IN_FEATURES:
        raise UserError(
            f"model is '{options.model}', which has no FPN; expected a configuration with MODEL.FPN.IN_FEATURES."
        )
    if options.fpn_channels is not None:
        model.FPN.OUT_CHANNELS = options.fpn_channels
    if options.head_channels is not None:
        model.ROI_BOX_HEAD.FC_DIM = options.head_channels
    if options.mask_channels is not None:
        model.ROI_MASK_HEAD.CONV_DIM = options.mask_channels
    if options.anchor_sizes is not None:
        octave = [1, 2 ** (1 / 3), 2 ** (2 / 3)] if model.META_ARCHITECTURE == "RetinaNet" else [1]
        model.ANCHOR_GENERATOR.SIZES = [[side * step for step in octave] for side in options.anchor_sizes]
    if options.proposals is not None:
        model.RPN.PRE_NMS_TOPK_TRAIN = 2 * options.proposals
        model.RPN.PRE_NMS_TOPK_TEST = model.RPN.POST_NMS_TOPK_TRAIN = model.RPN.POST_NMS_TOPK_TEST = options.proposals
    if options.box_samples is not None:
        model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = options.box_samples
    return cfg


def _file(name: str) -> Path:
    """Find a configuration file by its path, or by its name among those that detectron2 ships."""
    import detectron2 as package

    shipped = Path(package.__file__).parent / "model_zoo/configs"
    for path in (Path(name), shipped / NAMED.get(name, name)):
        if path.is_file():
            return path
    names = [*NAMED, *(str(path.relative_to(shipped)) for path in shipped.rglob("*.yaml"))]
    raise UserError(unknown("configuration of detectron2", name, names))


def _pyramid(backbone: "nn.Module", cfg: Any) -> "nn.Module":
    """Build detectron2's FPN over the backbone's maps, of those levels that the configuration names."""
    import math

    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import FPN, Backbone
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
    from torch import Tensor

    from eigendet.networks.parts import feature_strides

    maps = feature_strides(backbone)
    if any(not math.log2(stride).is_integer() for stride, _ in maps.values()):
        raise UserError(f"detectron2's FPN needs maps at strides that are powers of two; these are {maps}.")
    names = {name: f"res{int(math.log2(stride))}" for name, (stride, _) in maps.items()}

    class Bottom(Backbone):
        """Gives the backbone's maps detectron2's names: res2 for stride 4, and so on."""

        def __init__(self) -> None:
            super().__init__()
            self.body = backbone

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {names[name]: value for name, value in self.body(images).items()}

        def output_shape(self) -> dict[str, ShapeSpec]:
            return {names[name]: ShapeSpec(channels=width, stride=stride) for name, (stride, width) in maps.items()}

    model = cfg.MODEL
    used = [name for name in names.values() if name in model.FPN.IN_FEATURES]
    if not used or used != list(names.values())[-len(used) :]:
        raise UserError(
            f"the configuration builds on {model.FPN.IN_FEATURES}; the backbone has {sorted(names.values())}."
        )
    last, width = used[-1], model.FPN.OUT_CHANNELS
    if model.META_ARCHITECTURE == "RetinaNet":
        top = LastLevelP6P7(Bottom().output_shape()[last].channels, width, last)
    else:
        top = LastLevelMaxPool()
        top.in_feature = last.replace("res", "p")
    pyramid = FPN(Bottom(), used, width, model.FPN.NORM, top, model.FPN.FUSE_TYPE)
    levels = list(pyramid.output_shape())
    model.RPN.IN_FEATURES = model.RETINANET.IN_FEATURES = levels
    model.ROI_HEADS.IN_FEATURES = levels[: len(used)]
    return pyramid


@contextmanager
def _built_around(pyramid: "nn.Module") -> Iterator[None]:
    """Let detectron2's builders take this pyramid where a configuration names the backbone `eigendet`."""
    from detectron2.modeling import BACKBONE_REGISTRY

    BACKBONE_REGISTRY._obj_map["eigendet"] = lambda cfg, shape: pyramid
    try:
        yield
    finally:
        del BACKBONE_REGISTRY._obj_map["eigendet"]


@backbone
def detectron2_resnet(
    *,
    depth: Literal[18, 34, 50, 101] = 50,
    norm: Literal["group", "batch", "sync_batch", "frozen_batch"] = "group",
    norm_groups: PositiveInt = 32,
    stride_in_1x1: bool = False,
) -> "nn.Module":
    """Build detectron2's ResNet, nothing of it frozen; feature maps of strides 4, 8, 16 and 32.

    It activates by functions, so it has no taps at `act`: choose `conv` and `block`. `stride_in_1x1` is for the
    bottlenecks of depth 50 and 101.
    """
    from detectron2.modeling.backbone.resnet import BasicStem, ResNet

    from eigendet.networks.norms import with_norm

    stride = {"stride_in_1x1": stride_in_1x1} if depth >= 50 else {}
    stages = ResNet.make_default_stages(depth, norm="BN", **stride)
    network = ResNet(BasicStem(norm="BN"), stages, out_features=["res2", "res3", "res4", "res5"])
    return with_norm(network, norm, norm_groups)
