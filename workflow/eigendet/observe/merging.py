"""One file of covariances made of several: over different images of one experiment, or with different steps."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import h5py
import torch

from eigendet.errors import UserError
from eigendet.moments.covariance import Covariance, merged
from eigendet.observe import hdf5, store
from eigendet.observe.records import TapRecord, read_tap, write_tap
from eigendet.observe.tap import Gradient, Tap


def join_steps(path: Path, parts: Sequence[Path]) -> None:
    """Write one file with all steps of several whose provenance and images are the same."""
    with store.create(path, store.provenance(parts[0]), store.images(parts[0])) as file:
        for part in parts:
            with store.open_checked(part) as source:
                for step in store.steps(source):
                    target = store.create_step(file, store.step_number(step))
                    for node in store.taps(step):
                        _merge_tap(target, [node])
                        file.check()


def merge(path: Path, parts: Sequence[Path], blocks: Sequence[int] = ()) -> None:
    """Write one file of all images in `parts`, which saw different images of one experiment.

    Their order does not matter; images come out by number, or by name. What they keep of parts of their own, the result
    keeps, those of one number together.

    Args:
        path: the HDF5 file to write.
        parts: the files to merge.
        blocks: for each of `parts` the number of the part of the result that it belongs to, or is; none: keep what
            the files keep.

    Raises:
        UserError: the parts differ in anything but their images, saw an image twice, or do not say which they saw.
    """
    seen = _images_of(parts)
    numbers = dict(zip(parts, blocks, strict=True)) if blocks else {}
    parts = sorted(parts, key=lambda part: min(seen[part], default=""))
    for other in parts[1:]:
        difference = _difference(_experiment(parts[0]), _experiment(other))
        if difference:
            raise UserError(f"{other} is of another experiment than {parts[0]}: {difference}")
    images = [image for part in parts for image in seen[part]]
    order = sorted(range(len(images)), key=lambda row: _place(images[row]))
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(store.open_checked(part)) for part in parts]
        ordered = [images[row] for row in order]
        file = stack.enter_context(store.create(path, store.provenance(parts[0]), ordered))
        for steps in zip(*map(store.steps, sources), strict=True):
            target = store.create_step(file, store.step_number(steps[0]))
            for name in hdf5.names(steps[0]):
                nodes = [hdf5.child(step, name) for step in steps]
                _merge_tap(target, nodes, order, [numbers[part] for part in parts if part in numbers])
                file.check()


def _merge_tap(
    target: h5py.Group, nodes: Sequence[h5py.Group], order: Sequence[int] | None = None, blocks: Sequence[int] = ()
) -> None:
    """Write one tap from the groups that several files have of it; `order` is that of the rows of its image means."""
    records = [read_tap(node, 0, gradients=True) for node in nodes]
    image_means = None
    if all(record.image_means is not None for record in records):
        image_means = torch.cat([torch.from_numpy(record.image_means) for record in records])
        image_means = image_means if order is None else image_means[list(order)]
    tap = Tap(
        key=records[0].key,
        position=store.position(nodes[0]),
        padding=records[0].padding,
        covariance=merged(record.accumulator for record in records),
        image_means=image_means,
        gradient=_gradient(records),
        weighting=records[0].weighting,
    )
    write_tap(target, tap, nodes[0]["scatter"].dtype, _parts(records, blocks))


def _gradient(records: Sequence[TapRecord]) -> Gradient | None:
    """Return the moments of the gradient over all records, which all have them or none has."""
    gradients = [record.gradient for record in records if record.gradient is not None]
    if not gradients:
        return None
    return Gradient(merged(own.moments for own in gradients), sum(own.passes for own in gradients))


def _parts(records: Sequence[TapRecord], blocks: Sequence[int]) -> dict[int, Covariance]:
    """Return the moments of parts of the images by number: of `blocks` if given, else of those that records keep."""
    accumulators: defaultdict[int, list[Covariance]] = defaultdict(list)
    if blocks:
        for block, record in zip(blocks, records, strict=True):
            accumulators[block].append(record.accumulator)
    elif any(record.parts for record in records):
        for record in records:
            for block, part in record.parts.items():
                accumulators[block].append(part)
        for record in records:
            if not record.parts:  # then it is one part itself
                accumulators[max(accumulators) + 1].append(record.accumulator)
    return {block: merged(accumulators[block]) for block in sorted(accumulators)}


def _images_of(parts: Sequence[Path]) -> dict[Path, list[str]]:
    """Return the images that each file saw.

    Raises:
        UserError: a file does not say, or saw one that an earlier one saw.
    """
    images_of: dict[Path, list[str]] = {}
    first_seen: dict[str, Path] = {}
    for part in parts:
        images = store.images(part)
        if images is None:
            raise UserError(f"{part}: does not say which images it saw, so it may overlap; save it with `images=`.")
        for image in images:
            if image in first_seen:
                raise UserError(
                    f"{part}: saw image '{image}', which {first_seen[image]} saw too; each may be merged once."
                )
            first_seen[image] = part
        images_of[part] = images
    return images_of


def _place(image: str) -> tuple[int, str]:
    """Return where an image stands among others: by its number if it has one."""
    return (int(image), "") if image.isdecimal() else (-1, image)


def _experiment(path: Path) -> dict[str, object]:
    """Return what must be equal in files that are merged."""
    with store.open_checked(path) as file:
        content = {name: value for name, value in store.read_provenance(file).items() if name != store.CODE}
        content["step"] = {
            store.step_number(step): {
                tap.name.rpartition("/")[2]: {
                    "channels": str(hdf5.number(tap, "channels")),
                    "padding": hdf5.text(tap, "padding"),
                    "weighting": hdf5.attributes(tap, ["weighting"]).get("weighting", "positions"),
                    "stored as": str(hdf5.child(tap, "scatter", h5py.Dataset).dtype),
                    "gradient": "there" if hdf5.has(tap, "gradient") else "missing",
                }
                for tap in store.taps(step)
            }
            for step in store.steps(file)
        }
        return content


def _difference(first: object, second: object, where: str = "") -> str:
    """Return the first difference of two plain values in words, or nothing."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return "" if first == second else f"{where} is {second!r}, not {first!r}."
    for key in [*first, *(key for key in second if key not in first)]:
        place = f"{where} {key}".strip()
        if key not in first or key not in second:
            return f"{place} is only in {'the latter' if key in first else 'the former'}."
        difference = _difference(first[key], second[key], place)
        if difference:
            return difference
    return ""
