from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from eigendet.data.batches import as_float
from eigendet.data.samples import Rectangles
from eigendet.errors import UserError
from eigendet.runs.images import AHEAD, Decoded, Images

CPU = torch.device("cpu")
BYTES = 3 * 32 * 32  # of an image


class Noting(Rectangles):
    """Notes which images are asked for and by which thread; refuses to be asked for two at once, or for one number."""

    def __init__(self, broken: int | None = None) -> None:
        super().__init__(32)
        self.broken, self.asked, self.threads = broken, list[int](), set[str]()
        self._in_use = threading.Lock()

    def __getitem__(self, index: int) -> Any:
        assert self._in_use.acquire(blocking=False), "two threads at once"
        try:
            self.asked.append(index)
            self.threads.add(threading.current_thread().name)
            time.sleep(0.002)
            if index == self.broken:
                raise UserError(f"{index}.jpg: not a readable image.")
            return super().__getitem__(index)
        finally:
            self._in_use.release()


def eventually(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)
    return holds()


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("images")]


@pytest.mark.parametrize(("memory", "decodings"), [(10 * BYTES, 5), (5 * BYTES, 5), (2 * BYTES + 1, 11), (0, 15)])
def test_images_are_decoded_once_as_far_as_memory_goes(memory: int, decodings: int) -> None:
    data = Noting()
    decoded = Decoded(data, memory)
    numbers = [7, 0, 3, 9, 4]
    for _ in range(3):
        for number, batch in zip(numbers, Images(decoded, numbers, CPU), strict=True):
            assert len(batch) == 1 and torch.equal(batch[0], as_float(Rectangles(32)[number][0]))
    assert len(data.asked) == decodings
    assert data.asked[:5] == numbers
    kept = [number for number in numbers if data.asked.count(number) == 1]
    assert kept == numbers[: memory // BYTES]


def test_several_that_share_what_is_decoded_decode_it_once() -> None:
    data = Noting()
    decoded = Decoded(data)
    for indices in ([4], [1, 4], [4, 2, 1]):
        images = Images(decoded, indices, CPU)
        assert torch.equal(images[0][0], as_float(Rectangles(32)[indices[0]][0]))
        assert len(list(images)) == len(images) == len(indices)
    assert data.asked == [4, 1, 2]


def test_the_next_images_are_read_while_one_is_looked_at_and_no_more() -> None:
    data = Noting()
    stream = iter(Images(Decoded(data, 0), range(9), CPU))
    assert not data.asked
    for shown in (1, 2, 3):
        next(stream)
        assert eventually(lambda shown=shown: len(data.asked) == shown + AHEAD)  # type: ignore[misc]
        time.sleep(0.02)
        assert data.asked == list(range(shown + AHEAD))
    assert threading.current_thread().name not in data.threads and len(data.threads) == 1
    assert len(readers()) == 1


def test_no_thread_is_left_by_whoever_stops_early() -> None:
    data = Noting()
    next(iter(Images(Decoded(data), range(9), CPU)))
    assert not readers()
    assert len(data.asked) <= 1 + AHEAD
    with pytest.raises(KeyboardInterrupt):
        for _ in Images(Decoded(data), range(9), CPU):
            raise KeyboardInterrupt
    assert eventually(lambda: not readers())


def test_two_that_are_gone_over_in_turns_do_not_ask_the_data_set_at_once() -> None:
    data = Noting()
    decoded = Decoded(data, 0)
    pairs = list(zip(Images(decoded, range(9), CPU), Images(decoded, range(9), CPU), strict=True))
    assert all(torch.equal(first, second) for (first,), (second,) in pairs)
    assert len(data.asked) == 18


def test_what_reading_raises_is_raised_where_the_image_is_shown() -> None:
    data = Noting(broken=2)
    looked: list[int] = []
    images = Images(Decoded(data), range(9), CPU, lambda: looked.append(len(looked)))
    shown: list[list[torch.Tensor]] = []
    with pytest.raises(UserError, match=r"^2\.jpg: not a readable image\.$"):
        shown.extend(images)
    assert len(looked) == len(shown) == 2
    assert eventually(lambda: not readers())
    with pytest.raises(UserError, match=r"^2\.jpg: not a readable image\.$"):
        images[2]


def test_each_image_counts_as_looked_at_when_it_is_shown() -> None:
    looked: list[int] = []
    for number, _ in enumerate(Images(Decoded(Noting()), range(5), CPU, lambda: looked.append(1)), start=1):
        time.sleep(0.01)
        assert len(looked) == number


def test_what_the_data_set_does_to_its_memory_does_not_reach_what_is_kept() -> None:
    class Reusing(Rectangles):
        memory = torch.zeros(3, 32, 32, dtype=torch.uint8)

        def __getitem__(self, index: int) -> Any:
            return self.memory.fill_(index), None

    decoded = Decoded(Reusing(32))
    for _ in range(2):
        assert [int(255 * image.max() + 0.5) for (image,) in Images(decoded, range(5), CPU)] == [0, 1, 2, 3, 4]


def test_images_for_a_gpu_are_copied_from_pinned_memory_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU is played by the CPU: what is tested is what it is asked for."""
    pinned: list[tuple[torch.Tensor, str]] = []
    copies: list[tuple[bool, torch.device, bool]] = []

    def pin(self: torch.Tensor) -> torch.Tensor:
        pinned.append((self.clone(), threading.current_thread().name))
        return pinned[-1][0]

    def copy(self: torch.Tensor, device: torch.device, non_blocking: bool = False) -> torch.Tensor:
        copies.append((any(self is tensor for tensor, _ in pinned), device, non_blocking))
        return self

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", copy)
    gpu = torch.device("cuda", 1)
    shown = list(Images(Decoded(Noting()), [3, 1], gpu))
    assert copies == [(True, gpu, True)] * 2
    assert all(name.startswith("images") for _, name in pinned)
    assert torch.equal(shown[0][0], as_float(Rectangles(32)[3][0]))
    pinned.clear()
    list(Images(Decoded(Noting()), [3, 1], CPU))
    assert not pinned
