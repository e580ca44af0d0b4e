"""Convolutional classifiers of torchvision, by their names there."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt

from eigendet.errors import UserError, unknown
from eigendet.plugins import backbone

if TYPE_CHECKING:
    from torch import nn

TRANSFORMERS = ("maxvit", "swin", "vit")
CONTAINERS = ("features", "layers", "trunk_output")  # hold the stages
HEADS = ("avgpool", "dropout", "classifier", "fc")
# Without auxiliary classifiers; with their own initialization, of which they would warn otherwise.
OPTIONS: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}
FINEST, MAPS = 4, 4  # the smallest stride of which a map is given, and how many at most


@backbone
def torchvision(
    *,
    name: Annotated[str, Field(description="as in torchvision.models")],
    norm: Annotated[
        Literal["own", "group", "batch", "sync_batch", "frozen_batch"], Field(description="instead of its own")
    ] = "own",
    norm_groups: Annotated[PositiveInt, Field(description="of each GroupNorm; it divides every width")] = 32,
) -> "nn.Module":
    """Build any convolutional classifier of torchvision, by name; the last feature map of each stride from 4 on.

    Where there are more than four strides it gives the maps of the four largest. Maps are named after the layers that
    give them. The state dict has torchvision's names, so that published weights fit.
    """
    from torch import Tensor, nn
    from torchvision import models

    from eigendet.networks.norms import with_norm

    names = models.list_models(module=models, exclude=[f"{family}*" for family in TRANSFORMERS])
    if name not in names:
        transformer = "it is a transformer; " if name in models.list_models(module=models) else ""
        raise UserError(f"name: {transformer}{unknown('convolutional classifier of torchvision', name, names)}")

    class Features(nn.Module):
        """The classifier's own parts, in the order in which it runs them, without its head."""

        def __init__(self) -> None:
            super().__init__()
            classifier = with_norm(models.get_model(name, weights=None, **OPTIONS.get(name, {})), norm, norm_groups)
            self.steps: list[str] = []
            for part, module in classifier.named_children():
                if part not in HEADS:
                    self.add_module(part, module)
                    inside = [f"{part}.{step}" for step, _ in module.named_children()]
                    self.steps += inside if part in CONTAINERS else [part]

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            x, last = images, {}
            for step in self.steps:
                x = self.get_submodule(step)(x)
                last[max(x.shape[2:])] = step, x
            # The longer side tells strides apart in any image of 32 pixels or more.
            strides = {side: round(max(images.shape[2:]) / side) for side in last}
            return dict([last[side] for side, stride in strides.items() if stride >= FINEST][-MAPS:])

    return Features()
