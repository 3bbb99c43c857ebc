"""A step that does not end is told with its stacks and left; what may take long is not."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest

from jobs import finetune
from tests.support.files import wait_for
from tests.support.forked import join, read_said, start_ranks
from tests.trainer.small_run import make_arguments
from trainer.runtime import STOPPED
from trainer.watchdog import GRACE_S, Watchdog

STEP_S, PATIENCE_S = 0.1, 0.5


def play(arguments: Sequence[str]) -> None:
    """Take steps, then do what the first argument says; the second names the log."""
    what, log = arguments
    with Watchdog(PATIENCE_S, "process 3 of 8", Path(log)) as watchdog:
        time.sleep(2 * PATIENCE_S)  # the first step
        for _ in range(5):
            watchdog.beat()
            time.sleep(STEP_S)
        watchdog.beat()
        print("hung", flush=True)
        if what == "hang":
            time.sleep(60)
        elif what == "pause":
            with watchdog.paused():
                time.sleep(3 * PATIENCE_S)
            time.sleep(STEP_S)
        elif what == "wait":
            time.sleep(STEP_S)


def test_a_step_that_hangs_is_told_with_its_stacks(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    processes = start_ranks(play, ["hang", str(log)], tmp_path)
    wait_for(tmp_path / "printed-0.txt", "hung")
    started = time.monotonic()
    assert join(processes, 30) == [STOPPED]
    assert time.monotonic() - started < PATIENCE_S + GRACE_S + 5
    for text in (log.read_text(), read_said(tmp_path)):
        assert "error: process 3 of 8: no step ended for 0." in text
        assert "in play" in text
    assert log.read_text().startswith("before\n")


def test_a_long_block_that_is_not_watched_is_no_alarm(tmp_path: Path) -> None:
    processes = start_ranks(play, ["pause", str(tmp_path / "log.txt")], tmp_path)
    assert join(processes, 30) == [0], read_said(tmp_path)
    assert not (tmp_path / "log.txt").exists()


def test_time_in_which_the_process_itself_was_stopped_does_not_count(tmp_path: Path) -> None:
    """As Slurm suspends a job."""
    (process,) = start_ranks(play, ["wait", str(tmp_path / "log.txt")], tmp_path)
    wait_for(tmp_path / "printed-0.txt", "hung")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(4 * PATIENCE_S)
    os.kill(process.pid, signal.SIGCONT)
    assert join([process], 30) == [0], read_said(tmp_path)
    assert not (tmp_path / "log.txt").exists()


def sleep_on(processes: Sequence[BaseProcess], what: str) -> None:
    """Stop the second rank, or the loader worker of the first, as a dead mount does."""
    ranks = [psutil.Process(process.pid) for process in processes]
    workers = [child for child in ranks[0].children(recursive=True) if not child.children()]
    (ranks[1] if what == "rank" else workers[0]).suspend()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["rank", "loader worker"])
def test_all_ranks_leave_a_training_in_which_something_sleeps(
    tmp_path: Path, scene_shards: str, what: str
) -> None:
    settings = ["--loop.steps", "100000", "--loop.save_every", "5", "--loop.hang_s", "2"]
    settings += ["--data.workers", "1", "--tracking.tensorboard", "False"]
    options = make_arguments(tmp_path, scene_shards, *settings)
    processes = start_ranks(finetune.main, options, tmp_path / "said", 2)
    log = tmp_path / "run" / "log.txt"
    wait_for(log, "step 12/")
    sleep_on(processes, what)
    asleep = what == "rank"
    codes = join(processes[: 1 if asleep else 2], 30)
    join(processes, 0)
    assert codes == [STOPPED] * len(codes)
    told = log.read_text()
    assert "error: process 0 of 2 on " in told
    assert ("error: process 1 of 2 on " in told) is not asleep
    assert "trainer/loop.py" in told
    waited = [float(seconds) for seconds in re.findall(r"no step ended for (\S+) s", told)]
    assert waited
    assert all(2 <= seconds < 3 for seconds in waited)  # hang_s, and far more than three of these steps
