"""Trainings killed and signalled at random moments, resumed, and compared to the bit with one never stopped.

Each trial starts a tiny run of `jobs.finetune`, as one process or two, does one thing to it at a random
moment (start-up, validation and saves included), looks at what is left, and resumes it. FAULT_SEEDS=7 in the
environment takes seven moments of each kind; `-s` shows in what each one fell, and what the trial lost.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from signal import SIGKILL, SIGTERM, SIGUSR1

import numpy as np
import pytest

from jobs import finetune
from models.weights.run_files import list_checkpoints
from tests.support.forked import join, read_said, run_ranks, start_ranks
from tests.trainer.small_run import assert_equal, make_arguments, weights
from trainer.resume import require_files
from trainer.runtime import STOPPED

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
MOST_S, BEREFT_S = 20.0, 3.0
"""Time in which a process that was asked to stop must have left, and after which one whose other was killed
is ended, as by a launcher."""


@dataclass(frozen=True)
class Fault:
    """One way to disturb a run."""

    signals: tuple[int, ...]
    """Sent one after the other, up to 0.1 s apart."""
    within: str = ""
    """Pattern of a file in the run's folder that the first one waits for; empty: none."""
    targets: tuple[int, ...] = (0,)
    """Ranks that get the signals."""
    ranks: int = 1


SAVE, VALIDATION = "checkpoints/.*.partial", "[.t][im][mp]*"
"""Folders of a save and of a validation, which is .images, or tmp... of one process."""
FAULTS: dict[str, Fault] = {
    "kill -9": Fault((SIGKILL,)),
    "kill -9 in a save": Fault((SIGKILL,), within=SAVE),
    "SIGTERM": Fault((SIGTERM,)),
    "SIGUSR1": Fault((SIGUSR1,)),
    "SIGTERM twice": Fault((SIGTERM, SIGTERM)),
    "SIGUSR1, SIGTERM in a save": Fault((SIGUSR1, SIGTERM), within=SAVE),
    "SIGUSR1 in a save": Fault((SIGUSR1,), within=SAVE),
    "SIGUSR1 in a validation": Fault((SIGUSR1,), within=VALIDATION),
    "two processes: kill -9 of one": Fault((SIGKILL,), ranks=2, targets=(1,)),
    "two processes: kill -9 of both in a save": Fault((SIGKILL,), within=SAVE, ranks=2, targets=(0, 1)),
    "two processes: SIGTERM to one": Fault((SIGTERM,), ranks=2, targets=(1,)),
    "two processes: SIGTERM to both": Fault((SIGTERM,), ranks=2, targets=(0, 1)),
    "two processes: SIGUSR1 to one in a validation": Fault((SIGUSR1,), VALIDATION, targets=(1,), ranks=2),
}
SEEDS = pytest.mark.parametrize("seed", range(int(os.environ.get("FAULT_SEEDS", "1"))))
Whole = tuple[Path, float]
"""Where a run never stopped lies, and the seconds it took."""


def arguments(out: Path, scenes: str, ranks: int) -> list[str]:
    """Return the arguments of a run; its global batch does not depend on the number of ranks."""
    steps = ["--loop.steps", str(STEPS), "--loop.save_every", "3", "--loop.keep_checkpoints", "2"]
    lora = ["--adapt.mode", "lora", "--adapt.lora.dropout", "0.1", "--tracking.tensorboard", "False"]
    best = ["--validation.shards", scenes, "--validation.select", "miou", "--loop.eval_every", "4"]
    return make_arguments(out, scenes, "--data.batch_size", str(4 // ranks), *steps, *lora, *best)


def load(_: Sequence[str]) -> None:
    """Be a program that does nothing."""


@pytest.fixture(name="whole", scope="module")
def _whole(tmp_path_factory: pytest.TempPathFactory, scene_shards: str) -> Callable[[int], Whole]:
    """Give the run of some ranks that nobody disturbs, after a process that loads what all of them share."""
    run_ranks(load, [], tmp_path_factory.mktemp("loaded"))

    @functools.cache
    def run(ranks: int) -> Whole:
        folder, started = tmp_path_factory.mktemp("whole"), time.perf_counter()
        run_ranks(finetune.main, arguments(folder, scene_shards, ranks), folder / "said", ranks)
        return folder, time.perf_counter() - started

    return run


@SEEDS
@pytest.mark.parametrize("kind", FAULTS)
def test_an_interrupted_run_ends_in_the_bits_of_one_never_stopped(
    tmp_path: Path, scene_shards: str, whole: Callable[[int], Whole], kind: str, seed: int
) -> None:
    fault, draw = FAULTS[kind], np.random.default_rng([seed, *kind.encode()])
    expected, seconds = whole(fault.ranks)
    options = arguments(tmp_path, scene_shards, fault.ranks)
    processes = start_ranks(finetune.main, options, tmp_path / "said", fault.ranks)
    moment = disturb(processes, fault, tmp_path, seconds, draw)
    asked = time.monotonic()
    codes = join(processes, BEREFT_S if SIGKILL in fault.signals else MOST_S)
    took = time.monotonic() - asked
    checkpoints, log = list_checkpoints(tmp_path / "run/checkpoints"), tmp_path / "run/log.txt"
    for path in checkpoints:
        require_files(path)
    saved = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
    logged = re.findall(r"step (\d+)/", log.read_text()) if log.exists() else []
    step, told = int(logged[-1]) if logged else 0, read_said(tmp_path / "said")
    lost = f"codes {codes}, {step - saved} lost, {took:.1f} s"
    print(f"\ntrial of {kind}, seed {seed}, {moment}: {lost}")
    if fault.signals in ((SIGTERM,), (SIGUSR1,)) and any(codes):  # asked once, and not at the end
        assert set(codes) == {STOPPED}, told
        assert step == saved, told
    run_ranks(finetune.main, [*options, "--resume"], tmp_path / "resumed", fault.ranks)
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert_equal(weights(tmp_path, STEPS, file=file), weights(expected, STEPS, file=file))
    ends = [json.loads((folder / "run/finished.json").read_text()) for folder in (tmp_path, expected)]
    assert ends[0] == ends[1]


def disturb(
    processes: Sequence[BaseProcess], fault: Fault, folder: Path, seconds: float, draw: np.random.Generator
) -> str:
    """Send the signals: at a moment of the run's usual length, or up to 0.05 s into what comes next.

    They come once every rank listens; the test below sends one before. Returned is what the run was doing.
    """
    for process in processes:
        while process.is_alive() and process.pid and not has_signal(process.pid, "SigCgt"):
            time.sleep(0.001)
    time.sleep(float(draw.uniform(0, 0.8 * seconds)))
    if fault.within:
        while processes[0].is_alive() and not list((folder / "run").glob(fault.within)):
            time.sleep(0.001)
        time.sleep(float(draw.uniform(0, 0.05)))
    moment = tell_moment(processes, folder / "run")
    for number in fault.signals:
        for target in fault.targets:
            pid = processes[target].pid
            if processes[target].is_alive() and pid is not None:
                os.kill(pid, number)
        time.sleep(float(draw.uniform(0, 0.1)))
    return moment


def tell_moment(processes: Sequence[BaseProcess], run: Path) -> str:
    """Say what a run is doing, as its folder shows it."""
    if not processes[0].is_alive():
        return "after its end"
    for moment, pattern in (("in a save", SAVE), ("in a validation", VALIDATION)):
        if list(run.glob(pattern)):
            return moment
    log = run / "log.txt"
    return "between steps" if log.exists() and " step 1/" in log.read_text() else "before the first step"


def has_signal(pid: int, mask: str) -> bool:
    """Say whether SIGUSR1 is in a mask of a process: of the signals that it catches, or holds back."""
    found = re.search(rf"{mask}:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return found is not None and bool(int(found[1], 16) >> (SIGUSR1 - 1) & 1)


@SEEDS
def test_a_signal_while_modules_are_loaded_is_noticed_later(
    tmp_path: Path, scene_shards: str, seed: int
) -> None:
    command = [sys.executable, "-m", "jobs.finetune", *arguments(tmp_path, scene_shards, 1)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not has_signal(process.pid, "SigBlk"):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(float(np.random.default_rng(seed).uniform(0, 0.5)))
        process.send_signal(SIGUSR1)
        _, told = process.communicate(timeout=120)
    assert process.returncode == STOPPED, told
    assert "asked to stop before the first step: nothing new was to save" in told
    assert not (tmp_path / "run" / "checkpoints").exists()
