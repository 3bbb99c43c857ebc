"""The project's programs, started by name in a child forked from a process that has loaded torch once.

`python -m jobs.NAME` loads torch for 7 s each time; here only the project's own modules are loaded anew.
Every program runs in the work folder, so that the paths it is given, and repeats, are relative.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = (
    "torch", "torch.distributed", "torch.utils.tensorboard", "timm", "accelerate", "peft",
    "safetensors.torch", "cv2", "scipy.stats", "scipy.ndimage", "matplotlib.pyplot", "pycocotools.mask",
    "webdataset", "tyro", "psutil", "yaml",
)  # fmt: skip
"""Packages of others, none of the project."""
PATIENCE_S = 600


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    code: int
    printed: str
    """Standard output."""
    said: str
    """Standard error."""

    @property
    def last_line(self) -> str:
        """Return the last line of standard error; empty where it said nothing."""
        return (self.said.strip().splitlines() or [""])[-1]


class Programs:
    """Starts programs in one work folder."""

    def __init__(self, work: Path) -> None:
        """Load what the programs load, and set the environment that all of them see."""
        self.work = work
        self._count = 0
        os.environ.update(environment())
        os.chdir(work)
        sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
        for name in PRELOADED:
            importlib.import_module(name)

    def run(self, job: str, *words: object) -> Outcome:
        """Run `python -m jobs.JOB` to its end."""
        process, finish = self._start(job, words)
        process.join(PATIENCE_S)
        if process.is_alive():
            process.kill()
            raise RuntimeError(f"jobs.{job} takes longer than {PATIENCE_S} s")
        return finish()

    def succeed(self, job: str, *words: object) -> Outcome:
        """Run a program that must end with exit code 0.

        Raises:
            RuntimeError: it did not.
        """
        outcome = self.run(job, *words)
        if outcome.code != 0:
            command = " ".join(map(str, words))
            raise RuntimeError(f"jobs.{job} {command}: exit code {outcome.code}: {outcome.said[-3000:]}")
        return outcome

    def kill_when(self, is_time: Callable[[], bool], job: str, *words: object) -> bool:
        """Start a program and kill it by SIGKILL once `is_time`; return whether it was killed."""
        process, _ = self._start(job, words)
        deadline = time.monotonic() + PATIENCE_S
        while process.is_alive() and not is_time() and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.join()
        return process.exitcode == -9

    def launch(self, ranks: int, job: str, *words: object) -> Outcome:
        """Run a program as so many ranks by torch's own launcher.

        Raises:
            RuntimeError: it failed.
        """
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, "--nproc_per_node", str(ranks), "-m", f"jobs.{job}", *map(str, words)]
        done = subprocess.run(command, cwd=self.work, capture_output=True, text=True, timeout=PATIENCE_S)
        if done.returncode:
            raise RuntimeError(f"{command}: exit code {done.returncode}: {done.stderr[-3000:]}")
        return Outcome(done.returncode, done.stdout, done.stderr)

    def _start(self, job: str, words: tuple[object, ...]) -> tuple[BaseProcess, Callable[[], Outcome]]:
        self._count += 1
        folder = self.work / "said"
        folder.mkdir(exist_ok=True)
        printed, said = (folder / f"{self._count:04d}-{job}.{name}" for name in ("out", "err"))
        context = multiprocessing.get_context("fork")
        process = context.Process(
            target=_be_program, args=(job, [str(word) for word in words], printed, said)
        )
        process.start()

        def finish() -> Outcome:
            texts = (path.read_text(encoding="utf-8") for path in (printed, said))
            return Outcome(process.exitcode or 0, *texts)

        return process, finish


def environment() -> Mapping[str, str]:
    """Return the variables that decide bits or texts: one thread, 100 columns, no colour, no GPU."""
    return {
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
        "LINES": "40",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "PYTHONUTF8": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }


def _be_program(job: str, words: list[str], printed: Path, said: Path) -> None:
    """Become `python -m jobs.JOB`, with its output in two files."""
    for stream, path in ((1, printed), (2, said)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)
    sys.argv = [f"jobs.{job}", *words]
    sys.orig_argv = [sys.executable, "-m", f"jobs.{job}", *words]
    try:
        runpy.run_module(f"jobs.{job}", run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
