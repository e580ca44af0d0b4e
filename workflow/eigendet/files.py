"""Files that are either whole or absent, and digests that say whether two are the same."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eigendet.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes `path`'s place if the block succeeds, else it is removed.

    Raises:
        UserError: the disk is full, or a quota is reached.
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
    """What the file system said, if that is behind an error, or behind that which came before it, as torch has it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error.strerror
    # HDF5 says it in words, and raises OSError while writing, RuntimeError while closing.
    found = re.search(r"errno = \d+, error message = '([^']*)'", str(error))
    return found[1] if found else _why_not_written(error.__context__) if error else None


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Parsed JSON of `path`.

    Raises:
        UserError: the file is missing, unreadable or not JSON; `what` says what was expected there.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected {what}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); expected {what}.") from None


def read_yaml(path: Path) -> Any:
    """Parsed YAML of a configuration file.

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
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def value_digest(value: Any) -> str:
    """SHA-256 of a plain value, through its JSON text with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
