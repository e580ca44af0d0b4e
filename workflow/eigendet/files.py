"""Files that are whole or absent, locks, digests that say whether two are the same, and versions of formats."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eigendet.errors import UserError, kind

Plain = dict[str, Any]  # an object of JSON or YAML whose fields are someone else's to say


@contextlib.contextmanager
def replacing(path: Path, *, digest: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; once on disk it takes `path`'s place if the block succeeds, else it goes.

    What earlier writers of `path` left that were killed is removed first.

    Args:
        path: the file to write.
        digest: write its SHA-256 beside it, for `check_digest`.

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
    _remove_left_behind(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with _locked(temporary):  # while it is in use
            yield temporary
            _sync(temporary)
            if digest:
                _replace_with_digest(temporary, path)
            else:
                temporary.replace(path)
    except (OSError, RuntimeError) as error:
        reason = _why_not_written(error)
        if reason is None:
            raise
        raise UserError(f"{path}: cannot be written ({reason}); what was there stands.") from None
    finally:
        temporary.unlink(missing_ok=True)


def _remove_left_behind(path: Path) -> None:
    """Remove temporary files of `path` whose writers have ended; where a file system has no locks, none is removed."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    for temporary in [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]:
        with contextlib.suppress(OSError):  # in use, gone already, or another user's
            file = os.open(temporary, os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                temporary.unlink()
            finally:
                os.close(file)


def _sync(path: Path) -> None:
    """Wait until what was written of a file is on disk, so that none which was renamed before can be empty."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _why_not_written(error: BaseException | None) -> str | None:
    """Return what the file system said, if that is the cause of an error or of one before it, as torch raises them."""
    if error is None:
        return None
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error.strerror
    return _why_not_written(error.__context__)


def digest_file(path: Path) -> Path:
    """Return the file beside `path` that holds its digest, as `sha256sum --check` reads it.

    >>> digest_file(Path("run/step_0000000.pt")).as_posix()
    'run/step_0000000.pt.sha256'
    """
    return path.with_name(f"{path.name}.sha256")


def _replace_with_digest(temporary: Path, path: Path) -> None:
    """Put a file and its digest in their places; to be stopped between leaves a file without a digest."""
    with replacing(digest_file(path)) as note:
        note.write_text(f"{file_digest(temporary)}  {path.name}\n")
        digest_file(path).unlink(missing_ok=True)
        temporary.replace(path)


def check_digest(path: Path, remedy: str) -> None:
    """Check a file against the digest beside it, if there is one: files of earlier versions have none.

    Args:
        path: the file.
        remedy: what makes a file anew, for the message.

    Raises:
        UserError: the file is not what was written, or cannot be read.
    """
    beside = digest_file(path)
    try:
        written = beside.read_bytes().split()
        same = file_digest(path).encode() in written[:1]
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    if not same:
        raise UserError(
            f"{path}: damaged: it is not what was written, by the digest in {beside.name}; {remedy}. If it was changed "
            "on purpose, delete that file."
        )


@contextlib.contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Hold a lock, as a file, while a block runs that no other process may run at the same time.

    The kernel releases the lock with the process, however that ends. Where a file system has no locks, nothing is held.

    Args:
        path: the file, which is removed in the end.
        what: what another process is doing if it has the lock, for the message.

    Raises:
        UserError: another process has it.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with alone(Path(folder) / "lock", "works on it"):
        ...         try:
        ...             with alone(Path(folder) / "lock", "works on it"):
        ...                 pass
        ...         except UserError as error:
        ...             print(str(error).rpartition("/")[2])
        lock: another process works on it; wait for that to end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(path, fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(f"{path}: another process {what}; wait for that to end.") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path, how: int = 0) -> Iterator[None]:
    """Make a file unless it is there, and hold a lock on it, which the kernel releases with the process.

    Args:
        path: the file.
        how: LOCK_NB: not to wait where another process has the lock.

    Raises:
        BlockingIOError: another process has the lock, and it was not to be waited for.
    """
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(path.open("ab"))
            _lock(file.fileno(), fcntl.LOCK_EX | how)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                break  # else who had the lock before has removed the file
        yield


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
            _lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write_text(path, text)
        _lock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{path}: what runs at present relies on other settings in it; wait for that to end.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}).") from None


def _lock(file: int, kind: int) -> None:
    """Lock an open file, where the file system has locks.

    Raises:
        BlockingIOError: another process has a lock that excludes this one, and `kind` says not to wait.
    """
    try:
        fcntl.flock(file, kind)
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


def require_fields(file: Path, content: Any, fields: Mapping[str, type]) -> Plain:
    """Return a JSON file's content if it is an object whose fields have these types.

    A `float` may be an integer, and is finite; an `int` is not a truth, and is not below 0.

    Args:
        file: where it is from.
        content: what was parsed.
        fields: the type of each by its path, with dots.

    Raises:
        UserError: it is not; the message names the field.

    Examples:
        >>> require_fields(Path("run.json"), {"run": {"seed": "0"}}, {"run.seed": int})
        Traceback (most recent call last):
        ...
        eigendet.errors.UserError: run.json: run.seed is str; expected int.
    """
    for name, expected in fields.items():
        value = content
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                raise UserError(f"{file}: {name} is missing; expected {expected.__name__}.")
            value = value[part]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        right = isinstance(value, expected)
        if expected in (int, float):
            right = (
                number and (right or expected is float) and math.isfinite(value) and (expected is float or value >= 0)
            )
        if not right:
            shown = value if number else kind(value)
            raise UserError(f"{file}: {name} is {shown}; expected {expected.__name__}.")
    return content


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
