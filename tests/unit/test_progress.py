from __future__ import annotations

import pytest

from eigendet.progress import Reporter, clock_time


class Clock:
    """Shows the time that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(caplog: pytest.LogCaptureFixture) -> Clock:
    caplog.set_level("INFO")
    return Clock()


def test_reports_come_soon_then_every_ten_seconds_and_at_the_end(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with Reporter("train scratch seed 0", "step", 260, clock=clock) as reporter:
        for step in range(1, 261):
            clock.now += 0.25
            reporter.reach(step, images=8, loss=260 - step)
    steps = [int(message.split()[5]) for message in caplog.messages]
    assert steps == [8, 48, 88, 128, 168, 208, 248, 260]
    assert caplog.messages[1] == "train scratch seed 0: step 48 of 260, loss 232, 32 images/s, 0:53 left"  # of 9 to 48
    assert caplog.messages[-1] == "train scratch seed 0: step 260 of 260, loss 5.5, 32 images/s, took 1:05"


def test_what_an_earlier_process_did_tells_nothing_of_this_ones_speed(clock: Clock) -> None:
    with Reporter("train", "step", 1000, done=900, clock=clock) as reporter:
        clock.now += 10
        assert reporter.line() == "train: step 900 of 1000"
        reporter.reach(950, images=5)
        assert reporter.line() == "train: step 950 of 1000, 0.5 images/s, 0:10 left"


def test_a_job_that_ends_early_says_so(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyError), Reporter("evaluate", "image", 9, clock=clock) as reporter:
        clock.now += 1
        reporter.reach(4, images=4)
        raise KeyError
    assert caplog.messages == ["evaluate: image 4 of 9, 4 images/s, ended after 0:01"]


def test_a_unit_under_way_counts_by_its_share(clock: Clock) -> None:
    with Reporter("covariance", "snapshot", 8, clock=clock) as reporter:
        clock.now += 6
        reporter.reach(1.5)
        assert reporter.line() == "covariance: snapshot 2 of 8, 0:26 left"


def test_times_have_hours_only_where_there_are_some() -> None:
    assert [clock_time(seconds) for seconds in (0, 59.7, 3599, 36061)] == ["0:00", "1:00", "59:59", "10:01:01"]
