"""The HDF5 file of covariances: one file a run, written whole or not at all, checked when read.

    /                        attributes: format, version, provenance (JSON)
    /images                  identifiers of the images seen (UTF-8), where they are known
    /step_0000000            attribute: step
        /<module#call:point> attributes: module, call, point, channels, position (order of execution),
                             padding ("excluded"; "none": no images; "unknown": the model did not say),
                             weighting (what counts alike: "positions"; "images"; "entries" of the first dimension of
                             what is no map of images, such as the regions of a box head), undersampled (fewer samples
                             than channels: the smallest eigenvalues are 0 for that reason)
            count            int64: samples, that is images times positions
            weight           float64: of all samples; unless it is their count, which is their number of images then
            mean             float64 (C,)
            scatter          float64 or float32 (C (C + 1) / 2,): upper triangle by rows of the sum of
                             weight (x - mean)(x - mean)ᵀ
            image_means      float32 (images, C): mean over the positions of each of /images, NaN where it has none;
                             where they were kept, as by `eigendet covariance`
            parts/           at the last step of a run, of K parts of the images, for the jackknife: block (K,), the
                             part's number, count and weight (K,), mean (K, C), and scatter (K, C (C + 1) / 2),
                             always float32
            gradient/        where it was observed, of the gradient of the loss with respect to the map: attribute
                             passes (of images with objects), and count, mean and scatter as above

Covariance is scatter / weight; the raw second moment adds mean meanᵀ. So both can be read later.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from eigendet.errors import UserError, first_line, kind, some
from eigendet.files import Plain
from eigendet.observe import hdf5
from eigendet.observe.hdf5 import NewFile
from eigendet.observe.keys import TapKey, node_name, step_name
from eigendet.observe.records import TapRecord as TapRecord
from eigendet.observe.records import read_tap, write_gradient, write_tap
from eigendet.observe.tap import Gradient as Gradient
from eigendet.observe.tap import Tap

FORMAT, VERSION = "eigendet covariance", 5
READABLE = (3, 4, VERSION)  # 3 had no checksums, 4 no weights
CODE = "code"  # key in the provenance: what the code was, which may differ between parts of one experiment


def write_covariances(
    path: Path,
    snapshots: Iterable[tuple[int, Iterable[Tap]]],
    provenance: Mapping[str, Any],
    images: Sequence[str | int] | None = None,
    *,
    single: bool = False,
) -> None:
    """Write the taps of every snapshot, one tap in memory at a time; equal input gives equal bytes.

    Args:
        path: the HDF5 file to write.
        snapshots: pairs of a step and its taps.
        provenance: plain values that say what the file was made from.
        images: identifiers of the images seen, each once.
        single: scatter in float32; its rounding limits eigenvalues to about 1e-8 of the largest.

    Raises:
        UserError: a moment is not finite, or an image occurs twice. The earlier file stands.

    Examples:
        >>> import tempfile, torch
        >>> from eigendet import Covariance, TapKey
        >>> covariance = Covariance(3)
        >>> covariance.update(torch.eye(3))
        >>> tap = Tap(TapKey("fc", 0, "linear"), 0, "none", covariance)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "covariance.h5"
        ...     write_covariances(path, [(100, [tap])], {"model": "mine"}, ["first", "second", "third"])
        ...     record, = read(path)
        ...     record.step, str(record.key), record.count, images(path)
        (100, 'fc#0:linear', 3, ['first', 'second', 'third'])
    """
    with create(path, provenance, images) as file:
        for step, taps in snapshots:
            write_step(file, step, taps, single=single)


def write_step(file: NewFile, step: int, taps: Iterable[Tap], *, single: bool = False) -> dict[TapKey, int]:
    """Write the taps of a step into a file that `create` opened; return their numbers of channels."""
    group, channels = create_step(file, step), {}
    for tap in taps:
        write_tap(group, tap, _dtype(single))
        file.check()
        channels[tap.key] = tap.covariance.channels
    return channels


def write_gradients(
    file: NewFile, step: int, gradients: Iterable[tuple[TapKey, Gradient]], *, single: bool = False
) -> None:
    """Write gradients at the taps of a step that `write_step` has written, one in memory at a time."""
    for key, gradient in gradients:
        write_gradient(file[step_name(step)][node_name(key)], gradient, _dtype(single))
        file.check()


def read(path: Path) -> Iterator[TapRecord]:
    """Yield every tap of every step, steps ascending, taps in order of execution; without gradients.

    Raises:
        UserError: the file is missing, of another kind or another version, or anything in it cannot be so.
    """
    with open_checked(path) as file:
        for step in steps(file):
            for tap in taps(step):
                yield read_tap(tap, step_number(step))


def with_gradients(path: Path, step: int | None = None) -> Iterator[TapRecord]:
    """Yield every tap of a step with the moments of the loss's gradient there, in order of execution.

    Args:
        path: the file.
        step: None: the last.

    Raises:
        UserError: the file holds none, or no such step; or as `read`.

    Examples:
        >>> import tempfile, torch
        >>> from eigendet import Covariance, TapKey
        >>> moments = Covariance(2)
        >>> moments.update(torch.eye(2))
        >>> tap = Tap(TapKey("fc", 0, "linear"), 0, "none", moments, gradient=Gradient(moments, passes=1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_covariances(Path(folder) / "c.h5", [(0, [tap])], {})
        ...     record, = with_gradients(Path(folder) / "c.h5")
        >>> record.moment(centered=True).tolist(), record.gradient.second_moment.tolist(), record.gradient.positions
        ([[0.25, -0.25], [-0.25, 0.25]], [[0.5, 0.0], [0.0, 0.5]], 2.0)
    """
    with open_checked(path) as file:
        groups = {step_number(group): group for group in steps(file)}
        number = max(groups, default=0) if step is None else step
        if number not in groups:
            raise UserError(f"{path}: holds no step {number}; expected one of {some(list(map(str, groups)))}.")
        for tap in taps(groups[number]):
            record = read_tap(tap, number, gradients=True)
            if record.gradient is None:
                raise UserError(
                    f"{path}: holds no gradient at {record.key}; set covariance.gradients to true, and compute "
                    "covariances again."
                )
            yield record


def provenance(path: Path) -> Plain:
    """Return what the file was made from."""
    with open_checked(path) as file:
        return read_provenance(file)


def images(path: Path) -> list[str] | None:
    """Return the identifiers of the images seen, or None if the file does not say."""
    with open_checked(path) as file:
        return read_images(file)


def holds(path: Path, expected_provenance: Mapping[str, Any], expected_images: Sequence[str | int]) -> bool:
    """Return whether there is a whole file of just this provenance and these images, in any order."""
    if not path.exists():
        return False
    try:
        same_origin = provenance(path) == json.loads(json.dumps(expected_provenance))
        return same_origin and sorted(images(path) or []) == sorted(map(str, expected_images))
    except UserError:
        return False


def describe(path: Path) -> Iterator[str]:
    """Yield lines that say what is in a file: its provenance, its steps, and a table of the taps of the last one."""
    with open_checked(path) as file:
        yield f"{path}: {FORMAT}, version {hdf5.number(file, 'version')}, {path.stat().st_size / 1e6:,.1f} MB"
        yield json.dumps(read_provenance(file), indent=1)
        seen = read_images(file)
        yield "images: not recorded" if seen is None else f"images: {len(seen)}"
        groups = steps(file)
        yield f"steps: {', '.join(str(step_number(group)) for group in groups)}"
        if groups:
            yield f"taps at step {step_number(groups[-1])}: {len(groups[-1])}"
            yield from _table(groups[-1])


def _table(step: h5py.Group) -> Iterator[str]:
    """Yield a header, and a line for each tap of a step in order of execution."""
    width = max(map(len, step), default=0)
    observed = any(hdf5.has(tap, "gradient") for tap in taps(step))
    yield f"{'tap':<{width}}  channels     samples  padding   variance{'  gradient' if observed else ''}"
    for tap in taps(step):
        record = read_tap(tap, 0, gradients=True)
        note = "  fewer samples than channels" if record.undersampled else ""
        variance = np.trace(record.moment(centered=True))
        numbers = f"{len(record.mean):>8}  {record.count:>10}  {record.padding:<8}  {variance:<8.3g}"
        gradient = f"  {np.trace(record.gradient.second_moment):<8.3g}" if record.gradient else ""
        yield f"{node_name(record.key):<{width}}  {numbers}{gradient}{note}".rstrip()


def _dtype(single: bool) -> type[np.floating[Any]]:
    return np.float32 if single else np.float64


@contextlib.contextmanager
def create(path: Path, provenance: Mapping[str, Any], images: Sequence[str | int] | None) -> Iterator[NewFile]:
    """Yield a new file without steps, which takes the place of `path` if the block succeeds.

    Raises:
        UserError: an image occurs twice, or the file cannot be written.
    """
    names = None if images is None else [str(image) for image in images]
    if names is not None and len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: image '{twice}' would be recorded twice; every image counts once.")
    with hdf5.writing(path) as file:
        text = json.dumps(provenance, indent=1, sort_keys=True)
        hdf5.write_attributes(file, format=FORMAT, version=VERSION, provenance=text)
        if names is not None:
            hdf5.write_array(file, "images", np.array([name.encode() for name in names], dtype=bytes))
        yield file


def create_step(file: h5py.File, step: int) -> h5py.Group:
    """Create the group of a step in a file."""
    group = file.create_group(step_name(step))
    hdf5.write_attributes(group, step=step)
    return group


def steps(file: h5py.File) -> list[h5py.Group]:
    """Return the groups of steps, ascending.

    Raises:
        UserError: the file holds what is none, or one of another number than its name says.
    """
    groups = [hdf5.child(file, name) for name in hdf5.names(file) if name != "images"]
    for group in groups:
        if group.name != f"/{step_name(step_number(group))}":
            raise hdf5.damaged(group, "step", f"is {step_number(group)}; expected that of the group's name")
    return sorted(groups, key=step_number)


def step_number(step: h5py.Group) -> int:
    """Return the number of a step."""
    return hdf5.number(step, "step")


def taps(step: h5py.Group) -> list[h5py.Group]:
    """Return the groups of the taps of a step, in order of execution."""
    return sorted((hdf5.child(step, name) for name in hdf5.names(step)), key=position)


def position(tap: h5py.Group) -> int:
    """Return the place of a tap in the order of execution."""
    return hdf5.number(tap, "position")


def read_provenance(file: h5py.File) -> Plain:
    """Return what a file was made from."""
    try:
        content = json.loads(hdf5.text(file, "provenance"))
    except (ValueError, RecursionError) as error:
        raise hdf5.damaged(file, "provenance", f"is not JSON ({first_line(error)})") from None
    if not isinstance(content, dict):
        raise hdf5.damaged(file, "provenance", f"is {kind(content)}; expected an object")
    return content


def read_images(file: h5py.File) -> list[str] | None:
    """Return the identifiers of the images seen, or None if the file does not say."""
    if not hdf5.has(file, "images"):
        return None
    try:
        names = [name.decode() for name in hdf5.array(file, "images", (None,), "S").tolist()]
    except UnicodeDecodeError as error:
        raise hdf5.damaged(file, "images", f"are not text ({error})") from None
    if len(set(names)) != len(names):
        raise hdf5.damaged(file, "images", "names an image twice")
    return names


def open_checked(path: Path) -> h5py.File:
    """Open a file of covariances for reading.

    Raises:
        UserError: the file is missing, truncated, locked, of another kind or another version.
    """
    expected = f"expected a file written by 'eigendet covariance' (format '{FORMAT}', version {VERSION})"
    file = hdf5.opened(path, expected)
    try:
        mark = hdf5.attributes(file, ("format", "version"))
        if mark.get("format") != FORMAT or mark.get("version") not in READABLE:
            own, version = (str(mark.get(name))[:40] for name in ("format", "version"))
            raise UserError(f"{path}: format {own!r}, version {version}; {expected}. Write it again.")
    except UserError:
        file.close()
        raise
    return file
