"""Answers of squeue, sacct and scontrol, as Slurm 22.05 and 23.11 print them."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.status import JobState, parse_sacct, parse_scontrol, parse_squeue, query_jobs


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
