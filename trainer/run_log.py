"""Log file and profile of a run."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from shards.files import write_atomically
from trainer.collective import explain_failure

logger = logging.getLogger(__name__)

PROFILE_FOLDER = "profile"
WAIT, WARM_UP = 2, 1
"""Steps before the recorded ones: the first are not like the rest, and the profiler's own start costs."""


@contextmanager
def log_file(path: Path | None) -> Iterator[None]:
    """Also write log lines to `path`, appending, and put the time before every line, there and elsewhere.

    None changes nothing (ranks other than the main one). A log that cannot be written is warned of once, and
    the run goes on without.
    """
    if path is None:
        yield
        return
    with contextlib.ExitStack() as ended:
        try:
            file = _LogFile(path, encoding="utf-8")
            logging.getLogger().addHandler(file)
            ended.callback(file.stop)
        except OSError as error:
            _warn_of_log(str(path), error)
        for handler in logging.getLogger().handlers:
            ended.callback(handler.setFormatter, handler.formatter)
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
        yield


class _LogFile(logging.FileHandler):
    """A log file that ends with its first failure instead of printing a traceback for every line."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.stop()
        _warn_of_log(self.baseFilename, error)

    def stop(self) -> None:
        """Close the file, whatever of it is lost, and take no more lines."""
        logging.getLogger().removeHandler(self)
        with contextlib.suppress(OSError):  # what could not be written before cannot be now
            self.close()


def _warn_of_log(path: str, error: OSError) -> None:
    logger.warning("%s: cannot be written; the run goes on without: %s", path, explain_failure(error))


@contextmanager
def record_profile(run_folder: Path, steps: int) -> Iterator[Callable[[], None]]:
    """Yield what has to be called after each step; `steps` steps from the fourth are traced to profile/.

    `steps-A-B.pt.trace.json.gz` opens in https://ui.perfetto.dev and in TensorBoard's profile plugin;
    `operators.txt` lists the operations by their own time. A, B count this start's steps from 1. Recorded
    steps are slower; the others are not.
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

    cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    plan = schedule(wait=WAIT, warmup=WARM_UP, active=steps, repeat=1)
    activities = [ProfilerActivity.CPU, *cuda]
    with profile(activities=activities, schedule=plan, on_trace_ready=write, profile_memory=True) as profiler:
        yield profiler.step


def _write_trace(recorded: profile, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}")  # its ending makes the profiler compress it
    recorded.export_chrome_trace(str(partial))
    partial.replace(path)
    order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table = recorded.key_averages().table(sort_by=order, row_limit=30)
    write_atomically(path.parent / "operators.txt", table + "\n")
