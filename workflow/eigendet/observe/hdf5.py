"""HDF5 files of plain arrays and values: written so that a full disk is one error, and believed in nothing when read.

What is written carries checksums of HDF5: those of the metadata that version 1.10 brought, and Fletcher32 of arrays.
Texts are of fixed length and single numbers stand among the metadata, so that both are under these. Files of earlier
versions, without checksums, can be read.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

from eigendet.errors import UserError, first_line
from eigendet.files import replacing

CHUNK = 1 << 17  # elements that have one checksum
KINDS = {"f": "floating-point numbers", "i": "integers", "S": "texts"}  # as numpy calls them
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)  # what file systems say that have none
DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError)


class NewFile(h5py.File):
    """A file that is being written."""

    def __init__(self, sink: _Sink) -> None:
        super().__init__(sink, "w", libver=("v110", "v110"))
        self._sink = sink

    def check(self) -> None:
        """Check that all is written so far.

        Raises:
            UserError: the disk is full, or cannot be written.
        """
        self._sink.check()


class _Sink(io.RawIOBase):
    """A file whose writes never fail for HDF5, which cannot bear it: it crashes the process; `check` tells instead.

    After the first that has failed nothing is written.
    """

    def __init__(self, path: Path, shown: Path) -> None:
        self.file, self.shown, self.place = path.open("w+b", buffering=0), shown, 0
        self.error: OSError | None = None

    def __repr__(self) -> str:
        """Name the file: what HDF5 calls it."""
        return str(self.shown)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move."""
        self.place = self.file.seek(offset, whence)
        return self.place

    def tell(self) -> int:
        """Return the present place."""
        return self.place

    def readinto(self, buffer: Any) -> int:
        """Read what was written."""
        count = os.preadv(self.file.fileno(), [buffer], self.place)
        self.place += count
        return count

    def write(self, data: Any) -> int:
        """Write all of it, or remember why not."""
        left = memoryview(data).cast("B")
        begin, size = self.place, len(left)
        try:
            while left and self.error is None:
                left = left[os.pwrite(self.file.fileno(), left, begin + size - len(left)) :]
        except OSError as error:
            self.error = error
        self.place = begin + size
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the size."""
        try:
            return self.file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        if self.error is not None:
            raise UserError(f"{self.shown}: cannot be written ({self.error.strerror}); what was there stands.")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.file.close()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[NewFile]:
    """Yield a new file, which takes the place of `path` if the block succeeds.

    Raises:
        UserError: it cannot be written.
    """
    with replacing(path) as temporary, _Sink(temporary, path) as sink:
        with NewFile(sink) as file:
            yield file
        sink.check()


def write_array(group: h5py.Group, name: str, values: np.ndarray) -> None:
    """Write an array with checksums; a single number stands in the group's metadata, which have theirs."""
    if values.ndim and values.size:
        length = values.shape[-1]
        chunk = (*(1 for _ in values.shape[1:]), math.ceil(length / math.ceil(length / CHUNK)))  # the last is full too
        group.create_dataset(name, data=values, chunks=chunk, fletcher32=True)
    else:
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        group.create_dataset(name, data=values, dcpl=compact)


def write_attributes(node: h5py.Group, **values: str | int) -> None:
    """Write attributes of a group."""
    for name, value in values.items():
        node.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value


def opened(path: Path, expected: str) -> h5py.File:
    """Open a file for reading.

    Args:
        path: the file.
        expected: what was expected there, for messages.

    Raises:
        UserError: the file is missing, no HDF5, truncated, or locked by a program that writes it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; {expected}.")
    try:
        try:
            return h5py.File(path, "r")
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return h5py.File(path, "r", locking=False)
    except DAMAGE as error:
        if isinstance(error, BlockingIOError) or "already open for write" in str(error):
            raise UserError(
                f"{path}: locked by a program that has it open for writing; close that, or copy the file and read the "
                "copy. Where nothing has it open, set HDF5_USE_FILE_LOCKING=FALSE."
            ) from None
        if isinstance(error, PermissionError):
            raise UserError(f"{path}: cannot be read ({error.strerror}); {expected}.") from None
        raise UserError(f"{path}: not HDF5, or truncated ({first_line(error)}); {expected}. Write it again.") from None


def damaged(node: h5py.Group, name: str, what: str) -> UserError:
    """Return the error of what cannot be right at a place in a file."""
    names = (own.decode(errors="replace") if isinstance(own, bytes) else own for own in (node.name or "", name))
    place = "/".join(part for part in (own.strip("/") for own in names) if part)
    return UserError(f"{node.file.filename}: {place!r} {what}. The file is damaged, or was changed: write it again.")


@contextlib.contextmanager
def _reading(node: h5py.Group, name: str) -> Iterator[None]:
    """Turn what HDF5 raises while it reads into the project's error."""
    try:
        yield
    except DAMAGE as error:
        reason = "is missing" if isinstance(error, KeyError) else f"cannot be read ({first_line(error)})"
        raise damaged(node, name, reason) from None


def has(node: h5py.Group, name: str) -> bool:
    """Return whether a group holds something of this name."""
    with _reading(node, name):
        return name in node


def names(node: h5py.Group) -> list[str]:
    """Return the names of what a group holds."""
    with _reading(node, ""):
        return list(node)


def child(node: h5py.Group, name: str, kind: type = h5py.Group) -> Any:
    """Return a group or an array that a group holds itself.

    Raises:
        UserError: it is missing, of another kind, or a link to elsewhere, perhaps to another file.
    """
    with _reading(node, name):
        if not isinstance(node.get(name, getlink=True), h5py.HardLink):
            raise damaged(node, name, "is a link to elsewhere; expected it in the file itself")
        item = node[name]
    if not isinstance(item, kind):
        raise damaged(node, name, f"is a {type(item).__name__}; expected a {kind.__name__}")
    return item


def text(node: h5py.Group, name: str) -> str:
    """Return an attribute that is a text."""
    value = _attribute(node, name)
    if not isinstance(value, str):
        raise damaged(node, name, f"is {str(value)[:40]!r}; expected a text")
    return value


def attributes(node: h5py.Group, names: Iterable[str]) -> dict[str, str | int]:
    """Return those attributes of these names that there are."""
    with _reading(node, ""):
        there = [name for name in names if name in node.attrs]
    return {name: _attribute(node, name) for name in there}


def _attribute(node: h5py.Group, name: str) -> Any:
    """Return an attribute that is a text or an integer, of any type of these; HDF5 crashes on some that it is not."""
    with _reading(node, name):
        attribute = node.attrs.get_id(name)
        plain = attribute.shape == () and attribute.get_type().get_class() in (h5py.h5t.STRING, h5py.h5t.INTEGER)
        value = node.attrs[name] if plain else None
        value = value.decode() if isinstance(value, bytes) else value
    if value is None:
        raise damaged(node, name, "is an array, or of another type; expected a text or an integer")
    return value


def number(node: h5py.Group, name: str) -> int:
    """Return an attribute that is an integer from 0 on."""
    value = _attribute(node, name)
    if not isinstance(value, int | np.integer) or isinstance(value, bool | np.bool_) or value < 0:
        raise damaged(node, name, f"is {str(value)[:40]!r}; expected an integer from 0 on")
    return int(value)


def array(node: h5py.Group, name: str, shape: tuple[int | None, ...], kinds: str = "f") -> np.ndarray:
    """Return an array that a group holds.

    Args:
        node: the group.
        name: of the array.
        shape: its sizes; None: any.
        kinds: of its elements, one of KINDS.

    Raises:
        UserError: it is missing, has another shape or type, or is stored elsewhere.
    """
    dataset = child(node, name, h5py.Dataset)
    with _reading(node, name):
        there, kind, stored = dataset.shape, dataset.dtype.kind, dataset.id.get_storage_size()
        elsewhere = dataset.external is not None or dataset.is_virtual
        whole = dataset.compression is not None or stored >= dataset.size * dataset.dtype.itemsize
    if (
        kind not in kinds
        or there is None
        or len(there) != len(shape)
        or any(size not in (None, own) for own, size in zip(there, shape, strict=True))
    ):
        sizes = " x ".join("any" if size is None else str(size) for size in shape) or "one"
        raise damaged(
            node, name, f"has the shape {there} and elements of type {dataset.dtype}; expected {sizes} of kind {kinds}"
        )
    if elsewhere or not whole:
        raise damaged(node, name, "is stored outside of the file, or not all of it is; expected it in the file itself")
    with _reading(node, name):
        values: np.ndarray = dataset[()] if there else np.asarray(dataset[()])
        return values.astype(values.dtype.newbyteorder("="), copy=False)
