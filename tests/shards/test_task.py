from __future__ import annotations

import pytest

from shards.task import Task, parse_task
from tests.support.refused import refused


def array(**values: object) -> dict[str, str]:
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


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
        place = array(ID=first + i * step, MIN=first, COUNT=4, STEP=step)
        assert parse_task("slurm", place) == Task(i, 4)
    with refused("--task slurm: SLURM_ARRAY_TASK_ID is not set; this is no task of a SL"):
        parse_task("slurm", {})


@pytest.mark.parametrize("ids", [(3, 7), (0, 3, 6, 9), (5,), (2, 3), (10, 20, 30)])
def test_ids_at_any_distance_are_numbered(ids: tuple[int, ...]) -> None:
    for step in (1, 4):  # Slurm says 1 of a list
        bounds = {"MIN": ids[0], "MAX": ids[-1], "COUNT": len(ids), "STEP": step}
        found = [parse_task("slurm", array(ID=i, **bounds)) for i in ids]
        assert found == [Task(n, len(ids)) for n in range(len(ids))]


WHOLE = {"ID": 1, "MIN": 0, "MAX": 3, "COUNT": 4, "STEP": 1}


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"COUNT": 0}, "task 1 of 0 from 0 to 3; ids at one distance are needed"),
        ({"COUNT": 0, "MAX": ""}, "task 1 of 0 from 0 to -1; ids at one"),
        ({"COUNT": 3}, "task 1 of 3 from 0 to 3"),
        ({"COUNT": 9}, "task 1 of 9 from 0 to 3"),
        ({"ID": 4}, "task 4 of 4 from 0 to 3"),
        ({"ID": 5, "MAX": 6, "COUNT": 3}, "task 5 of 3 from 0 to 6"),
        ({"MIN": 5, "MAX": 2}, "task 1 of 4 from 5 to 2"),
        ({"ID": "x"}, "SLURM_ARRAY_TASK_ID got 'x'; this is no task"),
        ({"MIN": "-1"}, "SLURM_ARRAY_TASK_MIN got '-1'"),
        ({"MAX": "1e3"}, "SLURM_ARRAY_TASK_MAX got '1e3'"),
        ({"COUNT": "\u0663"}, "SLURM_ARRAY_TASK_COUNT got '\u0663'"),
        ({"COUNT": ""}, "SLURM_ARRAY_TASK_COUNT is not set"),
        ({"STEP": "two", "MAX": ""}, "SLURM_ARRAY_TASK_STEP got 'two'"),
        ({"STEP": 0, "MAX": ""}, "task 1 of 4 from 0 to 0"),
    ],
)
def test_an_odd_array_is_refused(changed: dict[str, object], text: str) -> None:
    with refused(f"--task slurm: {text}"):
        parse_task("slurm", array(**WHOLE | changed))
