from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

from eigendet.runs.precision import full_float32

ROOT = Path(__file__).resolve().parents[2]
BACKENDS: Any = torch.backends
OPERATIONS = {
    "mkldnn.conv": BACKENDS.mkldnn.conv,
    "mkldnn.rnn": BACKENDS.mkldnn.rnn,
    "mkldnn.matmul": BACKENDS.mkldnn.matmul,
    "cudnn.conv": BACKENDS.cudnn.conv,
    "cudnn.rnn": BACKENDS.cudnn.rnn,
    "cuda.matmul": BACKENDS.cuda.matmul,
}
LEGACY: dict[str, Callable[[], object]] = {
    "cudnn.allow_tf32": lambda: BACKENDS.cudnn.allow_tf32,
    "cuda.matmul.allow_tf32": lambda: BACKENDS.cuda.matmul.allow_tf32,
    "matmul precision": torch.get_float32_matmul_precision,
}
CHOICES: dict[str, Callable[[], object]] = {
    f"matmul precision {name}": partial(torch.set_float32_matmul_precision, name)
    for name in ("highest", "high", "medium")
}
CHOICES |= {
    f"{name}.allow_tf32 {value}": partial(setattr, backend, "allow_tf32", value)
    for name, backend in (("cudnn", BACKENDS.cudnn), ("cuda.matmul", BACKENDS.cuda.matmul))
    for value in (True, False)
}
CHOICES |= {
    f"{name} {precision}": partial(setattr, backend, "fp32_precision", precision)
    for name, backend in {**OPERATIONS, "cudnn": BACKENDS.cudnn, "all": BACKENDS}.items()
    for precision in ("ieee", "tf32", "none", "bf16")
    if precision != "bf16" or not name.startswith("cu")  # which CUDA refuses
}


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    yield
    reset()


def reset() -> None:
    """Set what a new process has."""
    BACKENDS.fp32_precision = BACKENDS.cudnn.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    for operation in OPERATIONS.values():
        operation.fp32_precision = "none"
    BACKENDS.cudnn.allow_tf32 = True


def seen() -> dict[str, object]:
    """What both interfaces say, an error too."""
    said: dict[str, object] = {name: operation.fp32_precision for name, operation in OPERATIONS.items()}
    said |= {"cudnn": BACKENDS.cudnn.fp32_precision, "mkldnn": BACKENDS.mkldnn.fp32_precision}
    said["all"] = BACKENDS.fp32_precision
    for name, read in LEGACY.items():
        try:
            said[name] = read()
        except RuntimeError:
            said[name] = "raises"
    return said


def test_a_new_process_is_as_the_test_takes_it() -> None:
    check = (
        "from tests.unit.test_precision import reset, seen; before = seen(); reset(); assert seen() == before; "
        "print(before['cudnn.conv'], before['cudnn.allow_tf32'], before['mkldnn.conv'])"
    )
    result = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.split() == ["tf32", "True", "none"], result.stderr


@pytest.mark.parametrize("first", CHOICES)
def test_inside_all_is_full_float32_and_afterwards_as_before(first: str) -> None:
    """After any choice of a precision, and any two, by either interface or both."""
    for second in CHOICES:
        reset()
        CHOICES[first]()
        CHOICES[second]()
        before = seen()
        with full_float32():
            inside = seen()
            with BACKENDS.cudnn.flags(enabled=True):  # reads the older setting
                pass
        assert {inside[name] for name in OPERATIONS} == {"ieee"}, second
        assert [inside[name] for name in LEGACY] == [False, False, "highest"], second
        assert seen() == before, second


@pytest.mark.parametrize(("before", "after"), list(permutations(["ieee", "tf32", "none"], 2)))
def test_what_followed_a_choice_for_all_follows_the_next_one(before: str, after: str) -> None:
    BACKENDS.fp32_precision = before
    BACKENDS.fp32_precision = after
    expected = seen()
    reset()
    BACKENDS.fp32_precision = before
    with full_float32():
        pass
    BACKENDS.fp32_precision = after
    assert seen() == expected


def test_all_comes_back_after_a_failure() -> None:
    torch.set_float32_matmul_precision("medium")
    before = seen()
    with pytest.raises(ZeroDivisionError), full_float32():
        raise ZeroDivisionError
    assert seen() == before


def test_autocast_does_not_reach_inside() -> None:
    ones = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with full_float32():
            assert (ones @ ones).dtype == torch.float32
        assert (ones @ ones).dtype == torch.bfloat16
