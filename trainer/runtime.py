"""The end of a process: stop signals, time limit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import distributed

from shards.errors import InputError
from trainer.config import STOPPED
from trainer.sections import parse_limit

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SLURM_END = "SLURM_JOB_END_TIME"
"""Unix time at which Slurm ends the job; set by Slurm since 22.05."""
UNMEASURED_SAVE_S = 120.0
"""Time allowed for the first save; a tenth of the time limit if that is less."""


class Deadline:
    """Says once per step whether it is time to save and leave.

    The margin before the end covers what has been measured since the start: the longest time between two
    questions (a step, and validation and save where they fell between), and twice the longest save.
    """

    def __init__(self, end: float | None = None, now: Callable[[], float] = time.time) -> None:
        """Take the Unix time of the end, None where there is none, and a clock."""
        self._end, self._now = end, now
        self._asked: float | None = None
        self._longest_round = 0.0
        self._save = 0.0 if end is None else min(UNMEASURED_SAVE_S, max(0.0, (end - now()) / 10))
        self._measured = False

    def is_near(self) -> bool:
        """Say whether another step might not leave the time to save; ask once per step."""
        now = self._now()
        if self._asked is not None:  # before the first question lies the start-up
            self._longest_round = max(self._longest_round, now - self._asked)
        self._asked = now
        return self._end is not None and now + self.margin() >= self._end

    def margin(self) -> float:
        """Return the seconds before the end at which the run stops."""
        return self._longest_round + (2 * self._save if self._measured else self._save)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure a save."""
        started = self._now()
        yield
        took = self._now() - started
        self._save = max(self._save, took) if self._measured else took
        self._measured = True


def find_end(setting: str, started: float, environment: Mapping[str, str] = os.environ) -> float | None:
    """Turn `loop.time_limit`, counted from Unix time `started`, into that of the end; None for no limit."""
    if setting == "slurm":
        end = environment.get(SLURM_END, "")
        if not end.isdigit():
            lacking = f"slurm was given, but {SLURM_END} is {end or 'not set'}"
            raise InputError(f"loop.time_limit: {lacking}; give minutes or H:MM:SS instead")
        return float(end)
    limit = parse_limit(setting)
    return started + limit if limit else None


class StopAsked(SystemExit):
    """The run is to leave; raised by all ranks at one place."""

    def __init__(self) -> None:
        super().__init__(STOPPED)


class StopSignal:
    """Notices SIGTERM, SIGUSR1 and the end of the time, so that a job that must leave saves first.

    A second signal ends the process at once. As a context manager it puts the handlers back at the end.
    """

    def __init__(self, deadline: Deadline | None = None) -> None:
        self.deadline = deadline or Deadline()
        self._asked = False
        self.reason = ""
        """Why the run stops; the same on all ranks."""
        self._before: dict[int, object] = {}

    def listen(self) -> None:
        """Notice signals from now on, those included that were held back while modules were loaded."""
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._notice)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def __enter__(self) -> StopSignal:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __call__(self) -> bool:
        """Ask all ranks whether any of them must stop; all get the same answer."""
        return self._ask(self.deadline.is_near())

    def leave_if_asked(self, *, in_training: bool = True) -> None:
        """Wait for all ranks, and raise StopAsked on all of them if any must stop.

        The deadline counts `in_training` alone: how long a step takes, start-up does not tell.
        """
        if self._ask(in_training and self.deadline.is_near()):
            raise StopAsked

    def _ask(self, is_late: bool) -> bool:
        flags = torch.tensor([float(self._asked), float(is_late)])
        if distributed.is_initialized():
            flags = reduce(flags.to(PartialState().device), reduction="sum")
        asked, late = (flag > 0 for flag in flags.tolist())
        self.reason = "asked to stop" if asked else "time limit" if late else ""
        return bool(self.reason)

    def _notice(self, number: int, _frame: FrameType | None) -> None:
        if self._asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._asked = True
