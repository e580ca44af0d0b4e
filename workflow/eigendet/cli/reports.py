"""Send what a command says to the terminal, or to a log of which the terminal sees the progress alone.

With a log, standard output and error are the log's file for all that runs here: Python, libraries in C, and processes
that are started. What standard error was before becomes standard input, which no command reads: that is how processes
that start others hand it on, since these keep only the first three files open.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import TextIO

import click

from eigendet import progress
from eigendet.errors import printable

LOG = "EIGENDET_LOG"  # environment variable: the log that an earlier process sends everything to


class Reports(logging.StreamHandler[TextIO]):
    """Write records; on a terminal, those of progress in one line that changes."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.unfinished = False  # whether the terminal's last line may still change

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        if record.name == progress.logger.name and self.stream.isatty():
            columns = shutil.get_terminal_size().columns - 1  # a line that wraps could not be written over
            last = record.__dict__["last"]
            self.stream.write(f"\r{record.getMessage()[:columns]}\x1b[K" + "\n" * last)
            self.flush()
            self.unfinished = not last
            return
        if self.unfinished:
            self.stream.write("\n")
            self.unfinished = False
        super().emit(record)


class Printable(logging.Formatter):
    """Writes what came from a user's file such that a terminal obeys none of it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's text."""
        return printable(super().format(record))


class Lines(logging.StreamHandler[TextIO]):
    """Write records where perhaps nobody reads any more, which must not stop or clutter a job."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Go on."""


def start() -> None:
    """Write to standard error what is logged."""
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")  # Pillow's; the check counts them by id
    handler = Reports(sys.stderr)
    handler.setFormatter(Printable("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def send_to(log: Path) -> None:
    """Send everything to a file, which is made anew, and progress also to where standard error went."""
    if os.environ.get(LOG) != str(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
        sys.stdout.flush()
        sys.stderr.flush()
        for source, target in ((2, 0), (file, 1), (file, 2)):
            os.dup2(source, target)
        os.close(file)
        os.environ[LOG] = str(log)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # so that the log's lines are in order
    if fcntl.fcntl(0, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:  # srun gives its processes another input
        progress.logger.addHandler(Lines(os.fdopen(0, "w", closefd=False)))


def _send_to(context: click.Context, option: click.Parameter, log: Path | None) -> None:
    if log is not None:
        send_to(log)


log_option = click.option(
    "--log", type=click.Path(dir_okay=False, path_type=Path), expose_value=False, is_eager=True, callback=_send_to,
    help="File for all that is printed; of that, only the progress is printed here too, a line now and then.",
)  # fmt: skip
