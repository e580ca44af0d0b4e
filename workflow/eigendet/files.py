"""Files that are either whole or absent, digests that say whether two are the same, and versions of their formats."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eigendet.errors import UserError

Plain = dict[str, Any]  # an object of JSON or YAML whose fields are someone else's to say


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes `path`'s place if the block succeeds, else it is removed.

    Raises:
        UserError: the disk is full, or a quota is reached.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "new" / "numbers.txt"
        ...     with replacing(path) as temporary:
        ...         size = temporary.write_text("1 2 3")
        ...         there_before = path.exists()
        ...     there_before, path.read_text()
        (False, '1 2 3')
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        reason = _why_not_written(error)
        if reason is None:
            raise
        raise UserError(f"{path}: cannot be written ({reason}); what was there stands.") from None
    finally:
        temporary.unlink(missing_ok=True)


def _why_not_written(error: BaseException | None) -> str | None:
    """Return what the file system said, if that is the cause of an error or of one before it, as torch raises them."""
    if error is None:
        return None
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error.strerror
    # HDF5 says it in words, and raises OSError while writing, RuntimeError while closing.
    match = re.search(r"errno = \d+, error message = '([^']*)'", str(error))
    return match[1] if match else _why_not_written(error.__context__)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_shared(path: Path, text: str) -> None:
    """Write a text that other processes read while this one runs; until it ends, none can write another text by this.

    The kernel releases the lock with the process, however that ends. Where a file system has no locks, nothing is held.

    Raises:
        UserError: a process that runs has written another text, or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT)  # open until the process ends
        if not (path.is_file() and path.read_text() == text):
            _lock(lock, fcntl.LOCK_EX)
            write_text(path, text)
        _lock(lock, fcntl.LOCK_SH)
    except BlockingIOError:
        raise UserError(f"{path}: what runs at present relies on other settings in it; wait for that to end.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}).") from None


def _lock(file: int, kind: int) -> None:
    """Lock an open file.

    Raises:
        BlockingIOError: another process has a lock that excludes this one.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # there are none on this file system
        return


def write_json(path: Path, value: Any) -> None:
    """Write a plain value as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path, what: str, hook: Callable[[Plain], Plain] | None = None) -> Any:
    """Return the parsed JSON of a file.

    Args:
        path: the file.
        what: what was expected there, for messages.
        hook: takes each object as soon as it is parsed, and returns what takes its place.

    Raises:
        UserError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_bytes(), object_hook=hook)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected {what}.") from None
    except (ValueError, RecursionError) as error:  # not text, not JSON, a number or a nesting beyond all bounds
        raise UserError(f"{path}: not JSON ({error}); expected {what}.") from None


def read_yaml(path: Path) -> Any:
    """Return the parsed YAML of a configuration file.

    Raises:
        UserError: the file is missing, unreadable or not YAML.
    """
    import yaml  # here, so that commands without a configuration need not wait for it

    try:
        return yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # ten times faster in C
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a configuration file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def value_digest(value: Any) -> str:
    """Return the SHA-256 of a plain value, through its JSON text with sorted keys, in hexadecimal.

    >>> value_digest({"a": 1, "b": 2}) == value_digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def require_version(file: Path, content: object, version: int, command: str) -> None:
    """Raise UserError unless a JSON file's content has this version; it names the command that makes the file anew."""
    present = content.get("version") if isinstance(content, dict) else None
    if present != version:
        own = "without a version, as earlier ones were" if present is None else f"of version {present}"
        raise UserError(
            f"{file}: {own}; expected version {version} of what '{command}' writes: delete it, and run that again."
        )


@dataclass(frozen=True)
class Format:
    """The format of what a command writes: each file is marked with it, and refused where that mark is another."""

    command: str
    version: int

    @property
    def mark(self) -> dict[str, str | int]:
        """What a file says of its format.

        >>> Format("eigendet spectra", 1).mark
        {'format': 'eigendet spectra', 'version': 1}
        """
        return {"format": self.command, "version": self.version}

    def check(self, file: Path, mark: Mapping[str, object]) -> None:
        """Check what a file says of its format; other keys of `mark` do not count.

        Raises:
            UserError: the file is of an earlier format or of another one; the message names what makes it anew.
        """
        if any(mark.get(key) != value for key, value in self.mark.items()):
            other = f"of the format '{mark.get('format')}', version {mark.get('version')}"
            raise UserError(
                f"{file}: {other if 'version' in mark else 'of an earlier format, without a version'}; expected "
                f"version {self.version} of what '{self.command}' writes: run '{self.command}' again."
            )
