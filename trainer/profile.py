"""A trace of some steps: which operation took how long, on which device, and in which order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from shards.files import write_atomically

logger = logging.getLogger(__name__)

PROFILE_FOLDER = "profile"
WAIT, WARM_UP = 2, 1
"""Steps before the recorded ones: the first are not like the rest, and the profiler's own start costs."""


@contextmanager
def record_profile(run_folder: Path, steps: int) -> Iterator[Callable[[], None]]:
    """Yield what has to be called after each step; the trace of `steps` steps goes to the run's profile/.

    `steps-A-B.pt.trace.json.gz` opens in https://ui.perfetto.dev and in TensorBoard's profile plugin;
    `operators.txt` lists the operations by their own time. A, B count this start's steps from 1. Recorded
    steps are slower; the others are not.

    Args:
        steps: how many to record after the first three; 0: none.
    """
    if not steps:
        yield lambda: None
        return
    first = WAIT + WARM_UP + 1
    path = run_folder / PROFILE_FOLDER / f"steps-{first}-{first + steps - 1}.pt.trace.json.gz"

    def write(recorded: profile) -> None:
        try:
            _write_trace(recorded, path)
            logger.info("traced %d steps: %s", steps, path)
        except (OSError, RuntimeError) as error:  # a trace is not worth the end of a run
            logger.warning("%s: the trace cannot be written: %s", path, " ".join(str(error).split()))

    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    with profile(
        activities=activities,
        schedule=schedule(wait=WAIT, warmup=WARM_UP, active=steps, repeat=1),
        on_trace_ready=write,
        profile_memory=True,
    ) as profiler:
        yield profiler.step


def _write_trace(recorded: profile, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}")  # its ending makes the profiler compress it
    recorded.export_chrome_trace(str(partial))
    partial.replace(path)
    order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table = recorded.key_averages().table(sort_by=order, row_limit=30)
    write_atomically(path.parent / "operators.txt", table + "\n")
