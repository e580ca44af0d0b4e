"""All that it takes to build a network: plugins, options, widths, classes.

A definition stands beside the weights in every snapshot, so that a snapshot alone can be evaluated or observed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Self

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from eigendet import channels, plugins
from eigendet.channels.groups import Channels, Widths
from eigendet.config.sections import BackboneChoice, PluginChoice
from eigendet.errors import UserError
from eigendet.files import Plain
from eigendet.networks import checks
from eigendet.networks.backbones import build_backbone, plain_backbone, reference_groups
from eigendet.networks.classifier import Classifier
from eigendet.networks.detector import regions


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
    def of(cls, plain: Plain) -> Self:
        """Return the definition that `plain` was made from.

        Raises:
            ValueError: something is missing, or of another type; the message names it.
        """
        try:
            return TypeAdapter(cls).validate_python(plain)
        except ValidationError as error:
            fault = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None

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
        backbone, widths = reference_groups(self.backbone, (side, side))
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
        checks.check_trainable(detector, plugin)
        path = next((path for path, module in detector.named_modules() if module is backbone), None)
        if path is None:
            raise UserError(f"{plugin}: the detector does not hold the backbone that it was given.")
        detector.backbone_path = path
        return detector

    def _at_full_width(self, size: tuple[int, int]) -> nn.Module:
        """Build the detector over a backbone without its width factor, as it is traced."""
        return self._detector(plain_backbone(self.backbone), size)


@lru_cache
def _traced_detector(
    backbone: BackboneChoice, detector: PluginChoice, classes: tuple[str, ...], size: tuple[int, int], side: int
) -> Channels:
    """Trace a detector; the groups of its backbone are named as in the backbone alone."""
    definition = Definition(backbone, list(classes), size, detector, heads=True)
    build = partial(definition._at_full_width, (side, side))
    with torch.random.fork_rng(devices=[]):
        model = build()
    traced = channels.trace_detector(build, (side, side), regions(model))
    return traced.renamed(f"{model.backbone_path}.")
