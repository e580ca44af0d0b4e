"""The folder of a run, and the record that completes it.

run.json                     what was run and what came of it; written last, so its presence means complete
log.csv                      losses, learning rate and throughput, a row every `log_every` steps
checkpoints/step_0000000.pt  snapshots: step, weights and definition, tensors and plain values only
last.ckpt                    what resuming needs; removed when the run is complete
backbone.pt                  the weights of a pre-trained backbone
events.out.tfevents.*        rows of the log for TensorBoard, if settings ask for it

Beside each file of tensors stands its SHA-256, FILE.sha256, as `sha256sum --check` takes it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import nn

from eigendet import __version__
from eigendet.config import Experiment, layout
from eigendet.errors import UserError, some
from eigendet.files import Plain, digest_file, read_json, require_fields, require_version, write_json
from eigendet.networks.definition import Definition
from eigendet.networks.snapshots import write_snapshot

# Of the fields of a run's record.
TYPES: dict[str, type] = {
    "run": dict, "run.backbone": str, "run.seed": int, "costs": dict, "identity": dict, "definition": dict,
    "snapshots": list, "seconds": float, "images_per_second": float, "processes": int, "device": str,
}  # fmt: skip

Identity = Plain  # values that fix the outcome of a run: another identity, another run


class RunNames(TypedDict):
    """What a run is called: all four of a detector's run, backbone and seed of pre-training."""

    arm: NotRequired[str]
    backbone: str
    detector: NotRequired[str]
    seed: NotRequired[int]


def job_name(experiment: Experiment, command: str, run: RunNames) -> str:
    """Return what a command is called where it works on a run: by its arm and seed, and what there are several of."""
    names = [command]
    if "arm" in run:
        names.append(run["arm"])
    if len(experiment.backbones) > 1:
        names.append(run["backbone"])
    if "detector" in run and len(experiment.detectors) > 1:
        names.append(run["detector"])
    if "seed" in run:
        names.append(f"seed {run['seed']}")
    return " ".join(names)


class CodeVersions(TypedDict):
    """What the code was: versions of the library and of torch, and the checkout's revision, '+' if it was changed."""

    eigendet: str
    revision: str
    torch: str


class FetchedBackbone(CodeVersions):
    """The record of a backbone that was pre-trained elsewhere: no run, only weights and their source."""

    run: RunNames
    source: str


@dataclass(frozen=True)
class RunRecord:
    """What was run and what came of it; as JSON, the content of run.json.

    Attributes:
        run: what the run is called.
        costs: parameters and multiply-accumulates, as `definitions.costs_of` returns them.
        identity: what decides whether a run may be continued, or counts as complete.
        definition: the network.
        snapshots: steps at which weights were kept, ascending.
        seconds: time of the training loop, over all its continuations.
        images_per_second: mean throughput over all processes.
        processes: how many trained together.
        device: the name of the device that each had.
        eigendet: version of the library.
        revision: of the checkout, see `CodeVersions`.
        torch: version of PyTorch.
        top1: accuracy on the validation split; of a classifier.
    """

    run: RunNames
    costs: dict[str, int]
    identity: Identity
    definition: Definition
    snapshots: list[int]
    seconds: float
    images_per_second: float
    processes: int
    device: str
    eigendet: str
    revision: str
    torch: str
    top1: float | None = None

    @property
    def last_step(self) -> int:
        """The step of the last snapshot."""
        return self.snapshots[-1]

    def plain(self) -> Plain:
        """Return the record as plain values; a detector's run has no key `top1`."""
        values = vars(self) | {"definition": self.definition.plain()}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    >>> RunFolder(Path("out/scratch")).snapshot(1200).as_posix()
    'out/scratch/checkpoints/step_0001200.pt'
    """

    path: Path

    @property
    def record(self) -> Path:
        """The record's file; it is there if, and only if, the run is complete."""
        return self.path / "run.json"

    @property
    def log(self) -> Path:
        """The table of losses."""
        return self.path / "log.csv"

    @property
    def checkpoint(self) -> Path:
        """The file that an interrupted run goes on from."""
        return self.path / "last.ckpt"

    @property
    def backbone(self) -> Path:
        """The weights of a pre-trained backbone."""
        return self.path / "backbone.pt"

    def snapshot(self, step: int) -> Path:
        """Return the file of the weights after so many steps."""
        return self.path / "checkpoints" / f"step_{step:07d}.pt"

    def write_snapshot(self, step: int, model: nn.Module, definition: Definition) -> None:
        """Write the weights after so many steps; `networks.snapshots.read_snapshot` reads them."""
        write_snapshot(self.snapshot(step), step, model, definition)

    def remove_snapshots(self) -> None:
        """Remove all snapshots, which are of an earlier run."""
        for stale in self.snapshot(0).parent.glob("step_*.pt"):
            _remove(stale)

    def complete(self, record: RunRecord | FetchedBackbone) -> None:
        """Write the record, which marks the run as complete, and remove what only resuming needed."""
        content = record.plain() if isinstance(record, RunRecord) else record
        write_json(self.record, {"version": layout.RUN_VERSION, **content})
        _remove(self.checkpoint)

    def is_complete(self, identity: Identity) -> bool:
        """Return whether the folder holds this very run, complete.

        Raises:
            UserError: it holds another complete run, or one whose record has another format.
        """
        if not self.record.is_file():
            return False
        require_same(self.record, self._read().get("identity", {}), identity)
        return True

    def read(self) -> RunRecord:
        """Return the record of a complete run.

        Raises:
            UserError: there is none, it has another format, or it is of weights that were trained elsewhere.
        """
        content = self._read()
        names = {field.name for field in fields(RunRecord)}
        missing = sorted(names - content.keys() - {"top1"})
        if missing or not content["snapshots"]:
            lacking = some(missing) or "snapshots"
            raise UserError(f"{self.record}: names no {lacking}; expected the record of a run trained here.")
        require_fields(self.record, content, TYPES)
        snapshots = content["snapshots"]
        if not all(type(step) is int and step >= 0 for step in snapshots) or sorted(set(snapshots)) != snapshots:
            raise UserError(f"{self.record}: snapshots is {str(snapshots)[:60]}; expected ascending steps from 0 on.")
        try:
            definition = Definition.of(content["definition"])
        except ValueError as error:
            raise UserError(f"{self.record}: its definition cannot be read ({error}); make the run anew.") from None
        return RunRecord(**{name: content[name] for name in names & content.keys()} | {"definition": definition})

    def read_detector_run(self) -> RunRecord:
        """Return the record of a complete run of a detector.

        Raises:
            UserError: as in `read`, or the run is of a classifier.
        """
        record = self.read()
        if record.definition.detector is None:
            raise UserError(f"{self.path}: a run of a classifier; expected the folder of a detector's run.")
        return record

    def _read(self) -> Plain:
        content: Plain = read_json(self.record, "the record of a complete run, written when training ends")
        run = content.get("run") if isinstance(content, dict) else None
        detector = not isinstance(run, dict) or "arm" in run
        command = "train" if detector else "fetch" if "source" in content else "pretrain"
        require_version(self.record, content, layout.RUN_VERSION, f"eigendet {command}")
        return content


def runs_by_seed(folders: Iterable[Path], arm: str | None, given: str) -> dict[int, tuple[RunFolder, RunRecord]]:
    """Return complete runs of detectors of one arm, each with its record, by seed.

    Args:
        folders: of the runs.
        arm: theirs.
        given: what a folder is called where it is given, in errors.

    Raises:
        UserError: a run is not complete, or of another arm, or two are of one seed.
    """
    runs: dict[int, tuple[RunFolder, RunRecord]] = {}
    for run in map(RunFolder, folders):
        record = run.read_detector_run()
        seed, own = record.run.get("seed", -1), record.run.get("arm")
        if own != arm or seed in runs:
            what = f"seed {seed} of the arm {own}, like another {given}" if own == arm else f"the arm {own}"
            raise UserError(f"{run.path}: a run of {what}; expected one of the arm {arm} for each seed.")
        runs[seed] = run, record
    return runs


def require_same(path: Path, there: Identity, now: Identity) -> None:
    """Raise UserError unless two identities are equal; it names every key in which they differ.

    Args:
        path: the file that holds the identity `there`.
        there: the identity of the run in the folder.
        now: the identity of the run that is asked for.
    """
    before, after = _flat(there), _flat(now)
    apart = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if apart:
        differences = "; ".join(f"{key} is {before.get(key)!r} there and {after.get(key)!r} now" for key in apart)
        raise UserError(
            f"{path}: belongs to another run: {differences}. Delete it to train anew, or use another folder."
        )


def _remove(file: Path) -> None:
    """Remove a file, if it is there, and the digest beside it."""
    for path in (file, digest_file(file)):
        path.unlink(missing_ok=True)


def code_versions() -> CodeVersions:
    """Return what the code is now."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        revision = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        revision, status = "unknown", ""
    changed = "+" if status.strip() else ""
    return {"eigendet": __version__, "revision": f"{revision}{changed}", "torch": torch.__version__}


def _flat(value: Any, prefix: str = "") -> Plain:
    """Return the leaves of nested dicts by their dotted paths."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: Plain = {}
    for key, entry in value.items():
        flat |= _flat(entry, f"{prefix}.{key}" if prefix else str(key))
    return flat
