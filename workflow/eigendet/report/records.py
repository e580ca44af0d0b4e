"""What other stages leave as JSON, as far as the page reads it; each is checked where it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from eigendet.config import layout
from eigendet.config.layout import Run
from eigendet.data.segmentations import is_segmentation
from eigendet.errors import UserError
from eigendet.files import read_json, require_version

Scores = dict[str, Annotated[float, Field(ge=0, le=1)] | None]  # None where the data has no object to score
Curve = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2)]
CONFIDENT = 0.5  # score from which on detections are shown in an example
FEW, MOST = 3, 30  # detections of one where none has such a score, and where many have
Side = Annotated[int, Field(ge=1, le=4096)]  # pixels of a small picture


class Record(BaseModel):
    """Part of a file; other keys are left to whoever wrote it."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class RunNames(Record):
    """What a run is called."""

    arm: str
    backbone: str
    detector: str
    seed: NonNegativeInt


class SnapshotScores(Record):
    """The scores of a snapshot; of masks where these were scored."""

    step: NonNegativeInt
    boxes: Scores
    masks: Scores = {}


class Curves(Record):
    """Precision at COCO's recalls, by what counts as right."""

    AP: Curve
    AP50: Curve
    AP75: Curve


class Mask(Record):
    """A mask as COCO's compressed run lengths."""

    size: Annotated[list[Side], Field(min_length=2, max_length=2)]  # height, width
    counts: str

    @model_validator(mode="after")
    def _fills_its_size(self) -> Self:
        if not is_segmentation(self.model_dump(), *self.size):
            raise ValueError("expected run lengths that fill it")
        return self


class Thing(Record):
    """An object, or a detection, which has a score; its box is left, top, width, height in pixels of a picture."""

    name: str
    box: Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]
    score: FiniteFloat | None = None
    mask: Mask | None = None


class Example(Record):
    """An image, by its number, with its objects and what was detected there; the picture is JPEG in base64."""

    index: NonNegativeInt
    picture: Annotated[str, Field(pattern=r"\A[A-Za-z0-9+/]+={0,2}\z")]
    width: Side
    height: Side
    objects: NonNegativeInt  # of which the largest are `truth`
    truth: list[Thing]
    detections: list[Thing]


class Evaluation(Record):
    """The scores of a run at its last snapshot, and at all that were scored; precision over recall; a few images.

    Earlier versions kept neither curves nor examples.
    """

    run: RunNames
    boxes: Scores
    masks: Scores = {}
    classes: Scores = {}  # AP of boxes of each alone
    snapshots: list[SnapshotScores] = []
    curves: dict[Literal["boxes", "masks"], Curves] = {}
    examples: list[Example] = []
    data: str = ""  # digest of the images and annotations
    images: NonNegativeInt = 0


class TrainedOn(Record):
    """What decides whether a run may be continued."""

    data: str  # digest of the images and annotations


class Trained(Record):
    """The record of a detector's run: what it costs, how it was trained, and by what."""

    identity: TrainedOn
    costs: dict[str, PositiveInt]
    snapshots: list[NonNegativeInt]
    seconds: FiniteFloat
    images_per_second: FiniteFloat
    device: str
    eigendet: str
    revision: str | None
    torch: str


class Schedule(Record):
    """How long a backbone was pre-trained."""

    steps: PositiveInt
    batch_size: PositiveInt


class PretrainedBy(Record):
    """What decides whether a pre-training may be continued."""

    pretraining: Schedule


class Pretrained(Record):
    """The record of a backbone that was pre-trained, or fetched from a source."""

    run: dict[str, str | int]
    identity: PretrainedBy | None = None
    source: str | None = None
    top1: FiniteFloat | None = None


class Median(Record):
    """Milliseconds for an image."""

    median: FiniteFloat


class ArmLatency(Record):
    """Times of an arm's detector and its backbone."""

    arm: str
    detector: Median
    backbone: Median


class Latency(Record):
    """Times of all arms of a network on one device."""

    runs: list[ArmLatency]
    device: str | None = None


class MapScores(Record):
    """The scores of a map of an initialization; None where there is none."""

    arm: str
    seed: NonNegativeInt
    module: str
    call: NonNegativeInt
    channels: PositiveInt
    rankme: FiniteFloat | None
    alpha: FiniteFloat | None
    logme: FiniteFloat | None


class Forecast(Record):
    """The scores of a network's initializations, the maps of each in order of execution."""

    images: NonNegativeInt
    classes: NonNegativeInt
    constant: FiniteFloat | None
    scores: list[MapScores]
    notes: list[str]


class Checked(Record):
    """The summary of a data set that was found usable."""

    images: PositiveInt
    classes: list[str]
    notes: list[str]
    objects: NonNegativeInt | None = None


Kind = TypeVar("Kind", bound=Record)
VERSIONS: dict[type[Record], tuple[int, str]] = {
    Evaluation: (layout.EVALUATION_VERSION, "eigendet evaluate"),
    Trained: (layout.RUN_VERSION, "eigendet train"),
    Pretrained: (layout.RUN_VERSION, "eigendet pretrain"),
    Latency: (layout.LATENCY_VERSION, "eigendet latency"),
    Forecast: (layout.FORECAST_VERSION, "eigendet forecast"),
    Checked: (layout.DATA_VERSION, "eigendet check-data"),
}


def read(kind: type[Kind], file: Path) -> Kind:
    """Read a record of one of the kinds above.

    Raises:
        UserError: the file is missing, of another version, or holds something else.
    """
    version, command = VERSIONS[kind]
    content = read_json(file, f"what '{command}' writes")
    require_version(file, content, version, command)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        got = "is missing" if fault["type"] == "missing" else f"is {str(fault['input'])[:60]!r}: {fault['msg'].lower()}"
        raise UserError(
            f"{file}: {where} {got}; expected what '{command}' writes: delete the file, and run that again."
        ) from None


def read_evaluation(file: Path, run: Run) -> Evaluation:
    """Read the scores of a run.

    Raises:
        UserError: the file cannot be read, or is of another run.
    """
    evaluation = read(Evaluation, file)
    if evaluation.run.model_dump() != run._asdict():
        raise UserError(f"{file}: of the run {evaluation.run.model_dump()}; expected that of {run}.")
    return evaluation
