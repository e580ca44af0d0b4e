"""Networks by name, without a configuration: of torchvision, of timm, or what a function of someone's module builds."""

from __future__ import annotations

import contextlib
import importlib
import operator
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from eigendet import channels
from eigendet.channels.groups import ChannelError, Channels
from eigendet.errors import UserError, kind, lacking, unknown

EXPECTED = "torchvision:NAME, timm:NAME, or MODULE:FUNCTION of your own"
SIDE = 224  # pixels, where a library does not say which images a network is for
# How many regions of an image the heads of torchvision's two-stage detectors look at: proposals, then detections.
REGIONS = {"roi_heads": 1000, "roi_heads.mask": 100, "roi_heads.keypoint": 100}


class NamedNetwork(NamedTuple):
    """What builds a network, and for which images it is."""

    build: Callable[[], nn.Module] | nn.Module
    image: tuple[int, int, int] = (3, SIDE, SIDE)  # channels, height, width
    is_detector: bool | None = False  # takes a list of images; None: not known


def trace_by_name(name: str, image: tuple[int, int, int] | None = None) -> tuple[Channels, tuple[int, int, int]]:
    """Return the channel groups of a network, and channels, height and width of the image for which costs count.

    Args:
        name: `torchvision:` or `timm:` and a name there, or `my_module:build`, which is imported from the folder that
            one works in; `build` is a function without arguments, a class or a network.
        image: channels, height and width; None: what the library says, else 3 x 224 x 224.

    Raises:
        UserError: there is no such network, it cannot be built, or it cannot be followed.

    >>> traced, image = trace_by_name("torchvision:resnet18")
    >>> len(traced.widths), image
    (12, (3, 224, 224))
    """
    library, _, inside = name.partition(":")
    if not library or not inside:
        raise UserError(f"'{name}' names no network; expected {EXPECTED}.")
    if library == "torchvision":
        network = _of_torchvision(inside, image)
    else:
        network = _of_timm(inside) if library == "timm" else _of_module(library, inside)
    image = image or network.image
    if network.is_detector:
        return _trace_detector(network, image), image
    try:
        return channels.trace(network.build, image[1:], image[0]), image
    except ChannelError as error:
        if network.is_detector is None:
            with contextlib.suppress(ChannelError):
                return _trace_detector(network, image), image
        raise ChannelError(f"{error}; an image of another --size may do") from None


def _trace_detector(network: NamedNetwork, image: tuple[int, int, int]) -> Channels:
    if image[0] != 3:
        raise ChannelError(f"--size: images of {image[0]} channels; a detector is tried on images of 3.")
    return channels.trace_detector(network.build, image[1:], REGIONS)


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
            raise UserError(f"{module} cannot be imported: {error}.") from None
        hint = f" Write '{module.removesuffix('.py')}:{path}'." if module.endswith(".py") else ""
        raise UserError(f"there is no module '{module}' in {Path.cwd()} or installed.{hint}") from None
    except AttributeError as error:
        raise UserError(f"{where}: {error}.") from None
    except (Exception, SystemExit) as error:  # whatever the module's own code raises
        raise UserError(f"{module} cannot be imported: {type(error).__name__}: {error}") from None
    if isinstance(build, nn.Module):
        return NamedNetwork(build, is_detector=None)
    try:
        network = build()
    except (Exception, SystemExit) as error:  # whatever the function's own code raises
        raise UserError(
            f"{where}() fails: {type(error).__name__}: {error}; expected a function, or a class, that builds a network "
            "without arguments."
        ) from None
    if not isinstance(network, nn.Module):
        raise UserError(f"{where}: gives {kind(network)}; expected a network, a torch.nn.Module.")
    return NamedNetwork(build, is_detector=None)
