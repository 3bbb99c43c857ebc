"""Processes of one command: one srun, every rank started here, or a whole sweep on one machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shards.cores import share_cores
from shards.errors import InputError
from slurm.resources import Resources
from slurm.tasks import LOGS_FOLDER

GRACE_S = 60.0
"""Seconds for which the other ranks may go on after one has failed."""


class Launch:
    """A command that runs, as one process or as several ranks.

    `launcher` are words that start all ranks, such as srun and its options; without them `num_ranks` are
    started here. Every process inherits the descriptor `keep_open`.
    """

    def __init__(
        self, command: Sequence[str], launcher: Sequence[str], num_ranks: int, *, keep_open: int
    ) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        environments = [dict(os.environ)]
        if not launcher and num_ranks > 1:
            port = find_free_port()
            environments = [{**os.environ, **rank_variables(i, num_ranks, port)} for i in range(num_ranks)]
        for environment in environments:
            process = subprocess.Popen(
                [*launcher, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=(keep_open,),
                start_new_session=not launcher,  # Ctrl-C is ours to pass on
            )
            self._processes.append(process)

    def ask_to_stop(self, number: int) -> None:
        """Send a signal to every process that still runs."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def wait(self) -> int:
        """Wait for all; return 0, or the first exit code that is not (128 + n after signal n).

        A rank that fails leaves the others waiting for it, so they are ended after a minute.
        """
        failed, deadline = 0, 0.0
        while True:
            codes = [process.poll() for process in self._processes]
            failed = failed or next((code for code in codes if code), 0)
            if None not in codes:
                return failed if failed >= 0 else 128 - failed
            if failed and not deadline:
                deadline = time.monotonic() + GRACE_S
            if deadline and time.monotonic() > deadline:
                self.ask_to_stop(signal.SIGKILL)
            time.sleep(0.05)


def rank_variables(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """Return what tells one of several processes of this machine who it is, as torchrun does."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in {**ranks, **meeting}.items()}


def find_free_port() -> int:
    """Return a port of this machine that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Share of this machine that one cell gets."""

    at_once: int
    """Number of cells that run at once."""
    ranks: int
    """Processes of each cell."""
    gpus: Sequence[str] = ()
    """GPUs to share out, `ranks` to each cell; empty: all see what this process sees."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables for every cell."""

    def variables(self, slot: int) -> dict[str, str]:
        """Return the variables of a cell at the n-th place, among them the GPUs that it may see."""
        groups = len(self.gpus) // self.ranks
        first = slot % groups * self.ranks if groups else 0
        visible = ",".join(self.gpus[first : first + self.ranks])
        return {**self.environment, **({"CUDA_VISIBLE_DEVICES": visible} if groups else {})}


def share_machine(resources: Resources, at_once: int, count: int) -> Machine:
    """Share this machine and its `count` GPUs among `at_once` cells at a time; 0: as many as have GPUs."""
    ranks = resources.num_ranks
    if at_once == 0 and count < ranks:
        has = f"this machine has {count} GPUs, and a cell takes {ranks}"
        raise InputError(f"--local 0: {has}; --local 1 uses the CPU")
    if 0 < count < ranks:
        raise InputError(f"--local: a cell has {ranks} processes, and this machine {count} GPUs")
    gpus, at_once = [str(i) for i in range(count)], at_once or count // ranks
    environment = {**share_cores(at_once * ranks), **resources.environment}
    return Machine(at_once=at_once, ranks=ranks, gpus=gpus, environment=environment)


@dataclass
class _Slot:
    """One of the places at which cells run, one after the other."""

    number: int
    index: int
    stages: Iterator[str]
    process: subprocess.Popen[bytes] | None = None


def run_locally(
    folder: Path, indices: Sequence[int], stages: Sequence[str], machine: Machine
) -> dict[int, int]:
    """Run every stage of the cells, and return each one's exit code: 0, or that of the stage that failed.

    A cell that fails stops no other. When this process is interrupted, the cells are asked to save first.
    """
    waiting, free, codes = deque(indices), deque(range(machine.at_once)), dict[int, int]()
    slots: list[_Slot] = []
    try:
        while waiting or slots:
            while waiting and free:
                slots.append(_Slot(free.popleft(), waiting.popleft(), iter(stages)))
            for slot in list(slots):
                code = slot.process.poll() if slot.process else 0
                if code is None:
                    continue
                stage = next(slot.stages, None) if code == 0 else None
                if stage:
                    slot.process = _start_stage(folder, stage, slot, machine)
                else:
                    codes[slot.index] = code
                    free.append(slot.number)
                    slots.remove(slot)
            time.sleep(0.05)
    finally:  # nothing runs any more, unless this process was asked to end
        processes = [slot.process for slot in slots if slot.process]
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()
    return codes


def _start_stage(folder: Path, stage: str, slot: _Slot, machine: Machine) -> subprocess.Popen[bytes]:
    log = folder / LOGS_FOLDER / f"{stage}-local_{slot.index}.log"
    words = [str(folder), stage, str(slot.index), "--log", str(log), "--ranks", str(machine.ranks)]
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "slurm.cell", *words],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **machine.variables(slot.number)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes to us, and we ask the cells to save
        )
