"""Files of widths: {"widths": {"<channel group>": <channels>, …}, …}.

One may be written by hand, with `widths` alone; `eigendet widths` also writes what it took them from.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from eigendet.channels.groups import ChannelError, Widths, by_group, check_widths
from eigendet.errors import UserError
from eigendet.files import Format, Plain, read_json, write_json
from eigendet.networks.definition import Definition

FORMAT = Format("eigendet widths", 1)
EXPECTED = 'an object {"widths": {"<channel group>": <channels>, …}}, as \'eigendet widths\' writes it'

Interval = tuple[float, float]

MOST = 1_000_000  # channels of a layer: two layers of so many, one after the other, fit no memory


@dataclass(frozen=True, kw_only=True)
class WidthsFile:
    """Widths, and the network that they are for where the file says it."""

    widths: Widths
    backbone: Plain | None = None
    detector: Plain | None = None  # only with widths of its own layers

    def plain(self) -> Plain:
        """Return what is known, in plain values.

        >>> WidthsFile(widths={"conv1": 48}).plain()
        {'widths': {'conv1': 48}}
        """
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Cost:
    """A cost of the network with the reference's widths, and with those that were chosen."""

    reference: int
    result: int

    @property
    def share(self) -> float:
        """What is left of the reference's.

        >>> Cost(reference=100, result=25).share
        0.25
        """
        return self.result / self.reference


@dataclass(frozen=True, kw_only=True)
class ChosenWidths(WidthsFile):
    """What `eigendet widths` writes: widths beside the reference's, and where they come from.

    Of derived widths it holds all but `spectrum_of`; intervals only with a jackknife that can be relied on.
    """

    reference: Widths
    parameters: Cost
    macs: Cost
    rule: str  # what the widths follow, in words
    settings: Plain | None = None  # the section `widths` of the experiment
    arm: str | None = None  # whose spectra were read
    multiples: Widths | None = None  # of which each width is one
    targets: dict[str, float] | None = None  # what was rounded to them
    used: dict[str, float] | None = None  # by the names of the costs that have caps: shares of these
    dimensions: dict[str, float] | None = None
    bound: dict[str, str] | None = None  # what keeps each group from being wider
    elsewhere: dict[str, str] | None = None  # groups that were read at another point than the chosen one
    spectra: dict[str, str] | None = None  # folders, and the digest of what was read there
    image: list[int] | None = None  # for which costs count
    spectrum_of: dict[str, str] | None = None  # whose spectrum each group was given, of permuted ones
    dimension_intervals: dict[str, Interval] | None = None
    width_intervals: dict[str, Interval] | None = None
    undetermined: dict[str, tuple[int, int]] | None = None  # groups that an end rounds elsewhere: least, most
    lacking_intervals: str | None = None  # why some are not there

    @property
    def coarser(self) -> dict[str, int]:
        """The multiples that the network asks for, of groups where `round_to` asks for finer ones."""
        round_to = (self.settings or {}).get("round_to")
        return {group: step for group, step in (self.multiples or {}).items() if round_to and step != round_to}


WRITTEN = {"reference", "parameters", "macs"}  # what no file of a user holds, nor lacks one that the command wrote
NAMES = {field.name for field in fields(ChosenWidths)}


def table(chosen: ChosenWidths) -> str:
    """Return a line for each group: the reference's width, what was rounded, to which multiple, and what bound it.

    >>> cost = Cost(1000, 500)
    >>> print(table(ChosenWidths(widths={"conv1": 16}, reference={"conv1": 32}, targets={"conv1": 17.3}, rule="dof",
    ...                          multiples={"conv1": 8}, bound={"conv1": "macs"}, parameters=cost, macs=cost)))
    group  reference  target  width  multiple of  bound by
    conv1         32    17.3     16            8  macs
    """
    rows = [("group", "reference", "target", "width", "multiple of", "bound by")]
    for group, width in chosen.widths.items():
        target, step = (chosen.targets or {}).get(group), (chosen.multiples or {}).get(group, "")
        rows.append((
            group, str(chosen.reference[group]), "" if target is None else f"{target:.1f}", str(width), str(step),
            (chosen.bound or {}).get(group, ""),
        ))  # fmt: skip
    lengths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(lengths[0]), *map(str.rjust, row[1:-1], lengths[1:-1]), row[-1]]).rstrip()
        for row in rows
    )


def write_chosen(path: Path, chosen: ChosenWidths) -> None:
    """Write a file of chosen widths."""
    write_json(path, FORMAT.mark | chosen.plain())


def read_by_hand(path: Path) -> WidthsFile:
    """Read a file of widths that was written by hand or by `eigendet widths`.

    Raises:
        UserError: the file is missing, holds no widths, or was written by another version of `eigendet widths`.
    """
    content = _content(path)
    return WidthsFile(widths=content["widths"], backbone=content.get("backbone"), detector=content.get("detector"))


def read_chosen(path: Path) -> ChosenWidths:
    """Read a file that `eigendet widths` wrote.

    Raises:
        UserError: the file is missing, or was not written by this version of `eigendet widths`.
    """
    content = _content(path)
    FORMAT.check(path, content)
    try:
        chosen = TypeAdapter(ChosenWidths).validate_python({name: content[name] for name in content.keys() & NAMES})
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise UserError(
            f"{path}: {place!a} is not what '{FORMAT.command}' writes ({fault['msg']}); run it again."
        ) from None
    if chosen.reference.keys() != chosen.widths.keys():
        raise UserError(f"{path}: reference and widths are not of the same groups; run '{FORMAT.command}' again.")
    return chosen


def read_widths(path: Path, definition: Definition) -> Widths:
    """Read the widths for a definition from a widths file: {"widths": {group: channels, …}, …}.

    Groups may be named after any layer that writes them. Where the file says what it is for (`backbone`, `detector`),
    that is checked; other keys are for the reader.

    Raises:
        UserError: the file is of another network, or its widths do not fit; the message names the file.
    """
    content = read_by_hand(path).plain()
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


def _content(path: Path) -> Plain:
    content = read_json(path, EXPECTED)
    if not isinstance(content, dict) or not isinstance(content.get("widths"), dict):
        raise UserError(f"{path}: no object 'widths'; expected {EXPECTED}.")
    for group, width in content["widths"].items():
        if isinstance(width, int | float) and not width <= MOST:  # NaN neither
            raise UserError(f"{path}: width {str(width)[:20]} of {group!r}; expected at most {MOST:,} channels.")
    if content.get("format") == FORMAT.command or content.keys() >= WRITTEN:
        FORMAT.check(path, content)
    return content
