"""Build backbones with the widths of the reference or others, and find their channel groups."""

from __future__ import annotations

from functools import lru_cache, partial

from torch import nn

from eigendet import channels, plugins
from eigendet.channels.groups import Channels, Widths, scaled
from eigendet.config.sections import BackboneChoice
from eigendet.errors import UserError, some
from eigendet.networks import checks, parts

WIDTH_MULTIPLE = 8  # of a backbone's width factor


def reference_groups(
    choice: BackboneChoice, size: tuple[int, int] = (channels.SIDE, channels.SIDE)
) -> tuple[Channels, Widths]:
    """Return the channel groups of a backbone with costs at `size`, and the reference's width of each.

    The reference has the choice's width factor.

    Raises:
        UserError: it has one, and no width can change.
    """
    groups = _traced_backbone(choice, str(plugins.find("backbone", choice.plugin)), size)
    if choice.width == 1:
        return groups, groups.widths
    if not groups.widths:
        why = some(list(dict.fromkeys(groups.fixed.values())), 1)
        origin = plugins.find("backbone", choice.plugin)
        raise UserError(f"{origin}: width {choice.width}, but none of its widths can change ({why}); expected 1.")
    return groups, scaled(groups.widths, choice.width, groups.rounded_to(WIDTH_MULTIPLE))


@lru_cache
def _traced_backbone(choice: BackboneChoice, origin: str, size: tuple[int, int]) -> Channels:
    """Trace a backbone; `origin` is here so that another plugin of that name is another backbone."""
    return channels.trace(partial(plain_backbone, choice), size)


def build_backbone(choice: BackboneChoice, changed: Widths | None = None) -> nn.Module:
    """Build the backbone with the reference's widths, or with others, and check its feature maps."""
    if choice.width == 1 and changed is None:
        backbone = plain_backbone(choice)
    else:
        groups, widths = reference_groups(choice)
        backbone = channels.rebuild(partial(plain_backbone, choice), groups, widths if changed is None else changed)
    plugin = plugins.find("backbone", choice.plugin)
    with plugins.failures_named(plugin):
        checks.check_features(parts.features_of_blank(backbone), plugin)
    return backbone


def plain_backbone(choice: BackboneChoice) -> nn.Module:
    """Build the backbone as its plugin does."""
    backbone: nn.Module = plugins.bind("backbone", choice)()
    checks.check_trainable(backbone, plugins.find("backbone", choice.plugin))
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
