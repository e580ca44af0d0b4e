"""Networks from their definitions.

A definition is a plain value that says all it takes to build a network: plugins, options, widths, classes. It stands
beside the weights in every snapshot, so that a snapshot alone can be evaluated or dumped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from eigendet import channels, plugins
from eigendet.channels.groups import ChannelError, Channels, Widths, by_group, check_widths, scaled
from eigendet.config.sections import BackboneChoice, PluginChoice
from eigendet.errors import UserError
from eigendet.files import Plain
from eigendet.networks import checks, parts, widths_file
from eigendet.networks.weights import load_plain

WIDTH_MULTIPLE = 8  # of a backbone's width factor


@dataclass(frozen=True)
class Definition:
    """All that it takes to build a classifier (`detector` is None) or a detector.

    Attributes:
        classes: names, of the labels 0, 1, … of a classifier, and 1, 2, … of a detector.
        size: (crop, crop) of a classifier's images, (shorter, longest side) of a detector's, in pixels.
        widths: channels of every group; None: those of the reference.
        heads: whether widths are of the whole detector, or of its backbone alone.
    """

    backbone: BackboneChoice
    classes: list[str]
    size: tuple[int, int]
    detector: PluginChoice | None = None
    widths: Widths | None = None
    heads: bool = False

    def plain(self) -> Plain:
        """Return the definition in values that JSON has."""
        return {
            "backbone": self.backbone.model_dump(mode="json"),
            "classes": self.classes,
            "size": list(self.size),
            "detector": self.detector and self.detector.model_dump(mode="json"),
            "widths": self.widths,
            "heads": self.heads,
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """Return the definition that `plain` was made from."""
        return cls(
            BackboneChoice(**plain["backbone"]),
            plain["classes"],
            (plain["size"][0], plain["size"][1]),
            PluginChoice(**plain["detector"]) if plain["detector"] else None,
            plain["widths"],
            plain["heads"],
        )

    def build(self) -> nn.Module:
        """Build the network, with new weights drawn from torch's global random state."""
        if self.heads and self.widths is not None:
            groups, _ = self.reference()
            return channels.rebuild(partial(self._at_full_width, self.size), groups, self.widths)
        backbone = build_backbone(self.backbone, self.widths)
        if self.detector is None:
            return Classifier(backbone, len(self.classes))
        return self._detector(backbone, self.size)

    def reference(self, side: int = channels.SIDE) -> tuple[Channels, Widths]:
        """Return the channel groups of the backbone, or of the whole detector, and the reference's width of each.

        Groups of the backbone have the same names in both. Costs are for one image of side x side pixels.
        """
        backbone, widths = reference(self.backbone, (side, side))
        if not self.heads or self.detector is None:
            return backbone, widths
        whole = _traced_detector(self.backbone, self.detector, tuple(self.classes), self.size, side)
        return whole, whole.widths | {group: widths[group] for group in whole.widths if group in widths}

    def identity(self) -> Plain:
        """Return what makes the groups what they are: plugin and options of the backbone, perhaps of the detector."""
        backbone = self.backbone.model_dump(mode="json", exclude={"pretrained"})
        if not self.heads or self.detector is None:
            return {"backbone": backbone}
        return {"backbone": backbone, "detector": self.detector.model_dump(mode="json")}

    def _detector(self, backbone: nn.Module, size: tuple[int, int]) -> nn.Module:
        assert self.detector is not None
        detector: nn.Module = plugins.bind("detector", self.detector)(backbone, len(self.classes), size)
        plugin = plugins.find("detector", self.detector.plugin)
        checks.check_network(detector, plugin)
        path = next((path for path, module in detector.named_modules() if module is backbone), None)
        if path is None:
            raise UserError(f"{plugin}: the detector does not hold the backbone that it was given.")
        detector.backbone_path = path
        return detector

    def _at_full_width(self, size: tuple[int, int]) -> nn.Module:
        """Build the detector over a backbone without its width factor, as it is traced."""
        return self._detector(_plain_backbone(self.backbone), size)


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


def reference(
    choice: BackboneChoice, size: tuple[int, int] = (channels.SIDE, channels.SIDE)
) -> tuple[Channels, Widths]:
    """Return the channel groups of a backbone with costs at `size`, and the reference's width of each.

    The reference has the choice's width factor.
    """
    groups = _traced_backbone(choice, str(plugins.find("backbone", choice.plugin)), size)
    if choice.width == 1:
        return groups, groups.widths
    return groups, scaled(groups.widths, choice.width, groups.rounded_to(WIDTH_MULTIPLE))


@lru_cache
def _traced_backbone(choice: BackboneChoice, origin: str, size: tuple[int, int]) -> Channels:
    """Trace a backbone; `origin` is here so that another plugin of that name is another backbone."""
    return channels.trace(partial(_plain_backbone, choice), size)


@lru_cache
def _traced_detector(
    backbone: BackboneChoice, detector: PluginChoice, classes: tuple[str, ...], size: tuple[int, int], side: int
) -> Channels:
    """Trace a detector; the groups of its backbone are named as in the backbone alone."""
    definition = Definition(backbone, list(classes), size, detector, heads=True)
    build = partial(definition._at_full_width, (side, side))
    with torch.random.fork_rng(devices=[]):
        model = build()
    traced = channels.trace_detector(build, (side, side), getattr(model, "regions", {}))
    return traced.renamed(f"{model.backbone_path}.")


def build_backbone(choice: BackboneChoice, changed: Widths | None = None) -> nn.Module:
    """Build the backbone with the reference's widths, or with others, and check its feature maps."""
    if choice.width == 1 and changed is None:
        backbone = _plain_backbone(choice)
    else:
        groups, widths = reference(choice)
        backbone = channels.rebuild(partial(_plain_backbone, choice), groups, widths if changed is None else changed)
    plugin = plugins.find("backbone", choice.plugin)
    with plugins.failures_named(plugin):
        checks.check_features(parts.features_of_blank(backbone), plugin)
    return backbone


def _plain_backbone(choice: BackboneChoice) -> nn.Module:
    """Build the backbone as its plugin does."""
    backbone: nn.Module = plugins.bind("backbone", choice)()
    checks.check_network(backbone, plugins.find("backbone", choice.plugin))
    return backbone


def backbone_of(model: nn.Module) -> nn.Module:
    """Return the module inside a classifier or a detector of this library that a backbone plugin built."""
    return model.get_submodule(str(model.backbone_path))


def parameter_count(module: nn.Module) -> int:
    """Count the parameters of a module.

    >>> parameter_count(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in module.parameters())


def read_widths(path: Path, definition: Definition) -> Widths:
    """Read the widths for a definition from a widths file: {"widths": {group: channels, …}, …}.

    Groups may be named after any layer that writes them. Where the file says what it is for (`backbone`, `detector`),
    that is checked; other keys are for the reader.

    Raises:
        UserError: the file is of another network, or its widths do not fit; the message names the file.
    """
    content = widths_file.read(path).plain()
    for kind, own in definition.identity().items():
        if content.get(kind, own) != own:
            raise UserError(f"{path}: made for the {kind} {content[kind]}; this one is {own}.")
    if "detector" in content and not definition.heads:
        raise UserError(f"{path}: has widths of the detector's own layers; set widths.heads to true to use it.")
    groups, _ = definition.reference()
    try:
        widths = by_group(groups, content["widths"])
        check_widths(groups, widths)
    except ChannelError as error:
        raise UserError(f"{path}: {str(error).rstrip('.')}.") from None
    return widths


def read_snapshot(path: Path) -> tuple[int, nn.Module, Definition]:
    """Read a snapshot file: its step, the network with its weights, and the definition."""
    content = load_plain(path, "a snapshot")
    if not isinstance(content, dict) or not {"step", "model", "definition"} <= content.keys():
        raise UserError(f"{path}: not a snapshot; expected a file checkpoints/step_*.pt of a run.")
    definition = Definition.of(content["definition"])
    model = definition.build()
    model.load_state_dict(content["model"])
    return content["step"], model.eval(), definition
