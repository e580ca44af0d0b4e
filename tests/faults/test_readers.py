"""Files that were changed in any way, by chance: what `fuzz.py` does in hours, in seconds and without its guidance."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest

from eigendet.networks.widths_file import read_chosen
from tests.faults.readers import READERS, Reader
from tests.faults.refusal import lines_or_nothing, refused

TRIALS = 60


def damaged(reader: Reader, source: random.Random) -> bytes:
    """Return a whole content with values changed, bytes changed, or a part cut out."""
    content = source.choice(reader.contents)
    if (other := reader.changed(content, source)) is not None and source.random() < 0.7:
        return other
    changed = bytearray(content)
    for _ in range(source.randint(1, 8)):
        place = source.randrange(len(changed))
        match source.randrange(3):
            case 0:
                changed[place] = source.randrange(256)
            case 1:
                changed[place : place + source.randint(1, 64)] = b""
            case 2:
                changed[place:place] = source.randbytes(4)
        changed = changed or bytearray(b"\0")
    return bytes(changed)


@pytest.mark.fault(kind="files changed by chance", stage="any")
@pytest.mark.parametrize("name", READERS)
def test_what_was_changed_by_chance_is_accepted_or_refused_in_words(name: str, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "tried").mkdir()
    reader, source = READERS[name](tmp_path / "made"), random.Random(name)
    file = tmp_path / "tried" / reader.name
    for content in reader.contents:
        file.write_bytes(content)
        reader.read(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(TRIALS):
            file.write_bytes(damaged(reader, source))
            lines_or_nothing(lambda: reader.read(file))


@pytest.mark.fault(kind="files changed by chance", stage="widths")
def test_a_text_of_a_file_stays_in_its_line(tmp_path: Path) -> None:
    file = tmp_path / "widths.json"
    file.write_text(r'{"widths": {"conv1": 3}, "format": "eigen\n\u001b[31mdet widths", "version": 1}')
    with refused(file, r"of the format 'eigen\\n\\x1b\[31mdet widths'"):
        read_chosen(file)
