"""Read and load the weights of a backbone, from wherever they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eigendet.errors import UserError, lacking, unknown
from eigendet.files import replacing


def read_weights(source: str) -> dict[str, Tensor]:
    """Read a state dict from a file, or a published one, which torch or timm downloads once.

    'torchvision:NAME' is one of torchvision's, with the names of its classifier; 'timm:NAME' one of timm's, with the
    names of the backbone plugin `timm`.

    Raises:
        UserError: no such file or name, no state dict in it, or no way to download it.
    """
    kind, _, name = source.partition(":")
    if kind == "torchvision":
        return _published_by_torchvision(name)
    if kind == "timm":
        return _published_by_timm(name)
    content = load_plain(Path(source), "a state dict")
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
    entries = backbone.state_dict()
    needed = {_stripped(name): tensor for name, tensor in entries.items()}
    loaded = {_stripped(name): value for name, value in weights.items()}
    for name, tensor in needed.items():
        if name.endswith("num_batches_tracked"):
            loaded.setdefault(name, tensor)
        elif name not in loaded:
            raise UserError(
                f"{source}: no '{name}', which the backbone needs; expected weights of the same network, "
                "width and normalization."
            )
        elif loaded[name].shape != tensor.shape:
            raise UserError(
                f"{source}: '{name}' is {tuple(loaded[name].shape)}; the backbone has {tuple(tensor.shape)}."
            )
    statistics = [name for name in loaded if name.endswith(("running_mean", "running_var")) and name not in needed]
    extra = [name for name in statistics if f"{name.rpartition('.')[0]}.weight" in needed]  # else of a classifier
    if extra:
        raise UserError(f"{source}: has '{extra[0]}', so its backbone was trained with batch norm; this one has none.")
    backbone.load_state_dict({name: loaded[_stripped(name)] for name in entries})


def save(path: Path, content: Any) -> None:
    """Write tensors and plain values, whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:  # torch's own files hide why they fail
        torch.save(content, file)


def load_plain(path: Path, what: str) -> Any:
    """Load tensors and plain values from a file; `what` says in errors what was expected there.

    Raises:
        UserError: the file is missing, or holds anything else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected {what}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its readers raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be loaded ({reason}); expected {what} of tensors and plain values.") from None


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


def _stripped(name: str) -> str:
    for prefix in ("module.", "backbone.", "body."):
        name = name.removeprefix(prefix)
    return name
