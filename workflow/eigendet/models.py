"""Networks from their definitions, and weights from wherever they come.

A definition is a plain value that says all it takes to build a network: plugins, options, widths, classes. It stands
beside the weights in every snapshot, so that a snapshot alone can be evaluated or dumped.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from eigendet import channels, plugins
from eigendet.errors import UserError, unknown
from eigendet.files import read_json
from eigendet.groups import ChannelError, Channels, Widths, by_group, check_widths, scaled
from eigendet.sections import BackboneChoice, PluginChoice

WIDTH_MULTIPLE = 8  # of a backbone's width factor


@dataclass(frozen=True)
class Definition:
    """A classifier (`detector` is None) or a detector. `size`: (crop, crop), or (shorter, longest side) in pixels."""

    backbone: dict[str, Any]  # a BackboneChoice, in plain values
    classes: list[str]
    size: tuple[int, int]
    detector: dict[str, Any] | None = None  # a PluginChoice, in plain values
    widths: Widths | None = None  # None: the reference's
    heads: bool = False  # whether widths are of the whole detector, or of its backbone

    def plain(self) -> dict[str, Any]:
        return asdict(self) | {"size": list(self.size)}

    @classmethod
    def of(cls, value: dict[str, Any]) -> Definition:
        return cls(**value | {"size": tuple(value["size"])})

    def build(self) -> nn.Module:
        """The network with new weights, from torch's global random state."""
        if self.heads and self.widths is not None:
            traced, _ = self.reference()
            return channels.rebuild(partial(self._at_full_width, self.size), traced, self.widths)
        backbone = build_backbone(BackboneChoice(**self.backbone), self.widths)
        if self.detector is None:
            return Classifier(backbone, len(self.classes))
        return self._detector(backbone, self.size)

    def reference(self, side: int = 64) -> tuple[Channels, Widths]:
        """Channel groups of the backbone, or of the whole detector, and the reference's width of each.

        Groups of the backbone have the same names in both. Costs are for one image of side x side pixels.
        """
        backbone, usual = reference(BackboneChoice(**self.backbone), (side, side))
        if not self.heads:
            return backbone, usual
        traced = _traced_detector(json.dumps(self.plain() | {"widths": None}, sort_keys=True), side)
        return traced, traced.widths | {group: usual[group] for group in traced.widths if group in usual}

    def identity(self) -> dict[str, Any]:
        """What makes the groups what they are: plugin and options of the backbone, perhaps of the detector."""
        backbone = {key: value for key, value in self.backbone.items() if key != "pretrained"}
        return {"backbone": backbone} | ({"detector": self.detector} if self.heads else {})

    def _detector(self, backbone: nn.Module, size: tuple[int, int]) -> nn.Module:
        build = plugins.bind("detector", PluginChoice(**self.detector or {}))
        detector: nn.Module = build(backbone, len(self.classes), size)
        return detector

    def _at_full_width(self, size: tuple[int, int]) -> nn.Module:
        """The detector over a backbone without its width factor, as it is traced."""
        return self._detector(plugins.bind("backbone", BackboneChoice(**self.backbone))(), size)


class Classifier(nn.Module):
    """Global average pooling of the coarsest feature map, then one linear layer. Images float in [0, 1]."""

    def __init__(self, backbone: nn.Module, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        *_, channels = feature_channels(backbone).values()
        self.head = nn.Linear(channels, classes)
        # The same normalisation as torchvision's detectors.
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        *_, coarsest = self.backbone((images - self.mean) / self.std).values()
        logits: Tensor = self.head(coarsest.mean((2, 3)))
        return logits


class PyramidBackbone(nn.Module):
    """A backbone with a feature pyramid on its maps, as torchvision's detectors take it.

    Args:
        channels: of every level of the pyramid.
        extra: makes the levels beyond the backbone's maps.
        skip: how many of the finest maps the pyramid leaves out.
    """

    def __init__(self, backbone: nn.Module, channels: int, extra: ExtraFPNBlock, skip: int = 0) -> None:
        super().__init__()
        self.body = backbone
        sizes = feature_channels(backbone)
        self.maps = list(sizes)[skip:]  # names, finest first
        self.fpn = FeaturePyramidNetwork([sizes[name] for name in self.maps], channels, extra)
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.body(images)
        pyramid: dict[str, Tensor] = self.fpn({name: features[name] for name in self.maps})
        return pyramid


def reference(choice: BackboneChoice, size: tuple[int, int] = (64, 64)) -> tuple[Channels, Widths]:
    """Channel groups of a backbone with costs at `size`, and the reference's width of each, width factor included."""
    traced = _traced_backbone(choice.model_dump_json(), plugins.find("backbone", choice.plugin).origin, size)
    if choice.width == 1:
        return traced, traced.widths
    return traced, scaled(traced.widths, choice.width, traced.rounded_to(WIDTH_MULTIPLE))


@lru_cache
def _traced_backbone(choice: str, origin: str, size: tuple[int, int]) -> Channels:
    return channels.trace(plugins.bind("backbone", BackboneChoice.model_validate_json(choice)), size)


@lru_cache
def _traced_detector(definition: str, side: int) -> Channels:
    """Channel groups of a detector; those of its backbone are named as in the backbone alone."""
    build = partial(Definition.of(json.loads(definition))._at_full_width, (side, side))
    with torch.random.fork_rng(devices=[]):
        model = build()
    inside = backbone_of(model)
    prefix = next(path for path, module in model.named_modules() if module is inside) + "."
    return channels.trace(build, (side, side), getattr(model, "regions", {})).renamed(prefix)


def build_backbone(choice: BackboneChoice, changed: Widths | None = None) -> nn.Module:
    """The backbone with the reference's widths, or with others."""
    build = plugins.bind("backbone", choice)
    if choice.width == 1 and changed is None:
        plain: nn.Module = build()
        return plain
    traced, usual = reference(choice)
    return channels.rebuild(build, traced, usual if changed is None else changed)


def feature_channels(backbone: nn.Module) -> dict[str, int]:
    """Channels of each feature map by name, finest first, read off a small image."""
    return {name: feature_map.shape[1] for name, feature_map in _features_of_blank(backbone).items()}


def _features_of_blank(module: nn.Module) -> dict[str, Tensor]:
    """Feature maps of a black image of 64x64 pixels, with the module's state as it was."""
    mode = module.training
    with torch.no_grad():
        features: dict[str, Tensor] = module.eval()(torch.zeros(1, 3, 64, 64))
    module.train(mode)
    return features


def check_levels(option: str, values: list[int], pyramid: PyramidBackbone) -> None:
    """Raise UserError unless a detector's option has one value for each level of its pyramid."""
    levels = len(_features_of_blank(pyramid))
    if len(values) != levels:
        raise UserError(
            f"{option} is {values}; this pyramid has {levels} levels, so expected {levels} sizes in pixels."
        )


def backbone_of(model: nn.Module) -> nn.Module:
    """The backbone inside a classifier or a detector of this library: the module that a backbone plugin built."""
    inside: Any = model.backbone
    found: nn.Module = inside.body if isinstance(inside, PyramidBackbone) else inside
    return found


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def read_weights(source: str) -> dict[str, Tensor]:
    """A state dict from a file, or torchvision's published one for 'torchvision:NAME' (downloaded once, by torch).

    Raises:
        UserError: no such file or name, or no state dict in it.
    """
    kind, _, name = source.partition(":")
    if kind == "torchvision":
        return _published(name)
    content = _load_plain(Path(source), "a state dict")
    for wrapper in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{source}: holds no state dict; expected tensors by the names of the backbone's parameters.")
    return content


def load_backbone(backbone: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load weights whose names may begin with `backbone.` or `module.`; further entries, a classifier's, are ignored.

    Raises:
        UserError: an entry is missing or has another shape; the message names it.
    """
    wanted = backbone.state_dict()
    found = {_stripped(name): value for name, value in weights.items()}
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            found.setdefault(name, tensor)
        elif name not in found:
            raise UserError(
                f"{source}: no '{name}', which the backbone needs; expected weights of the same network, "
                "width and normalisation."
            )
        elif found[name].shape != tensor.shape:
            raise UserError(
                f"{source}: '{name}' is {tuple(found[name].shape)}; the backbone has {tuple(tensor.shape)}."
            )
    extra = [name for name in found if name.endswith(("running_mean", "running_var")) and name not in wanted]
    if extra:
        raise UserError(f"{source}: has '{extra[0]}', so its backbone was trained with batch norm; this one has none.")
    backbone.load_state_dict({name: found[name] for name in wanted})


def read_widths(path: Path, definition: Definition) -> Widths:
    """The widths of a widths file for a definition: {"widths": {group: channels, …}, …}.

    Groups may be named after any layer that writes them. Where the file says what it is for (`backbone`, `detector`),
    that is checked; other keys are for the reader.

    Raises:
        UserError: the file is of another network, or its widths do not fit; the message names the file.
    """
    expected = 'an object {"widths": {"<channel group>": <channels>, …}}, as \'eigendet widths\' writes it'
    content = read_json(path, expected)
    if not isinstance(content, dict) or not isinstance(content.get("widths"), dict):
        raise UserError(f"{path}: no object 'widths'; expected {expected}.")
    for kind, own in definition.identity().items():
        if content.get(kind, own) != own:
            raise UserError(f"{path}: made for the {kind} {content[kind]}; this one is {own}.")
    if "detector" in content and not definition.heads:
        raise UserError(f"{path}: has widths of the detector's own layers; set widths.heads to true to use it.")
    traced, _ = definition.reference()
    try:
        found = by_group(traced, content["widths"])
        check_widths(traced, found)
    except ChannelError as error:
        raise UserError(f"{path}: {str(error).rstrip('.')}.") from None
    return found


def read_snapshot(path: Path) -> tuple[int, nn.Module, Definition]:
    """Step, network with its weights, and definition of a snapshot file."""
    content = _load_plain(path, "a snapshot")
    if not isinstance(content, dict) or not {"step", "model", "definition"} <= content.keys():
        raise UserError(f"{path}: not a snapshot; expected a file checkpoints/step_*.pt of a run.")
    definition = Definition.of(content["definition"])
    model = definition.build()
    model.load_state_dict(content["model"])
    return content["step"], model.eval(), definition


def device_of(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: 'cuda', but torch finds no GPU here; set device to 'cpu' or 'auto'.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _published(name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights, get_weight, list_models

    try:
        weights = get_weight(name)
    except (ValueError, AttributeError, KeyError):
        known = [str(entry) for model in list_models(include="resnet*") for entry in get_model_weights(model)]
        raise UserError(unknown("weights of torchvision", name, known)) from None
    try:
        state: dict[str, Tensor] = dict(weights.get_state_dict(progress=False, check_hash=True))
    except OSError as error:
        raise UserError(
            f"torchvision:{name}: cannot be downloaded ({error}); give a state-dict file instead."
        ) from None
    return state


def _load_plain(path: Path, what: str) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected {what}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its readers raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be loaded ({reason}); expected {what} of tensors and plain values.") from None


def _stripped(name: str) -> str:
    for prefix in ("module.", "backbone.", "body."):
        name = name.removeprefix(prefix)
    return name
