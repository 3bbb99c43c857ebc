from __future__ import annotations

import pytest

from shards.errors import InputError
from shards.task import Task, parse_task


def test_a_task_is_read_from_text() -> None:
    assert parse_task("0/1") == Task(0, 1)
    assert parse_task("7/8") == Task(7, 8)


@pytest.mark.parametrize("text", ["8/8", "1", "1/0", "-1/3", "a/b", "1/2/3", " 0/1"])
def test_what_is_no_task_is_refused(text: str) -> None:
    with pytest.raises(
        InputError, match="--task: got .*; I/N with I in 0..N-1 is needed, such as 0/8, or slurm"
    ):
        parse_task(text)


@pytest.mark.parametrize(("first", "step"), [(0, 1), (1, 1), (10, 5)])
def test_the_tasks_of_a_slurm_array_are_numbered_from_zero(first: int, step: int) -> None:
    found = []
    for i in range(4):
        environment = {
            "SLURM_ARRAY_TASK_ID": str(first + i * step),
            "SLURM_ARRAY_TASK_MIN": str(first),
            "SLURM_ARRAY_TASK_COUNT": "4",
            "SLURM_ARRAY_TASK_STEP": str(step),
        }
        found.append(parse_task("slurm", environment))
    assert found == [Task(i, 4) for i in range(4)]


def test_outside_of_an_array_slurm_is_refused() -> None:
    with pytest.raises(
        InputError, match="--task slurm: SLURM_ARRAY_TASK_ID is not set; this is no task of a SL"
    ):
        parse_task("slurm", {})
