"""What other stages leave as JSON, as far as the page reads it; each is checked where it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError

from eigendet.config import layout
from eigendet.config.layout import Run
from eigendet.errors import UserError
from eigendet.files import read_json, require_version

Scores = dict[str, Annotated[float, Field(ge=0, le=1)] | None]  # None where the data has no object to score


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


class Evaluation(Record):
    """The scores of a run at its last snapshot, and at all that were scored."""

    run: RunNames
    boxes: Scores
    masks: Scores = {}
    classes: Scores = {}  # AP of boxes of each alone
    snapshots: list[SnapshotScores] = []


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
