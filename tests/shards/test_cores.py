"""Threads that wait sleep, and processes side by side share the cores, unless the user says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from shards.cores import share_cores, wait_asleep
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


def test_processes_share_the_cores() -> None:
    assert share_cores(1) == {}  # so that those which it starts may share them
    assert share_cores(10**6) == {"OMP_NUM_THREADS": "1"}


def test_cells_side_by_side_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    many = Resources(ranks_per_node=10**3)
    assert share_machine(Resources(), 1, 0).environment == {}
    assert share_machine(many, 10**3, 0).environment == {"OMP_NUM_THREADS": "1"}
    of_sweep = Resources(environment={"OMP_NUM_THREADS": "3"})
    assert share_machine(of_sweep, 2, 0).environment == {"OMP_NUM_THREADS": "3"}
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert share_machine(many, 10**3, 0).environment == {}


FAULTS = """
import resource
from shards.cores import keep_memory
keep_memory()
for _ in range(10):
    buffers = [bytearray(8 << 20) for _ in range(4)]
    del buffers
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_serves_again_unless_the_user_tunes_it() -> None:
    faults = [
        int(subprocess.check_output([sys.executable, "-c", FAULTS], env=os.environ | tuned))
        for tuned in ({}, {"MALLOC_TOP_PAD_": "0"})
    ]
    assert faults[0] < 20_000 < 60_000 < faults[1], faults
