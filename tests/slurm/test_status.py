"""Answers of squeue, sacct and scontrol, as Slurm 22.05 and 23.11 print them, and the place in an array."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.status import JobState, parse_sacct, parse_scontrol, parse_squeue, parse_task, query_jobs
from tests.support.refused import refused


def test_squeue() -> None:
    lines = ["17_0|RUNNING|1-07:59:30|gpu[1-2]|None"]
    lines += ["17_1|PENDING|8:00:00||Dependency", "18|COMPLETED|8:00|gpu1|None"]
    text = "\n".join(lines)
    assert parse_squeue(text) == {
        "17_0": JobState(state="RUNNING", time_left="1-07:59:30", host="gpu[1-2]"),
        "17_1": JobState(state="PENDING", reason="Dependency"),
        "18": JobState(state="COMPLETED", host="gpu1"),
    }


def test_sacct_with_a_pending_rest_of_an_array() -> None:
    text = "17_0|CANCELLED by 1000|gpu1\n17_1|OUT_OF_MEMORY|gpu1\n17_[2-3,5%2]|PENDING|None assigned\n"
    states = parse_sacct(text)
    assert states["17_0"] == JobState(state="CANCELLED", reason="by 1000", host="gpu1")
    assert not states["17_1"].is_live
    assert [key for key in states if states[key].state == "PENDING"] == ["17_2", "17_3", "17_5"]


def test_scontrol() -> None:
    text = (
        "JobId=18 ArrayJobId=17 ArrayTaskId=0 Name=a b JobState=TIMEOUT Reason=TimeLimit NodeList=n1\n"
        "JobId=17 ArrayJobId=17 ArrayTaskId=1-2%1 JobState=PENDING Reason=Dependency NodeList=(null)\n"
        "JobId=20 JobName=b JobState=COMPLETED Reason=None NodeList=n2\n"
    )
    assert parse_scontrol(text) == {
        "17_0": JobState(state="TIMEOUT", reason="TimeLimit", host="n1"),
        "17_1": JobState(state="PENDING", reason="Dependency"),
        "17_2": JobState(state="PENDING", reason="Dependency"),
        "20": JobState(state="COMPLETED", host="n2"),
    }


def test_what_is_over_and_what_is_not() -> None:
    states = ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "NODE_FAIL"]
    assert [JobState(state=state).is_live for state in states] == [True, True, True, True, False]


def fake(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_what_squeue_has_forgotten_is_asked_of_sacct_and_then_of_scontrol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, "squeue", 'echo "1_0|RUNNING|5:00|n1|None"')
    fake(tmp_path, "sacct", 'test "$7" = 2,3 && echo "2|FAILED|n1"')
    fake(tmp_path, "scontrol", 'echo "JobId=3 JobState=COMPLETED Reason=None NodeList=n2"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    states, complaints = query_jobs(["1", "2", "3"])
    expected = {"1_0": "RUNNING", "2": "FAILED", "3": "COMPLETED"}
    assert {key: job.state for key, job in states.items()} == expected
    assert complaints == []


def test_a_cluster_that_knows_nothing_any_more_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    fake(tmp_path, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fake(tmp_path, "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    states, complaints = query_jobs(["9"])
    assert states == {}
    assert complaints[1] == "sacct refused: Slurm accounting storage is disabled"
    assert query_jobs([]) == ({}, [])


@pytest.mark.parametrize("text", ["8/8", "1", "1/0", "-1/3", "a/b", "1/2/3", " 0/1"])
def test_what_is_no_task_is_refused(text: str) -> None:
    assert parse_task("7/8") == (7, 8)
    with refused("--task: got .*; I/N with I in 0..N-1 is needed, such as 0/8, or slurm"):
        parse_task(text)


def array(*ids: object, **changed: object) -> dict[str, str]:
    """What Slurm sets in the first of these tasks, but for what is changed."""
    told = {"ID": ids[0], "MIN": ids[0], "MAX": ids[-1], "COUNT": len(ids)}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in (told | changed).items()}


@pytest.mark.parametrize("ids", [(0, 1, 2, 3), (3, 7), (0, 3, 6, 9), (5,), (2, 3), (10, 20, 30)])
def test_ids_at_any_distance_are_numbered_from_zero(ids: tuple[int, ...]) -> None:
    assert [parse_task("slurm", array(*ids, ID=i)) for i in ids] == [(n, len(ids)) for n in range(len(ids))]


def test_ids_at_uneven_distances_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Squeue has forgotten one of them."""
    ids = (3, 7, 20, 25, 30, 35, 40)
    fake(tmp_path, "squeue", "printf '9_%d|RUNNING|5:00|n1|None\\n' 7 20; echo '9_40|PENDING|1:00||None'")
    fake(tmp_path, "sacct", "echo '9_[3,25-35:5]|PENDING|'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    places = [parse_task("slurm", array(*ids, ID=i) | {"SLURM_ARRAY_JOB_ID": "9"}) for i in ids]
    assert places == [(n, 7) for n in range(7)]
    fake(tmp_path, "sacct", "exit 1")
    text = (
        "task 20 of 7 from 3 to 40, and Slurm does not tell the others; take ids at one distance, such as 0-7"
    )
    with refused(f"--task slurm: {text} or 0-9:3, or give --task I/N"):
        parse_task("slurm", array(*ids, ID=20) | {"SLURM_ARRAY_JOB_ID": "9"})


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"COUNT": 0}, "task 1 of 0 from 0 to 3, and Slurm does not tell"),
        ({"COUNT": 9}, "task 1 of 9 from 0 to 3"),
        ({"ID": 4}, "task 4 of 4 from 0 to 3"),
        ({"ID": 5, "MAX": 6, "COUNT": 3}, "task 5 of 3 from 0 to 6"),
        ({"MIN": 5, "MAX": 2}, "task 1 of 4 from 5 to 2"),
        ({"ID": "x"}, "SLURM_ARRAY_TASK_ID got 'x'; this is no task"),
        ({"ID": ""}, "SLURM_ARRAY_TASK_ID is not set; this is no task of a SL"),
        ({"MIN": "-1"}, "SLURM_ARRAY_TASK_MIN got '-1'"),
        ({"MAX": "1e3"}, "SLURM_ARRAY_TASK_MAX got '1e3'"),
        ({"COUNT": "\u0663"}, "SLURM_ARRAY_TASK_COUNT got '\u0663'"),
        ({"COUNT": ""}, "SLURM_ARRAY_TASK_COUNT is not set"),
    ],
)
def test_an_odd_array_is_refused(changed: dict[str, object], text: str) -> None:
    with refused(f"--task slurm: {text}"):
        parse_task("slurm", array(0, 1, 2, 3, **{"ID": 1} | changed))
