"""Read and load the weights of a backbone, from wherever they come."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from eigendet.errors import UserError, first_line, lacking, some, unknown
from eigendet.files import check_digest
from eigendet.networks.matching import matched

EXPECTED = "expected a state dict: tensors by the names of the backbone's parameters"


def read_weights(source: str) -> dict[str, Tensor]:
    """Read the tensors of a file by their names, or published ones, which torch or timm downloads once.

    Keys of nested dicts are joined with dots: a checkpoint's {"model": {"conv1.weight": …}} has model.conv1.weight.
    'torchvision:NAME' is one of torchvision's, with the names of its classifier; 'timm:NAME' one of timm's, with the
    names of the backbone plugin `timm`.

    Raises:
        UserError: no such file or name, no tensors in it, or no way to download it.
    """
    kind, _, name = source.partition(":")
    if kind == "torchvision":
        return _published_by_torchvision(name)
    if kind == "timm":
        return _published_by_timm(name)
    content, others = _read(Path(source))
    tensors = dict(_tensors(content, ""))
    if not tensors or "" in tensors:
        beside = f", but objects of {some(others)}: save the state_dict() of such a network" if others else ""
        raise UserError(f"{source}: holds no tensors by name{beside}; {EXPECTED}.")
    return tensors


def load_backbone(backbone: nn.Module, weights: dict[str, Tensor], source: str) -> str:
    """Load a backbone's weights from among those of a file; return in words which were taken, and what was left out.

    Raises:
        UserError: they are not there, there more than once, or of another network; see `networks.matching`.
    """
    entries, said = matched(backbone.state_dict(), weights, source)
    backbone.load_state_dict(entries)
    return said


def _tensors(content: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of nested dicts, by the keys that lead to it, joined with dots."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, dict):
        for key, value in content.items():
            own = str(key).replace("\n", r"\n")
            yield from _tensors(value, f"{name}.{own}" if name else own)


def _read(path: Path) -> tuple[Any, list[str]]:
    """Read what torch or safetensors saved, and name what of other libraries is in it, which is left out, not run.

    Raises:
        UserError: it is neither, or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; {EXPECTED}.")
    check_digest(path, "fetch or write it again")
    if path.suffix == ".safetensors":
        return _read_safetensors(path), []
    try:
        others = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not one of torch's files: said below
        others = []
    try:
        with torch.serialization.safe_globals([(_LeftOut, name) for name in others]):
            return torch.load(path, map_location="cpu", weights_only=True), others
    except Exception as error:  # torch.load raises whatever its readers raise
        raise UserError(f"{path}: cannot be loaded ({_why(error)}); {EXPECTED}.") from None


class _LeftOut:
    """Stands for an object of a class that is not torch's own: made of anything, and nothing."""

    def __new__(cls, *_: object, **__: object) -> Self:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path}: {lacking(['safetensors'])}") from None
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); {EXPECTED}.") from None


def _why(error: Exception) -> str:
    """Return what torch.load says in one sentence, without its advice to load what may run code."""
    said = " ".join(str(error).split())
    cause = re.search(r"WeightsUnpickler error: (.*?)(?: Check the doc|\. |\.?$)", said)
    if cause:
        return cause[1][:200]
    return "a TorchScript archive" if "TorchScript" in said else first_line(error).partition(". ")[0]


def _published_by_torchvision(name: str) -> dict[str, Tensor]:
    from torchvision import models as library

    try:
        weights = library.get_weight(name)
    except (ValueError, AttributeError, KeyError):
        networks = library.list_models(module=library)
        names = [str(entry) for network in networks for entry in library.get_model_weights(network)]
        raise UserError(unknown("weights of torchvision", name, names)) from None
    try:
        state: dict[str, Tensor] = dict(weights.get_state_dict(progress=False, check_hash=True))
    except OSError as error:
        raise _not_downloaded(f"torchvision:{name}", error) from None
    return state


def _published_by_timm(name: str) -> dict[str, Tensor]:
    try:
        import timm
    except ImportError:
        raise UserError(f"timm:{name}: {lacking(['timm'])}") from None
    tagged = timm.list_models(pretrained=True)  # network.how_it_was_trained, of which the second part may be left out
    names = {*tagged, *(entry.partition(".")[0] for entry in tagged)}
    if name not in names:
        raise UserError(unknown("weights of timm", name, names))
    try:
        state: dict[str, Tensor] = timm.create_model(name, features_only=True, pretrained=True).state_dict()
    except OSError as error:
        raise _not_downloaded(f"timm:{name}", error) from None
    return state


def _not_downloaded(source: str, error: OSError) -> UserError:
    return UserError(f"{source}: cannot be downloaded ({error}); give a state-dict file instead.")
