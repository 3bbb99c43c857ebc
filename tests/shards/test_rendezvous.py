"""What a launcher may say of its processes, and processes that do not meet."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from shards import rendezvous
from shards.rendezvous import meet, read_launch
from slurm.launch import find_free_port, rank_variables
from tests.support.forked import join, start_program
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


def meet_within(arguments: Sequence[str]) -> None:
    """Meet in so many seconds, or not."""
    rendezvous.MEETING = timedelta(seconds=float(arguments[0]))
    meet("gloo")


def test_who_waits_in_vain_says_so_and_a_rank_that_is_there_twice_is_named(tmp_path: Path) -> None:
    port, said = find_free_port(), [tmp_path / name for name in ("first", "second", "twin")]
    ranks = [
        start_program(meet_within, ["3"], path, path, rank_variables(rank, 3, port))
        for rank, path in zip((0, 1, 1), said, strict=True)
    ]
    assert join(ranks, 60) == [2, 2, 2]
    last = [path.read_text().strip().splitlines()[-1] for path in said]
    assert last[0].startswith(f"error: launch of 3 processes: not all met at 127.0.0.1:{port} within")
    assert sum(line.startswith("error: RANK 1 is that of process") for line in last) == 1
