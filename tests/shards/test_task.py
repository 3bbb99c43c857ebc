from __future__ import annotations

import pytest

from shards.task import Task, parse_task
from tests.support.refused import refused


def test_a_task_is_read_from_text() -> None:
    assert parse_task("0/1") == Task(0, 1)
    assert parse_task("7/8") == Task(7, 8)


@pytest.mark.parametrize("text", ["8/8", "1", "1/0", "-1/3", "a/b", "1/2/3", " 0/1"])
def test_what_is_no_task_is_refused(text: str) -> None:
    with refused("--task: got .*; I/N with I in 0..N-1 is needed, such as 0/8, or slurm"):
        parse_task(text)


@pytest.mark.parametrize(("first", "step"), [(0, 1), (1, 1), (10, 5)])
def test_the_tasks_of_a_slurm_array_are_numbered_from_zero(first: int, step: int) -> None:
    for i in range(4):
        array = {"ID": first + i * step, "MIN": first, "COUNT": 4, "STEP": step}
        environment = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in array.items()}
        assert parse_task("slurm", environment) == Task(i, 4)
    with refused("--task slurm: SLURM_ARRAY_TASK_ID is not set; this is no task of a SL"):
        parse_task("slurm", {})
