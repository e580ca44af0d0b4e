"""A few images with their objects, beside what each arm detects there, as the page draws them over small pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eigendet.config import Experiment, layout
from eigendet.config.layout import Run
from eigendet.report import records
from eigendet.report.figures import PALETTE
from eigendet.report.outlines import outline
from eigendet.report.records import CONFIDENT, Evaluation, Example, Thing
from eigendet.report.results import Network

SIDE, LEAST = 320, 32  # of a panel, its longer side and at least the other, in units of its own
LINE, LETTER = 16, 8.2  # height and width that a letter of a label takes
LETTERS = 24  # of a name on a panel

Area = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Box:
    """An object or a detection on a panel.

    Attributes:
        area: left, top, width, height.
        text: the class, and the score of a detection.
        color: of the class.
        outline: the data of an SVG path, empty without a mask.
        sure: whether it is an object, or its score is at least one half.
        label: where the text begins, if it covers no other.
    """

    area: Area
    text: str
    color: str
    outline: str
    sure: bool
    label: tuple[float, float] | None


@dataclass(frozen=True)
class Panel:
    """What is drawn over a picture: the objects, or what an arm has detected."""

    title: str
    text: str
    boxes: list[Box]


@dataclass(frozen=True)
class Picture:
    """An image of the validation split, by its number from 1; what it is drawn from, and all that is drawn over it."""

    number: int
    jpeg: str  # in base64
    width: float
    height: float
    panels: list[Panel]


@dataclass(frozen=True)
class Pictures:
    """The pictures of a network, the colors of their classes, and sentences on arms that have none of these."""

    shown: list[Picture]
    colors: dict[str, str]
    notes: list[str]


def read(folder: Path, experiment: Experiment) -> dict[Network, Pictures]:
    """Read what the first seed of every arm detects in a few images; networks without any are left out."""
    pictures = {}
    for network in map(Network._make, experiment.networks):
        evaluations = {}
        for arm in experiment.all_arms:
            run = Run(arm, *network, experiment.seeds[0])
            file = layout.path(folder, layout.EVALUATION, **run._asdict())
            if file.is_file() and (evaluation := records.read_evaluation(file, run)).examples:
                evaluations[arm] = evaluation
        if evaluations:
            pictures[network] = _pictures(evaluations)
    return pictures


def numbered(pictures: Mapping[Network, Pictures]) -> dict[str, tuple[int, float, float]]:
    """Return every JPEG once, with a number, its width and its height: networks share their images."""
    sizes = {picture.jpeg: (picture.width, picture.height) for each in pictures.values() for picture in each.shown}
    return {jpeg: (number, *size) for number, (jpeg, size) in enumerate(sizes.items(), start=1)}


def _pictures(evaluations: dict[str, Evaluation]) -> Pictures:
    """Return the images of the first arm with what all arms detect that were evaluated on the same."""
    first, *_ = evaluations.values()
    same = {arm: evaluation for arm, evaluation in evaluations.items() if _numbers(evaluation) == _numbers(first)}
    present = {thing.name for evaluation in same.values() for example in evaluation.examples
               for thing in [*example.truth, *example.detections]}  # fmt: skip
    names = [*first.classes, *sorted(present - first.classes.keys())]
    colors = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(names) if name in present}
    shown = [
        _picture(example, {arm: evaluation.examples[place] for arm, evaluation in same.items()}, colors)
        for place, example in enumerate(first.examples)
    ]
    notes = [f"{arm} was evaluated on other images, and is not shown." for arm in evaluations if arm not in same]
    return Pictures(shown, colors, notes)


def _numbers(evaluation: Evaluation) -> tuple[str, list[int]]:
    return evaluation.data, [example.index for example in evaluation.examples]


def _picture(truth: Example, of_arms: dict[str, Example], colors: Mapping[str, str]) -> Picture:
    scale = SIDE / max(truth.width, truth.height)
    width, height = truth.width * scale, truth.height * scale
    objects = "1 object" if truth.objects == 1 else f"{truth.objects} objects"
    largest = f", the {len(truth.truth)} largest drawn" if len(truth.truth) < truth.objects else ""
    panels = [_panel("ground truth", objects + largest, truth.truth, truth, colors)]
    for arm, example in of_arms.items():
        panels.append(_panel(arm, _count(example.detections), example.detections, example, colors))
    return Picture(truth.index + 1, truth.picture, round(width), max(round(height), LEAST), panels)


def _count(detections: Sequence[Thing]) -> str:
    """Say how many detections are drawn."""
    if not detections:
        return "nothing detected"
    if (detections[0].score or 0) < CONFIDENT:
        return f"no detection, best {len(detections)} drawn"
    return "1 detection" if len(detections) == 1 else f"{len(detections)} detections"


def _panel(title: str, text: str, things: Sequence[Thing], example: Example, colors: Mapping[str, str]) -> Panel:
    """Return what is drawn over a picture; a label that would cover one of a better detection is left out."""
    scale = SIDE / max(example.width, example.height)
    width, height = example.width * scale, example.height * scale
    boxes: list[Box] = []
    taken: list[Area] = []
    for thing in things:
        name = thing.name if len(thing.name) <= LETTERS else f"{thing.name[: LETTERS - 1]}…"
        label = name if thing.score is None else f"{name} {thing.score:.2f}"
        left, top, across, down = (value * scale for value in thing.box)
        place = _place(left, top, LETTER * len(label), width, taken)
        boxes.append(
            Box(
                area=(round(left, 1), round(top, 1), round(across, 1), round(down, 1)),
                text=label,
                color=colors[thing.name],
                outline=outline(thing.mask, width, height) if thing.mask else "",
                sure=thing.score is None or thing.score >= CONFIDENT,
                label=place,
            )
        )
    return Panel(title, text, boxes)


def _place(left: float, top: float, length: float, width: float, taken: list[Area]) -> tuple[float, float] | None:
    """Return where a label's base line begins, above its box or in it, and note the area it takes; None if covered."""
    x = max(0.0, min(left, width - length))
    y = top - 4 if top >= LINE else top + LINE - 3
    area = (x, y - LINE + 3, x + length, y + 3)
    for other in taken:
        if area[0] < other[2] and other[0] < area[2] and area[1] < other[3] and other[1] < area[3]:
            return None
    taken.append(area)
    return round(x), round(y)
