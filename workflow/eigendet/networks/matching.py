"""Find a backbone's entries among those of a state dict, wherever they stand in it and whatever their names begin with.

A file may hold several networks, an optimizer, a classifier or a whole detector. The backbone's entries are those whose
names end with its own after one common beginning, `module.encoder_q.` for example. They count only if all are there,
with the right shapes, and if nothing beside them belongs to a part that the backbone has: else they are of another
network.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from eigendet.errors import UserError, some

# What wrappers of torch insert in the middle of names.
WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
# Averages of other weights, beside which those that were trained are meant.
AVERAGED = re.compile(r"(^|[._])(ema|encoder_k|momentum|target)([._]|$)")
COUNTERS = ("num_batches_tracked", "total_ops", "total_params")  # of steps, and of thop; no weights


class Match(NamedTuple):
    """Entries for a backbone by its own names, and in words what was stripped and what was left out."""

    entries: dict[str, Tensor]
    said: str


def matched(needed: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> Match:
    """Return the entries that a backbone needs.

    Args:
        needed: the backbone's own state dict.
        weights: that of a file.
        source: of the weights, for messages.

    Raises:
        UserError: they are not there, there more than once, or of another network.

    Examples:
        >>> zeros, ones = torch.zeros(2), torch.ones(2)
        >>> match = matched({"conv.bias": zeros}, {"net.conv.bias": ones, "net.fc.bias": zeros}, "file.pt")
        >>> match.entries, match.said
        ({'conv.bias': tensor([1., 1.])}, "file.pt: took 1 entry, whose names begin with 'net.'; left out net.fc (1)")
    """
    plain = _without_wrappers(weights, source)
    required = [name for name in needed if not name.endswith(COUNTERS)]
    translation = max(
        _translations(required, plain), key=lambda names: max(_counts(names.values(), plain).values(), default=0)
    )
    counts = _counts(translation.values(), plain)
    wanted = {translation[name]: needed[name] for name in required}
    fits = [prefix for prefix, count in counts.items() if count == len(wanted) and not _misfit(prefix, wanted, plain)]
    if not fits:
        raise _no_fit(counts, wanted, plain, source)
    prefix = _only(fits, wanted, plain, source)
    taken = {prefix + name for name in wanted}
    _check_nothing_more(prefix, taken, plain, source)
    entries = {name: _checked(plain[prefix + translation[name]], needed[name], prefix + translation[name], source)
               for name in required}  # fmt: skip
    rest = {name: tensor for name, tensor in needed.items() if name not in entries}
    return Match(entries | rest, _said(prefix, taken, plain, source))


def _without_wrappers(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        short = name
        for wrapper in WRAPPERS:
            short = short.replace(wrapper, "")
        if short in plain:
            raise UserError(f"{source}: has '{short}' with and without what torch puts into names; expected it once.")
        plain[short] = tensor
    return plain


def _translations(names: Collection[str], weights: Mapping[str, Tensor]) -> Iterable[dict[str, str]]:
    """Yield ways in which the backbone's names may stand in a file, by its own.

    They are there as they are; without what all begin with; or as timm's whole networks have them, of whose modules
    `features_only` joins the first names: `stages_0.conv.weight` for `stages.0.conv.weight`.
    """
    yield {name: name for name in names}
    first, last = (name.split(".")[:-1] for name in (min(names), max(names)))
    common = sum(1 for _ in itertools.takewhile(lambda parts: parts[0] == parts[1], zip(first, last, strict=False)))
    yield {name: ".".join(name.split(".")[common:]) for name in names}
    joined = {name: name for name in names}
    for name in weights:
        parts = name.split(".")
        for place in range(len(parts) - 2):
            for after in (place + 2, place + 3):
                own = ".".join(["_".join(parts[place:after]), *parts[after:]])
                if own in joined:
                    joined[own] = ".".join(parts[place:])
    yield joined


def _counts(names: Iterable[str], weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how many of the names are there after each beginning, '' or one that ends with a dot."""
    prefixes = defaultdict(list)
    for name in weights:
        parts = name.split(".")
        for place in range(len(parts)):
            prefixes[".".join(parts[place:])].append(".".join([*parts[:place], ""]) if place else "")
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        for prefix in prefixes.get(name, ()):
            counts[prefix] += 1
    return counts


def _misfit(prefix: str, wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str | None:
    """Return the first name whose tensor has another shape."""
    return next((name for name, tensor in wanted.items() if weights[prefix + name].shape != tensor.shape), None)


def _no_fit(
    counts: Mapping[str, int], wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str
) -> UserError:
    """Say what is missing or has another shape, where most of the names are."""
    if not counts:
        return UserError(
            f"{source}: holds {some(list(weights), 3)}; the backbone needs {some(list(wanted), 3)}: expected weights "
            "of the same network."
        )
    prefix = max(counts, key=lambda prefix: counts[prefix])
    missing = [name for name in wanted if prefix + name not in weights]
    if missing:
        return UserError(
            f"{source}: no '{prefix}{missing[0]}', which the backbone needs, like {len(missing) - 1} others of "
            f"{len(wanted)}; expected weights of the same network, width and normalization."
        )
    name = _misfit(prefix, wanted, weights) or ""
    shape, own = tuple(weights[prefix + name].shape), tuple(wanted[name].shape)
    return UserError(f"{source}: '{prefix}{name}' is {shape}; the backbone has {own}.")


def _only(prefixes: list[str], wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> str:
    """Return the one beginning after which the entries are meant.

    Raises:
        UserError: there are several, with other values, none of which is an average of another.
    """
    trained = [prefix for prefix in prefixes if not AVERAGED.search(prefix)] or prefixes
    first, *others = trained
    for other in others:
        if any(not torch.equal(weights[first + name], weights[other + name]) for name in wanted):
            raise UserError(
                f"{source}: holds the backbone's entries more than once, with names that begin with "
                f"{' and '.join(repr(prefix) for prefix in trained)}; expected one of them: write it "
                "to a file of its own."
            )
    return first


def _check_nothing_more(prefix: str, taken: Collection[str], weights: Mapping[str, Tensor], source: str) -> None:
    """Check that every entry of a part that the backbone has is used.

    Raises:
        UserError: one is not, as of a deeper network.
    """
    parts = {name.rpartition(".")[0] for name in taken}
    parts |= {part[:place] for part in list(parts) for place in range(len(part)) if part[place] == "."}
    own = {part for part in parts if len(part) > len(prefix)}
    more = [name for name in weights if name not in taken and not name.endswith(COUNTERS) and _part(name, own)]
    if not more:
        return
    statistics = [name for name in more if name.endswith(("running_mean", "running_var"))]
    if statistics and len(statistics) == len(more):
        raise UserError(
            f"{source}: has '{statistics[0]}', so its backbone was trained with batch norm; this one has none."
        )
    raise UserError(
        f"{source}: has '{more[0]}'{f' and {len(more) - 1} more' if more[1:] else ''}, for which the backbone has no "
        f"place in its '{_part(more[0], own).removeprefix(prefix)}'; expected weights of the same network, no "
        "deeper one."
    )


def _part(name: str, parts: Collection[str]) -> str:
    """Return the innermost of these modules in which an entry stands, or ''."""
    while name:
        name = name.rpartition(".")[0]
        if name in parts:
            return name
    return ""


def _checked(value: Tensor, own: Tensor, name: str, source: str) -> Tensor:
    """Return an entry that is what the backbone has there: finite, real, dense, no variance below zero.

    Raises:
        UserError: it is not.
    """
    expected = "expected finite numbers" if own.is_floating_point() else "expected integers"
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise UserError(f"{source}: '{name}' is quantized, sparse or without values; {expected}.")
    if value.is_floating_point() != own.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise UserError(f"{source}: '{name}' is of {str(value.dtype).removeprefix('torch.')}; {expected}.")
    wrong = int((~torch.isfinite(value)).sum())
    if wrong:
        raise UserError(f"{source}: '{name}' has {wrong} values of {value.numel()} that are not finite; {expected}.")
    if name.endswith("running_var") and bool((value < 0).any()):
        raise UserError(f"{source}: '{name}' has a variance of {float(value.min()):g}; expected 0 or more.")
    return value


def _said(prefix: str, taken: Collection[str], weights: Mapping[str, Tensor], source: str) -> str:
    """Say where the entries stood, and what stands beside them: modules that the way there does not lead through."""
    left: dict[str, int] = defaultdict(int)
    for name in weights:
        if name not in taken and not name.endswith(COUNTERS):
            parts, way = name.split("."), prefix.split(".")
            shared = next(place for place, part in enumerate(parts) if way[place : place + 1] != [part])
            left[".".join(parts[: shared + 1])] += 1
    entries = "1 entry" if len(taken) == 1 else f"{len(taken)} entries"
    begin = f", whose names begin with '{prefix}'" if prefix else ""
    rest = f"; left out {some([f'{part} ({count})' for part, count in left.items()])}" if left else ""
    return f"{source}: took {entries}{begin}{rest}"
