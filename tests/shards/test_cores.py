"""Threads that wait sleep, and processes side by side share the cores, unless the user says otherwise."""

from __future__ import annotations

import os

import pytest

from shards.cores import count_cores, share_cores, wait_asleep
from slurm.launch import share_machine
from slurm.resources import Resources


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


def test_waiting_threads_sleep_unless_they_are_told_to_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_asleep()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    wait_asleep()
    assert os.environ["OMP_WAIT_POLICY"] == "active"


@pytest.mark.parametrize(("processes", "threads"), [(1, count_cores()), (10**6, 1)])
def test_processes_share_the_cores(processes: int, threads: int) -> None:
    assert share_cores(processes) == {"OMP_NUM_THREADS": str(threads)}


def test_cells_side_by_side_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    many = Resources(ranks_per_node=10**3)
    assert share_machine(Resources(), 1, 0).environment == {}
    assert share_machine(many, 10**3, 0).environment == {"OMP_NUM_THREADS": "1"}
    of_sweep = Resources(environment={"OMP_NUM_THREADS": "3"})
    assert share_machine(of_sweep, 2, 0).environment == {"OMP_NUM_THREADS": "3"}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert share_machine(many, 10**3, 0).environment == {}
