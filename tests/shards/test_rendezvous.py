"""What a launcher may say of its processes, and processes that do not meet."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from shards.rendezvous import meet, read_launch
from slurm.launch import find_free_port
from tests.support.refused import refused

PAIR = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
WRONG = [
    ({"WORLD_SIZE": "x"}, "WORLD_SIZE: got 'x'; a whole number is needed"),
    ({"WORLD_SIZE": ""}, "WORLD_SIZE: got ''"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE: got 0; there is at least one process"),
    ({"WORLD_SIZE": "1e3"}, "WORLD_SIZE: got '1e3'"),
    ({"RANK": "-1"}, "RANK: got '-1'"),
    ({"RANK": "5"}, "RANK is 5 and WORLD_SIZE 2; ranks are 0..1"),
    ({"LOCAL_RANK": "2"}, "LOCAL_RANK is 2 and LOCAL_WORLD_SIZE 2; ranks are 0..1"),
    ({"LOCAL_RANK": "first"}, "LOCAL_RANK: got 'first'"),
    ({"LOCAL_WORLD_SIZE": "1"}, "LOCAL_RANK is 1 and LOCAL_WORLD_SIZE 1"),
    ({"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE is 3, more than WORLD_SIZE, 2"),
    ({"MASTER_PORT": "port\n"}, r"MASTER_PORT: got 'port\\n'"),
    ({"MASTER_PORT": "70000"}, "MASTER_PORT: got 70000; ports are 1..65535"),
    ({"MASTER_PORT": "٢٩٥٠٠"}, "MASTER_PORT: got '٢٩٥٠٠'"),
    ({"MASTER_ADDR": ""}, "launch of 2 processes: MASTER_ADDR is not set; torchrun"),
]


@pytest.mark.parametrize(("changed", "text"), WRONG, ids=[str(changed) for changed, _ in WRONG])
def test_what_is_no_launch_is_refused(changed: dict[str, str], text: str) -> None:
    with refused(text):
        read_launch(PAIR | changed)


def test_a_launch_says_rank_and_number_and_without_one_a_process_is_alone() -> None:
    assert read_launch(PAIR) == (1, 2)
    assert read_launch({}) == (0, 1)
    for missing in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        with refused(f"{missing} is not set"):
            read_launch({name: value for name, value in PAIR.items() if name != missing})


def test_a_port_that_somebody_listens_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        for name, value in {**PAIR, "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        with refused(f"MASTER_PORT {port} is in use on this machine"):
            meet("gloo")


PROGRAM = """
import sys
from datetime import timedelta
from shards import rendezvous
from shards.program import run_program

rendezvous.MEETING = timedelta(seconds=float(sys.argv[1]))
run_program(lambda arguments: rendezvous.meet("gloo"))
"""


def start(rank: int, count: int, port: int, seconds: float) -> subprocess.Popen[str]:
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    words = [sys.executable, "-c", PROGRAM, str(seconds)]
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        **{name: str(value) for name, value in told.items()},
    }
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)


def test_who_waits_in_vain_says_so_and_a_rank_that_is_there_twice_is_named() -> None:
    port = find_free_port()
    ranks = [start(rank, 3, port, 4) for rank in (0, 1, 1)]
    said = [process.communicate(timeout=60)[1].strip().splitlines()[-1] for process in ranks]
    assert {process.returncode for process in ranks} == {2}
    assert said[0].startswith(f"error: launch of 3 processes: not all met at 127.0.0.1:{port} within")
    assert sum(line.startswith("error: RANK 1 is that of process") for line in said) == 1
