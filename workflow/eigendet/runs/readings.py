"""The same spectra under each reading: what every rule, moment and weighting makes of an arm's last snapshots.

Covariance files hold centered and raw moments in one weighting, the experiment's. For the other, the last snapshot of
each run passes the probe images once more.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import pandas as pd

from eigendet import processes
from eigendet.config import Experiment
from eigendet.data.datasets import open_split
from eigendet.errors import UserError, some
from eigendet.files import value_digest, write_text
from eigendet.moments.weighting import Weighting
from eigendet.networks.definition import Definition
from eigendet.observe import store
from eigendet.runs.covariances import compute_covariance, probe_indices
from eigendet.runs.folder import RunFolder, RunRecord, runs_by_seed
from eigendet.widths import readings
from eigendet.widths.dimensions import require_network


class _Observed(NamedTuple):
    """A run, and its covariance file."""

    folder: RunFolder
    record: RunRecord
    covariance: Path


def write_readings(
    experiment: Experiment, network: Definition, folders: Sequence[Path], covariances: Sequence[Path], output: Path
) -> pd.DataFrame | None:
    """Write the table of readings, see `widths.readings.Reading`, as CSV; return it in the first process.

    Args:
        experiment: whose `widths.arm` is read.
        network: whose widths are chosen; without widths.
        folders: of the runs of that arm, one for each seed.
        covariances: what `eigendet covariance` wrote of each.
        output: the file.

    Raises:
        UserError: a run or its covariance file is missing, is of another network or arm, or differs in snapshot, images
            or weighting from what the experiment says.
    """
    runs = _by_seed(experiment, network, folders, covariances)
    _check_images(experiment, runs)
    own = experiment.covariance.weighting
    (other,) = (weighting for weighting in get_args(Weighting) if weighting != own)
    settings = experiment.covariance.model_copy(update={"weighting": other, "jackknife": None, "gradients": False})
    reweighted = experiment.model_copy(update={"covariance": settings})
    observed = output.with_name(f"{output.name}.observed")
    files = {seed: observed / f"seed_{seed}.h5" for seed in runs}
    for seed, run in runs.items():
        compute_covariance(reweighted, run.folder.path, files[seed], last_alone=True)
    processes.wait()
    if processes.rank() != 0:
        return None
    by_weighting = {own: {seed: run.covariance for seed, run in runs.items()}, other: files}
    table = readings.readings(experiment, network, by_weighting)
    write_text(output, table.to_csv(index=False))
    shutil.rmtree(observed)
    return table


def _by_seed(
    experiment: Experiment, network: Definition, folders: Sequence[Path], covariances: Sequence[Path]
) -> dict[int, _Observed]:
    """Return the runs whose spectra are read, each with its covariance file, by seed.

    Raises:
        UserError: one is of another arm or network, or has no file, or one of another snapshot.
    """
    runs, files = {}, _covariances_by_run(covariances)
    for seed, (folder, record) in runs_by_seed(folders, experiment.widths.arm, "RUN").items():
        require_network(folder.path, record.definition, network)
        if _name(record.run) not in files:
            raise UserError(f"--covariance: of the run {folder.path} there is none; give its covariance file.")
        file = files.pop(_name(record.run))
        _check_file(experiment, file, record)
        runs[seed] = _Observed(folder, record, file)
    if files:
        raise UserError(f"{next(iter(files.values()))}: of none of the runs {some([str(path) for path in folders])}.")
    return runs


def _covariances_by_run(covariances: Sequence[Path]) -> dict[str, Path]:
    """Return covariance files by what their runs are called.

    Raises:
        UserError: two are of one run; one is of none.
    """
    files: dict[str, Path] = {}
    for file in covariances:
        run = store.provenance(file).get("run")
        if not isinstance(run, dict):
            raise UserError(f"{file}: names no run; expected a file written by 'eigendet covariance'.")
        if _name(run) in files:
            raise UserError(f"{file}: of the same run as {files[_name(run)]}; expected one file for each.")
        files[_name(run)] = file
    return files


def _name(run: Mapping[str, object]) -> str:
    return str(sorted(run.items()))


def _check_file(experiment: Experiment, file: Path, record: RunRecord) -> None:
    """Raise UserError unless a covariance file is of this experiment and of the run's last snapshot."""
    provenance, again = store.provenance(file), "run 'eigendet covariance' again"
    there = {"weighting": "positions"} | provenance  # before version 5 there was no other
    for key, value in (("experiment", experiment.name), ("weighting", experiment.covariance.weighting)):
        if there.get(key) != value:
            raise UserError(f"{file}: {key} is '{there.get(key)}' there, and '{value}' in the configuration; {again}.")
    if value_digest(provenance.get("definition")) != value_digest(record.definition.plain()):
        raise UserError(f"{file}: of another network than its run has now; {again}.")
    with store.open_checked(file) as content:
        steps = [store.step_number(step) for step in store.steps(content)]
    if steps[-1:] != [record.last_step]:
        raise UserError(f"{file}: its last step is {steps[-1:]}; that of the run is {record.last_step}: {again}.")


def _check_images(experiment: Experiment, runs: Mapping[int, _Observed]) -> None:
    """Raise UserError unless every file saw all probe images and no others."""
    settings = experiment.covariance
    available = len(open_split(experiment, "detection", settings.split))
    expected = probe_indices(available, settings.images, f"data.detection.{settings.split}")
    for run in runs.values():
        seen = store.images(run.covariance) or []
        if sorted(seen) != sorted(map(str, expected)):
            raise UserError(
                f"{run.covariance}: saw {len(seen)} images, not the {len(expected)} probe images of the configuration; "
                "run 'eigendet covariance' again, or merge all its shards."
            )
