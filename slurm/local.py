"""The same cells without Slurm: some at a time on one machine, under the same locks and rules."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm.tasks import LOGS_FOLDER


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How much of this machine one cell gets, and how many run at once."""

    at_once: int
    ranks: int
    gpus: Sequence[str] = ()
    """GPUs to share out, `ranks` to each cell; empty: the environment stays as it is."""

    def visible(self, slot: int) -> dict[str, str]:
        """Return the variable that shows the GPUs of the n-th place."""
        groups = len(self.gpus) // self.ranks
        if not groups:
            return {}
        first = slot % groups * self.ranks
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus[first : first + self.ranks])}


@dataclass
class _Place:
    """One of the places at which cells run, one after the other."""

    number: int
    index: int
    stages: Iterator[str]
    process: subprocess.Popen[bytes]


def run_locally(
    folder: Path,
    indices: Sequence[int],
    stages: Sequence[str],
    machine: Machine,
    *,
    python: str,
    environment: Mapping[str, str],
) -> dict[int, int]:
    """Run every stage of the cells, and return each one's exit code: 0, or that of the stage that failed.

    A cell that fails stops no other. When this process is interrupted or ended, the cells are asked to save
    first.
    """
    waiting, codes = list(indices), {}
    places: list[_Place] = []

    def start(number: int, index: int, stage: str) -> subprocess.Popen[bytes]:
        log = folder / LOGS_FOLDER / f"{stage}-local_{index}.log"
        command = [python, "-m", "slurm.cell", str(folder), stage, str(index), "--log", str(log)]
        with log.open("ab") as output:
            return subprocess.Popen(
                [*command, "--ranks", str(machine.ranks)],
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment, **machine.visible(number)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C comes to us, and we ask the cells to save
            )

    try:
        while waiting or places:
            taken = {place.number for place in places}
            for number in [n for n in range(machine.at_once) if n not in taken][: len(waiting)]:
                index, order = waiting.pop(0), iter(stages)
                places.append(_Place(number, index, order, start(number, index, next(order))))
            for place in [place for place in places if place.process.poll() is not None]:
                code = place.process.returncode
                stage = next(place.stages, None) if code == 0 else None
                if stage is None:
                    codes[place.index] = code
                    places.remove(place)
                else:
                    place.process = start(place.number, place.index, stage)
            time.sleep(0.05)
    except BaseException:
        for place in places:
            place.process.send_signal(signal.SIGTERM)
        for place in places:
            place.process.wait()
        raise
    return codes
