"""Convolutional networks of timm, by their names there."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt

from eigendet.errors import UserError, unknown
from eigendet.plugins import backbone

if TYPE_CHECKING:
    from torch import Tensor, nn

FINEST = 4  # the smallest stride of which a map is given


@backbone
def timm(
    *,
    name: Annotated[str, Field(description="as in timm.list_models()")],
    norm: Annotated[
        Literal["own", "group", "batch", "sync_batch", "frozen_batch"], Field(description="instead of its own")
    ] = "own",
    norm_groups: Annotated[PositiveInt, Field(description="of each GroupNorm; it divides every width")] = 32,
) -> "nn.Module":
    """Build any convolutional network of timm, by name; a feature map of each stride from 4 on.

    The maps are those of timm's `features_only`, named as it says; the state dict has its names too. Nothing is
    downloaded.
    """
    import timm as library
    from timm.layers.format import Format

    from eigendet.networks.norms import with_norm

    if not library.is_model(name):
        raise UserError(f"name: {unknown('network of timm', name, library.list_models())}")
    network: Any = library.create_model(name, features_only=True, pretrained=False)
    names, strides = network.feature_info.module_name(), network.feature_info.reduction()
    last = {stride: index for index, stride in enumerate(strides) if stride >= FINEST}
    layout = Format(getattr(network, "output_fmt", "NCHW")).value
    if layout != "NCHW" or len(last) < 2:
        raise UserError(
            f"name: '{name}' has {layout} maps of the strides {strides}; expected a convolutional network, "
            "with NCHW maps of several strides."
        )

    def by_name(module: "nn.Module", inputs: Any, maps: "list[Tensor]") -> "dict[str, Tensor]":
        return {names[index]: maps[index] for index in last.values()}

    network.register_forward_hook(by_name)  # not a module around it, whose name would begin all parameters' names
    return with_norm(network, norm, norm_groups)
