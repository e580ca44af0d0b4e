"""The HDF5 file of covariances: one file a run, written whole or not at all, checked when read.

    /                        attributes: format, version, provenance (JSON)
    /images                  identifiers of the images seen (UTF-8), where they are known
    /step_0000000            attribute: step
        /<module#call:point> attributes: module, call, point, channels, position (order of execution),
                             padding ("excluded"; "none": no images; "unknown": the model did not say),
                             undersampled (fewer samples than channels: the smallest eigenvalues are 0 for that reason)
            count            int64: samples, that is images times positions
            mean             float64 (C,)
            scatter          float64 or float32 (C (C + 1) / 2,): upper triangle by rows of the sum of
                             (x - mean)(x - mean)ᵀ
            image_means      float32 (images, C): mean over the positions of each of /images, NaN where it has none;
                             where they were kept, as in a dump
            parts/           at the last step of a dump, of K parts of the images, for the jackknife: block (K,), the
                             part's number, count (K,), mean (K, C), and scatter (K, C (C + 1) / 2), always float32

Covariance is scatter / count; the raw second moment adds mean meanᵀ. So both can be read later.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from eigendet.errors import UserError
from eigendet.files import replacing
from eigendet.observe.covariance import Covariance, Tap
from eigendet.observe.keys import TapKey, node_name, step_name

FORMAT, VERSION = "eigendet covariance", 3
# Of the provenance: what the code was. It may differ between parts of one experiment.
CODE = "code"


@dataclass(frozen=True)
class Record:
    """One tap at one step, as read."""

    step: int
    key: TapKey
    padding: str
    count: int
    mean: np.ndarray  # (C,)
    scatter: np.ndarray  # (C, C)
    image_means: np.ndarray | None = None  # (images, C), where they were kept
    parts: Mapping[int, Covariance] = field(
        default_factory=dict
    )  # of parts of the images by number, where they were kept

    @property
    def undersampled(self) -> bool:
        """Fewer samples than channels."""
        return self.count < len(self.mean)

    def moment(self, centered: bool) -> np.ndarray:
        """Covariance, or the raw second moment, (C, C)."""
        covariance: np.ndarray = self.scatter / max(self.count, 1)
        return covariance if centered else covariance + np.outer(self.mean, self.mean)

    @property
    def accumulator(self) -> Covariance:
        mean, scatter = torch.from_numpy(self.mean), torch.from_numpy(self.scatter)
        return Covariance.from_moments(self.count, mean, scatter) if self.count else Covariance(len(self.mean))

    def leaving_one_out(self) -> Iterator[Record]:
        """The tap without each of its parts in turn: what `merge` adds (Chan et al. 1979) is taken away again."""
        if not self.parts:
            return
        whole = merged(self.parts.values())
        count, mean, scatter = whole.count, _mean(whole), whole.scatter.numpy()
        for part in self.parts.values():
            rest, apart = count - part.count, _mean(part) - mean
            shifted = part.count * count / max(rest, 1) * np.outer(apart, apart) if part.count else 0.0
            without = mean - part.count / max(rest, 1) * apart
            yield replace(self, count=rest, mean=without, scatter=scatter - part.scatter.numpy() - shifted, parts={})

    def equals(self, other: Record | None) -> bool:
        """Whether both are of one tensor: a block's output is that of its last activation."""
        if other is None or (self.step, self.count, len(self.mean)) != (other.step, other.count, len(other.mean)):
            return False
        return np.array_equal(self.mean, other.mean) and np.array_equal(self.scatter, other.scatter)


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
        provenance: plain values that say what the file was made from.
        images: identifiers of the images seen, each once.
        single: scatter in float32; its rounding limits eigenvalues to about 1e-8 of the largest.

    Raises:
        UserError: a moment is not finite, or an image occurs twice. The earlier file stands.
    """
    with _writing(path, provenance, images) as file:
        for step, taps in snapshots:
            group = file.create_group(step_name(step))
            group.attrs["step"] = step
            for tap in taps:
                _write_tap(group, tap, np.float32 if single else np.float64)


def join(path: Path, parts: Sequence[Path]) -> None:
    """Write one file with all steps of several whose provenance and images are the same."""
    with _writing(path, provenance(parts[0]), images(parts[0])) as file:
        for part in parts:
            with _open(part) as source:
                for name in _steps(source):
                    source.copy(name, file)


def merge(path: Path, parts: Sequence[Path], blocks: Sequence[int] = ()) -> None:
    """Write one file of all images in `parts`, which saw different images of one experiment.

    Their order does not matter; images come out by number, or by name. What they keep of parts of their own, the result
    keeps, those of one number together.

    Args:
        blocks: for each of `parts` the number of the part of the result that it belongs to, or is; none: keep none.

    Raises:
        UserError: the parts differ in anything but their images, saw an image twice, or do not say which they saw.
    """
    seen: dict[str, Path] = {}
    for part in parts:
        known = images(part)
        if known is None:
            raise UserError(f"{part}: does not say which images it saw, so it may overlap; save it with `images=`.")
        for image in known:
            if image in seen:
                raise UserError(f"{part}: saw image '{image}', which {seen[image]} saw too; each may be merged once.")
            seen[image] = part
    numbers = dict(zip(parts, blocks, strict=True)) if blocks else {}
    parts = sorted(parts, key=lambda part: min(images(part) or [""]))
    first, *others = parts
    for other in others:
        difference = _difference(_experiment(first), _experiment(other))
        if difference:
            raise UserError(f"{other} is of another experiment than {first}: {difference}")
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(_open(part)) for part in parts]
        together = [image for part in parts for image in images(part) or []]
        order = sorted(range(len(together)), key=lambda row: _place(together[row]))
        file = stack.enter_context(_writing(path, provenance(first), [together[row] for row in order]))
        for step in _steps(files[0]):
            group = file.create_group(step)
            group.attrs["step"] = files[0][step].attrs["step"]
            for name, node in files[0][step].items():
                records = [_record(source[step][name], 0) for source in files]
                total = merged(record.accumulator for record in records)
                kept = _parts(records, [numbers[part] for part in parts] if blocks else [])
                means = [torch.from_numpy(record.image_means) for record in records if record.image_means is not None]
                kept_means = torch.cat(means)[order] if len(means) == len(records) else None
                tap = Tap(_key(node), int(node.attrs["position"]), str(node.attrs["padding"]), total, kept_means)
                _write_tap(group, tap, node["scatter"].dtype, kept)


def _parts(records: Sequence[Record], blocks: Sequence[int]) -> dict[int, Covariance]:
    """The parts of several records by number, which are those given or those that the records have."""
    found: dict[int, list[Covariance]] = defaultdict(list)
    for block, record in zip(blocks, records, strict=False):
        found[block].append(record.accumulator)
    if not blocks:
        for record in records:
            for block, part in record.parts.items():
                found[block].append(part)
        for record in records if found else ():
            if not record.parts:  # then it is one part itself
                found[max(found) + 1].append(record.accumulator)
    return {block: merged(found[block]) for block in sorted(found)}


def _place(image: str) -> tuple[int, str]:
    """Where an image stands among others: by its number if it has one."""
    return (int(image), "") if image.isdecimal() else (-1, image)


def merged(accumulators: Iterable[Covariance]) -> Covariance:
    """All samples of several accumulators, which stay as they are; at least one."""
    first, *others = accumulators
    total = Covariance(first.channels)
    for other in (first, *others):
        total.merge(other)
    return total


def provenance(path: Path) -> dict[str, Any]:
    """What the file was made from."""
    with _open(path) as file:
        content: dict[str, Any] = json.loads(file.attrs["provenance"])
        return content


def holds(path: Path, wanted: Mapping[str, Any], seen: Sequence[str | int]) -> bool:
    """Whether there is a whole file of just this provenance and these images, in any order."""
    if not path.exists():
        return False
    try:
        return provenance(path) == json.loads(json.dumps(wanted)) and sorted(images(path) or []) == sorted(
            map(str, seen)
        )
    except UserError:
        return False


def images(path: Path) -> list[str] | None:
    """Identifiers of the images seen, or None if the file does not say."""
    with _open(path) as file:
        return [name.decode() for name in file["images"][()]] if "images" in file else None


def read(path: Path) -> Iterator[Record]:
    """Every tap of every step, steps ascending, taps in order of execution.

    Raises:
        UserError: the file is missing, truncated, of another kind or another version.
    """
    with _open(path) as file:
        for name in _steps(file):
            for tap in sorted(file[name].values(), key=lambda tap: int(tap.attrs["position"])):
                yield _record(tap, int(file[name].attrs["step"]))


def describe(path: Path) -> Iterator[str]:
    """Lines that say what is in a file: where it comes from, its steps, and a table of the taps of the last one."""
    with _open(path) as file:
        yield f"{path}: {FORMAT}, version {VERSION}, {path.stat().st_size / 1e6:,.1f} MB"
        yield json.dumps(json.loads(file.attrs["provenance"]), indent=1)
        yield f"images: {len(file['images'])}" if "images" in file else "images: not recorded"
        steps = _steps(file)
        yield f"steps: {', '.join(str(file[name].attrs['step']) for name in steps)}"
        if not steps:
            return
        taps = sorted(file[steps[-1]].items(), key=lambda item: int(item[1].attrs["position"]))
        yield f"taps at step {file[steps[-1]].attrs['step']}: {len(taps)}"
        width = max((len(name) for name, _ in taps), default=0)
        yield f"{'tap':<{width}}  channels     samples  padding   variance"
        for name, tap in taps:
            record = _record(tap, 0)
            note = "  fewer samples than channels" if record.undersampled else ""
            variance = np.trace(record.moment(centered=True))
            numbers = f"{len(record.mean):>8}  {record.count:>10}  {record.padding:<8}  {variance:<8.3g}"
            yield f"{name:<{width}}  {numbers}{note}".rstrip()


@contextlib.contextmanager
def _writing(path: Path, provenance: Mapping[str, Any], images: Sequence[str | int] | None) -> Iterator[h5py.File]:
    names = None if images is None else [str(image) for image in images]
    if names is not None and len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: image '{twice}' would be recorded twice; every image counts once.")
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        text = json.dumps(provenance, indent=1, sort_keys=True)
        file.attrs.update({"format": FORMAT, "version": VERSION, "provenance": text})
        if names is not None:
            file["images"] = np.array([name.encode() for name in names], dtype=bytes)
        yield file


def _write_tap(group: h5py.Group, tap: Tap, dtype: Any, parts: Mapping[int, Covariance] | None = None) -> None:
    covariance, key = tap.covariance, tap.key
    count = covariance.count
    scatter = covariance.scatter.cpu().numpy()
    mean = _mean(covariance)
    if not (np.isfinite(scatter).all() and np.isfinite(mean).all()):
        raise UserError(f"{key}: its moments hold NaN or infinity; nothing was written to {group.file.filename}.")
    node = group.create_group(node_name(key))
    node.attrs.update(
        {
            "module": key.module,
            "call": key.call,
            "point": key.point,
            "channels": covariance.channels,
            "position": tap.position,
            "padding": tap.padding,
            "undersampled": count < covariance.channels,
        }
    )
    node.create_dataset("count", data=np.int64(count))
    node.create_dataset("mean", data=mean)
    triangle = _triangle(covariance.channels)
    node.create_dataset("scatter", data=scatter[triangle].astype(dtype))
    if tap.image_means is not None:
        node.create_dataset("image_means", data=tap.image_means.cpu().numpy().astype(np.float32))
    if parts:
        kept = node.create_group("parts")
        kept.create_dataset("block", data=np.array(list(parts), np.int64))
        kept.create_dataset("count", data=np.array([part.count for part in parts.values()], np.int64))
        kept.create_dataset("mean", data=np.array([_mean(part) for part in parts.values()]))
        packed = [part.scatter.cpu().numpy()[triangle].astype(np.float32) for part in parts.values()]
        kept.create_dataset("scatter", data=np.array(packed))


def _mean(covariance: Covariance) -> np.ndarray:
    found: np.ndarray = covariance.mean.cpu().numpy() if covariance.count else np.zeros(covariance.channels)
    return found


def _record(tap: h5py.Group, step: int) -> Record:
    channels = int(tap.attrs["channels"])
    scatter = _unpacked(tap["scatter"][()], channels)
    means = tap["image_means"][()] if "image_means" in tap else None
    whole = Record(step, _key(tap), str(tap.attrs["padding"]), int(tap["count"][()]), tap["mean"][()], scatter, means)
    if "parts" not in tap:
        return whole
    moments = zip(*(tap["parts"][name] for name in ("block", "count", "mean", "scatter")), strict=True)
    parts = {
        int(block): replace(whole, count=int(count), mean=mean, scatter=_unpacked(packed, channels)).accumulator
        for block, count, mean, packed in moments
    }
    return replace(whole, parts=parts)


@functools.lru_cache(maxsize=4)  # finding them takes longer than using them
def _triangle(channels: int) -> np.ndarray:
    """Which entries of a matrix (C, C) are stored."""
    return np.triu(np.ones((channels, channels), bool))


def _unpacked(packed: np.ndarray, channels: int) -> np.ndarray:
    matrix = np.zeros((channels, channels))
    matrix[_triangle(channels)] = packed
    matrix += np.triu(matrix, 1).T
    return matrix


def _key(tap: h5py.Group) -> TapKey:
    return TapKey(str(tap.attrs["module"]), int(tap.attrs["call"]), str(tap.attrs["point"]))


def _steps(file: h5py.File) -> list[str]:
    """Names of the groups of steps, ascending."""
    return sorted((name for name in file if name != "images"), key=lambda name: int(file[name].attrs["step"]))


def _experiment(path: Path) -> dict[str, Any]:
    """What must be equal in files that are merged."""
    with _open(path) as file:
        content = {name: value for name, value in json.loads(file.attrs["provenance"]).items() if name != CODE}
        taps = {
            file[step].attrs["step"]: {
                name: {attribute: str(tap.attrs[attribute]) for attribute in ("channels", "padding")}
                | {"stored as": str(tap["scatter"].dtype)}
                for name, tap in file[step].items()
            }
            for step in _steps(file)
        }
        return content | {"step": taps}


def _difference(first: Any, second: Any, where: str = "") -> str:
    """The first difference of two plain values in words, or nothing."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in [*first, *(key for key in second if key not in first)]:
            place = f"{where} {key}".strip()
            if key not in first or key not in second:
                return f"{place} is only in {'the latter' if key in first else 'the former'}."
            found = _difference(first[key], second[key], place)
            if found:
                return found
        return ""
    return "" if first == second else f"{where} is {second!r}, not {first!r}."


def _open(path: Path) -> h5py.File:
    wanted = f"expected a file written by 'eigendet covariance' (format '{FORMAT}', version {VERSION})"
    if not path.is_file():
        raise UserError(f"{path}: no such file; {wanted}.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: not HDF5, or truncated ({error}); {wanted}. Dump it again.") from None
    found = file.attrs.get("format"), file.attrs.get("version")
    if found != (FORMAT, VERSION):
        file.close()
        raise UserError(f"{path}: format '{found[0]}', version {found[1]}; {wanted}. Dump it again.")
    return file
