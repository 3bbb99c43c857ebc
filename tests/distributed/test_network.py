"""Two ranks in networks of their own, joined by a cable that is pulled for a while, and for good.

NETWORK_CUT_S=60 in the environment pulls it for a minute.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from jobs import finetune
from tests.support.files import wait_for
from tests.support.forked import join, read_said, run_ranks, start_program
from tests.trainer.small_run import assert_equal, make_arguments, weights
from trainer.runtime import STOPPED

pytestmark = pytest.mark.slow

CLONE_NEWNET = 0x40000000
CUT_S = float(os.environ.get("NETWORK_CUT_S", "2"))
STEPS = 24


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@pytest.fixture(name="networks")
def _networks() -> Iterator[list[str]]:
    """Two name spaces with the addresses 10.99.0.1 and 10.99.0.2 at the ends of one cable."""
    names = [f"eomt{os.getpid()}-{i}" for i in range(2)]
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("networks of one's own need root, and iproute2")
    try:
        for name in names:
            ip("netns", "add", name)
        cable = ["type", "veth", "peer", "name", "cable1", "netns", names[1]]
        ip("link", "add", "cable0", "netns", names[0], *cable)
        for i, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.99.0.{i + 1}/24", "dev", f"cable{i}")
            for device in ("lo", f"cable{i}"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def train_within(arguments: Sequence[str]) -> None:
    """Enter the network that the first argument names, and train there."""
    libc, place = ctypes.CDLL(None, use_errno=True), os.open(f"/run/netns/{arguments[0]}", os.O_RDONLY)
    assert libc.setns(place, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    finetune.main(arguments[1:])


def start(networks: Sequence[str], options: Sequence[str], folder: Path) -> list[BaseProcess]:
    folder.mkdir()
    processes = []
    for rank, network in enumerate(networks):
        variables = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        variables |= {"MASTER_ADDR": "10.99.0.1", "MASTER_PORT": 29400, "GLOO_SOCKET_IFNAME": f"cable{rank}"}
        places = folder / f"printed-{rank}.txt", folder / f"said-{rank}.txt"
        texts = {name: str(value) for name, value in variables.items()}
        processes.append(start_program(train_within, [network, *options], *places, texts))
    return processes


def pull_at(networks: Sequence[str], log: Path, step: int) -> None:
    wait_for(log, f"step {step}/")
    ip("-n", networks[0], "link", "set", "cable0", "down")


def test_a_cable_that_is_pulled_costs_time_and_no_weights(
    tmp_path: Path, scene_shards: str, networks: list[str]
) -> None:
    """For a while: the run goes on by itself. For good: both leave with 75, and resume from a checkpoint."""
    settings = ["--loop.steps", str(STEPS), "--loop.save_every", "4", "--tracking.tensorboard", "False"]
    run_ranks(finetune.main, make_arguments(tmp_path / "whole", scene_shards, *settings), tmp_path / "a", 2)
    options = make_arguments(tmp_path / "cut", scene_shards, *settings)
    processes = start(networks, options, tmp_path / "b")
    pull_at(networks, tmp_path / "cut" / "run" / "log.txt", 5)
    time.sleep(CUT_S)
    assert all(process.is_alive() for process in processes)
    ip("-n", networks[0], "link", "set", "cable0", "up")
    assert join(processes, 3 * CUT_S + 60) == [0, 0], read_said(tmp_path / "b")
    assert_equal(weights(tmp_path / "cut", STEPS), weights(tmp_path / "whole", STEPS))

    options = make_arguments(tmp_path / "lost", scene_shards, *settings, "--loop.hang_s", "2")
    processes = start(networks, options, tmp_path / "c")
    log = tmp_path / "lost" / "run" / "log.txt"
    pull_at(networks, log, 6)
    assert join(processes, 30) == [STOPPED, STOPPED], read_said(tmp_path / "c")
    assert all(f"error: process {rank} of 2 on" in log.read_text() for rank in range(2))
    ip("-n", networks[0], "link", "set", "cable0", "up")
    assert join(start(networks, [*options, "--resume"], tmp_path / "d"), 120) == [0, 0]
    assert_equal(weights(tmp_path / "lost", STEPS), weights(tmp_path / "whole", STEPS))
