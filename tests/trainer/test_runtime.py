"""Time limits: how they are read, and that a run leaves in time for its save."""

from __future__ import annotations

import pytest

from shards.errors import InputError
from trainer.runtime import Deadline, find_end
from trainer.sections import parse_limit


class Clock:
    """A clock that goes when it is told to."""

    time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.mark.parametrize(
    ("setting", "seconds"),
    [("", 0), ("90", 5400), ("0.5", 30), ("1:30:00", 5400), ("2-01:00:01", 2 * 86400 + 3601), ("0:00:05", 5)],
)
def test_a_limit_is_minutes_or_hours_as_slurm_writes_them(setting: str, seconds: float) -> None:
    assert parse_limit(setting) == seconds
    assert find_end(setting, 1000.0) == (1000.0 + seconds if seconds else None)


@pytest.mark.parametrize("setting", ["0", "-5", "1:5:00", "1:60:00", "an hour", "0:00:00", "1e3", "12:30"])
def test_another_text_is_refused(setting: str) -> None:
    with pytest.raises(InputError, match=f"loop.time_limit: got '{setting}'; minutes above 0, H:MM:SS"):
        parse_limit(setting)


def test_slurm_says_when_its_job_ends() -> None:
    assert find_end("slurm", 5.0, {"SLURM_JOB_END_TIME": "1700000000"}) == 1700000000.0
    message = "loop.time_limit: slurm was given, but SLURM_JOB_END_TIME is not set; give minutes"
    with pytest.raises(InputError, match=message):
        find_end("slurm", 5.0, {})


def test_a_run_stops_while_one_more_step_and_two_saves_of_the_measured_length_fit() -> None:
    clock = Clock()
    deadline = Deadline(2000.0, clock)
    for _ in range(10):
        clock.time += 7
        assert not deadline.is_near()
    with deadline.saving():
        clock.time += 30
    clock.time += 7
    assert not deadline.is_near()  # the longest round now has the save in it: 37 s
    assert deadline.margin() == 37 + 2 * 30
    clock.time = 2000.0 - 97.5
    deadline._asked = clock.time - 7
    assert not deadline.is_near()
    clock.time += 1
    assert deadline.is_near()


def test_before_the_first_save_its_length_is_assumed_and_without_a_limit_no_time_is_near() -> None:
    clock = Clock()
    assert not Deadline(None, lambda: 1e12).is_near()
    assert Deadline(clock.time + 86400, clock).margin() == 120
    assert Deadline(clock.time + 600, clock).margin() == 60  # a tenth of what there is
