"""Runner of one stage of one cell, under Slurm or without: one process at a time, resumed where it stopped.

    python -m slurm.cell SWEEP STAGE INDEX [--log FILE] [--wait_for_lock_s N] [--ranks N] [-- srun ...]

Standard library only, so that it starts at once on the machine of the batch script. Exit code 0: done, now or
before; 75: asked to stop, and queued again if Slurm is there; anything else: failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

from shards.errors import InputError
from shards.files import LockTaken, hold_lock
from slurm.launch import Launch
from slurm.submit import SlurmError, call, current_job
from slurm.tasks import HUNG, CellStart, StageState, SweepTask, Tasks, read_tasks, write_state

STOPPED = 75
"""Exit code of a command that was asked to stop and has saved (EX_TEMPFAIL: try again)."""
FAILED = 1
BRIEFLY_S = 2.0
"""Longest time for which a look at the lock holds it."""


def main(arguments: Sequence[str]) -> int:
    """Run one stage of one cell from the command line, and return its exit code."""
    cut = list(arguments).index("--") if "--" in arguments else len(arguments)
    launcher = list(arguments[cut + 1 :])
    parser = argparse.ArgumentParser(prog="python -m slurm.cell", description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("stage")
    parser.add_argument("index", type=int)
    parser.add_argument("--log", default="", help="where the output goes, for jobs.status")
    parser.add_argument("--wait_for_lock_s", type=float, default=BRIEFLY_S)
    parser.add_argument("--ranks", type=int, default=1, help="processes to start where no launcher is given")
    options = parser.parse_args(arguments[:cut])
    try:
        tasks = read_tasks(options.sweep)
        if not 0 <= options.index < len(tasks.cells):
            raise InputError(f"{options.sweep}: there is no cell {options.index}; it has {len(tasks.cells)}")
        task = tasks.cells[options.index]
        if options.stage not in task.stages:
            raise InputError(f"stage {options.stage!r}: known here: {', '.join(task.stages)}")
        runner = StageRunner(tasks, task, options.stage, log=options.log)
        return runner.run(launcher, num_ranks=options.ranks, wait_s=options.wait_for_lock_s)
    except (InputError, LockTaken) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, InputError) else FAILED


class StageRunner:
    """One attempt at one stage of one cell."""

    def __init__(self, tasks: Tasks, task: SweepTask, stage: str, *, log: str) -> None:
        self._tasks, self._task, self._name, self._log = tasks, task, stage, log
        self._stage = task.stages[stage]
        self._control = tasks.control(task)
        self._launch: Launch | None = None
        self._asked = 0  # the signal that asked to stop
        self._under_slurm = self._passed_on = False

    def run(self, launcher: Sequence[str], *, num_ranks: int, wait_s: float) -> int:
        """Take the lock (or raise LockTaken), and run the command, unless it is done or starts in vain."""
        self._under_slurm = bool(launcher)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._notice)
        self._control.mkdir(parents=True, exist_ok=True)
        owner = f"{_job_name()} on {socket.gethostname()}, process {os.getpid()}"
        with hold_lock(self._control / "lock", wait_s=wait_s, owner=owner) as lock:
            if self._tasks.is_done(self._task, self._name):
                self._say("done before")
                return 0
            state = self._tasks.state(self._task, self._name)
            mark = self._stage.progress_mark()
            if Path(state.log).is_file():  # of a start whose runner was killed
                state = state.closed(Path(state.log).stat().st_mtime, mark)
            if (starts := state.starts_from(mark)) >= self._tasks.max_starts_without_progress:
                reason = f"started {starts} times from {mark or 'the beginning'} without getting further"
                return self._finish(state, "failed", FAILED, reason)
            gpus, cpus = count_devices(num_ranks)
            start = CellStart(
                time=datetime.now(timezone.utc).isoformat(),
                host=socket.gethostname(),
                job=_job_name(),
                progress=mark,
                gpus=gpus,
                cpus=cpus,
            )
            state = StageState(state="running", starts=(*state.starts, start), log=self._log)
            write_state(self._control, self._name, state)
            if self._asked:
                return self._leave(state, STOPPED)
            where = mark or "the beginning"
            self._say(f"start {len(state.starts)}, from {where}: {self._stage.command}")
            self._launch = Launch(shlex.split(self._stage.command), launcher, num_ranks, keep_open=lock)
            self._pass_on()  # what came before there was anybody to ask
            return self._leave(state, self._launch.wait())

    def _notice(self, number: int, _frame: FrameType | None) -> None:
        self._asked = self._asked or number
        self._pass_on()

    def _pass_on(self) -> None:
        """Pass on the wish to stop, once: a second signal ends the command at once.

        Slurm itself sends TERM to the processes of a job that it ends, and srun would kill them at once if it
        got one; USR1 comes to the batch script alone, and srun passes it on.
        """
        by_slurm = self._under_slurm and self._asked == signal.SIGTERM
        if self._asked and self._launch is not None and not self._passed_on and not by_slurm:
            self._passed_on = True
            self._launch.ask_to_stop(signal.SIGUSR1 if self._under_slurm else signal.SIGTERM)

    def _leave(self, state: StageState, code: int) -> int:
        """Write what came of it, and queue the task again if it was only interrupted."""
        done = Path(self._stage.creates).exists() if self._stage.creates else code == 0
        if done:
            return self._finish(state, "done", code, "")
        if code == STOPPED or (self._asked and code) or (code and HUNG in state.told()):
            mark = self._stage.progress_mark()
            stuck = f"; no checkpoint since {mark or 'the beginning'}" * (mark == state.starts[-1].progress)
            self._finish(state, "stopped", STOPPED, f"{'asked to stop' if self._asked else 'left'}{stuck}")
            return self._queue_again(state)
        if code == 0:
            return self._finish(state, "failed", FAILED, f"ended well, but left no {self._stage.creates}")
        return self._finish(state, "failed", code, f"exit code {code}")

    def _queue_again(self, state: StageState) -> int:
        """Requeue this task, and it alone; not if Slurm is ending or requeueing it already."""
        job = current_job(os.environ)
        if not self._under_slurm or not job:
            return STOPPED
        try:
            if re.search(r"\bJobState=RUNNING\b", call(["scontrol", "show", "job", "-o", job])):
                call(["scontrol", "requeue", job])
                self._say(f"queued again as {job}")
        except SlurmError as error:
            return self._finish(state, "stopped", FAILED, f"saved, but not queued again: {error}")
        return STOPPED

    def _finish(self, state: StageState, name: str, code: int, reason: str) -> int:
        ended = state.closed(time.time(), self._stage.progress_mark())
        changed = dataclasses.replace(ended, state=name, exit_code=code, reason=reason)
        write_state(self._control, self._name, changed)
        self._say(f"{name} {reason}".strip())
        return 0 if name == "done" else code

    def _say(self, text: str) -> None:
        print(f"[{self._task.name}] {self._name}: {text}", flush=True)


def count_devices(num_ranks: int, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return how many GPUs and processors a cell holds, as Slurm says, or as it was started here."""
    nodes = int(environment.get("SLURM_NNODES", "1"))
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    threads = environment.get("OMP_NUM_THREADS", "1")
    cpus = num_ranks * (int(threads) if threads.isdecimal() else 1)
    here = int(environment.get("SLURM_GPUS_ON_NODE", len(visible)))
    return nodes * here, nodes * int(environment.get("SLURM_CPUS_ON_NODE", cpus))


def _job_name() -> str:
    return f"job {job}" if (job := current_job(os.environ)) else "a local process"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
