"""Networks by name, without a configuration: of torchvision, of timm, or what a function of someone's module builds."""

from __future__ import annotations

import contextlib
import copy
import importlib
import operator
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from eigendet import channels
from eigendet.channels.construction import construct
from eigendet.channels.groups import ChannelError, Channels, RunError
from eigendet.errors import UserError, first_line, kind, lacking, unknown
from eigendet.networks.detector import regions

EXPECTED = "torchvision:NAME, timm:NAME, or MODULE:FUNCTION of your own"
SIDE = 224  # pixels, where a library does not say which images a network is for


class NamedNetwork(NamedTuple):
    """What builds a network, and for which images it is."""

    build: Callable[[], nn.Module] | nn.Module
    image: tuple[int, int, int] = (3, SIDE, SIDE)  # channels, height, width
    is_detector: bool | None = False  # takes a list of images; None: not known


class TracedNetwork(NamedTuple):
    """The channel groups of a network, and for what its operations count."""

    channels: Channels
    image: tuple[int, int, int]  # channels, height, width
    resized: tuple[int, int] | None = None  # height and width to which a detector resizes the image
    regions: Mapping[str, int] = MappingProxyType({})  # boxes of the image, by the parts of a detector that see them

    def counted_for(self, is_assumed: bool) -> str:
        """Say for what operations count, and whether the size of the image is an assumption."""
        height, width = self.image[1:]
        parts = [f"one image of {height}x{width} pixels"]
        if self.resized is not None and self.resized != (height, width):
            parts.append(f"which the detector resizes to {self.resized[0]}x{self.resized[1]}")
        parts += [f"{boxes} boxes in {part}" for part, boxes in self.regions.items()]
        assumed = "; that size is assumed, --size says another" if is_assumed and self.resized is not None else ""
        return ", ".join(parts) + assumed


def trace_by_name(name: str, image: tuple[int, int, int] | None = None) -> TracedNetwork:
    """Return the channel groups of a network, and for what its operations count.

    A two-stage detector of torchvision, or one with `regions`, is counted with as many boxes as it looks at most.

    Args:
        name: `torchvision:` or `timm:` and a name there, or `my_module:build`, which is imported from the folder that
            one works in; `build` is a function without arguments, a class or a network.
        image: channels, height and width; None: what the library says, else 3 x 224 x 224.

    Raises:
        UserError: there is no such network, it cannot be built, or it cannot be followed.

    >>> traced = trace_by_name("torchvision:resnet18")
    >>> len(traced.channels.widths), traced.image
    (12, (3, 224, 224))
    """
    library, _, inside = name.partition(":")
    if not library or not inside:
        raise UserError(f"'{name}' names no network; expected {EXPECTED}.")
    if library == "torchvision":
        network = _of_torchvision(inside, image)
    else:
        network = _of_timm(inside) if library == "timm" else _of_module(library, inside)
    is_assumed, image = image is None, image or network.image
    if network.is_detector:
        return _trace_detector(network.build, image)
    try:
        return TracedNetwork(channels.trace(network.build, image[1:], image[0]), image)
    except ChannelError as error:
        if network.is_detector is None:
            with contextlib.suppress(ChannelError):
                return _trace_detector(network.build, image)
        if not isinstance(error, RunError):
            raise
        assumed = ", assumed without --size" if is_assumed else ""
        raise ChannelError(
            f"{error}. That image had {image[0]} channels{assumed}; another --size CHANNELSxHEIGHTxWIDTH may do."
        ) from None


def _trace_detector(build: Callable[[], nn.Module] | nn.Module, image: tuple[int, int, int]) -> TracedNetwork:
    if image[0] != 3:
        raise ChannelError(f"--size: images of {image[0]} channels; a detector is tried on images of 3.")
    with torch.random.fork_rng(devices=[]):
        model = build if isinstance(build, nn.Module) else construct(build)
    looked_at = _regions(model)
    return TracedNetwork(channels.trace_detector(build, image[1:], looked_at), image, _resized(model, image), looked_at)


def _regions(model: nn.Module) -> Mapping[str, int]:
    """Return how many boxes of an image parts of a detector look at: as it says, or as torchvision's two-stage ones."""
    from torchvision.models.detection.roi_heads import RoIHeads
    from torchvision.models.detection.rpn import RegionProposalNetwork

    looked_at = dict(regions(model))
    proposals = [part._post_nms_top_n["testing"] for part in model.modules() if isinstance(part, RegionProposalNetwork)]
    heads = [(path, part) for path, part in model.named_modules() if isinstance(part, RoIHeads)]
    if looked_at or not proposals:
        return looked_at
    for path, part in heads:
        looked_at[path] = proposals[0]
        for branch, is_there in (("mask", part.has_mask()), ("keypoint", part.has_keypoint())):
            if is_there:
                looked_at[f"{path}.{branch}"] = part.detections_per_img
    return looked_at


def _resized(model: nn.Module, image: tuple[int, int, int]) -> tuple[int, int]:
    """Return height and width to which a detector resizes an image, by torchvision's way of it if it has that."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    for part in model.modules():
        if isinstance(part, GeneralizedRCNNTransform):
            images, _ = copy.deepcopy(part).eval()([torch.zeros(image)])
            height, width = images.image_sizes[0]
            return height, width
    return image[1:]


def _of_torchvision(name: str, image: tuple[int, int, int] | None) -> NamedNetwork:
    from torchvision import models

    if name not in models.list_models():
        raise UserError(unknown("network of torchvision", name, models.list_models()))
    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):  # without auxiliary classifiers
        options |= {"aux_logits": False, "init_weights": True}
    if name in models.list_models(module=models.detection):
        fixed = 300 if name == "ssd300_vgg16" else 320 if name.startswith("ssdlite320") else None
        if fixed is None:  # it resizes images itself
            sides = image[1:] if image else (SIDE, SIDE)
            options |= {"min_size": min(sides), "max_size": max(sides)}
        elif image is not None and image[1:] != (fixed, fixed):
            raise UserError(f"--size: {name} resizes every image to {fixed}x{fixed}.")
        side = fixed or SIDE
        return NamedNetwork(
            partial(models.get_model, name, weights_backbone=None, **options), (3, side, side), is_detector=True
        )
    if name in models.list_models(module=models.segmentation):
        options["weights_backbone"] = None
    weights = getattr(models.get_model_weights(name), "DEFAULT", None)
    side = getattr(weights and weights.transforms(), "crop_size", [SIDE])[0]
    return NamedNetwork(partial(models.get_model, name, **options), (3, side, side))


def _of_timm(name: str) -> NamedNetwork:
    try:
        import timm
    except ImportError:
        raise UserError(lacking(["timm"])) from None
    if not timm.is_model(name):
        raise UserError(unknown("network of timm", name, timm.list_models()))
    configuration: Any = timm.get_pretrained_cfg(name)
    image = tuple(configuration.input_size) if configuration else (3, SIDE, SIDE)
    return NamedNetwork(partial(timm.create_model, name, pretrained=False), image)


def _of_module(module: str, path: str) -> NamedNetwork:
    """Return what a function, a class or a network of a module is, looked for in this folder first."""
    where = f"{module}:{path}"
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        build = operator.attrgetter(path)(importlib.import_module(module))
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UserError(f"{module} cannot be imported: {first_line(error)}.") from None
        hint = f" Write '{module.removesuffix('.py')}:{path}'." if module.endswith(".py") else ""
        raise UserError(f"there is no module '{module}' in {Path.cwd()} or installed.{hint}") from None
    except AttributeError as error:
        raise UserError(f"{where}: {first_line(error)}.") from None
    except (Exception, SystemExit) as error:  # whatever the module's own code raises
        raise UserError(f"{module} cannot be imported: {type(error).__name__}: {first_line(error)}") from None
    if isinstance(build, nn.Module):
        return NamedNetwork(build, is_detector=None)
    try:
        network = build()
    except (Exception, SystemExit) as error:  # whatever the function's own code raises
        raise UserError(
            f"{where}() fails: {type(error).__name__}: {first_line(error)}; expected a function, or a class, "
            "that builds a network without arguments."
        ) from None
    if not isinstance(network, nn.Module):
        raise UserError(f"{where}: gives {kind(network)}; expected a network, a torch.nn.Module.")
    return NamedNetwork(build, is_detector=None)
