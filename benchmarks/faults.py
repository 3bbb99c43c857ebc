"""Trainings killed and signalled at random moments, resumed, and compared to the bit with one never stopped.

python -m benchmarks.faults [--trials 63] [--seed 0] [--out RESULTS.md]

Each trial starts a tiny run of `jobs.finetune`, as one process or two, does one thing to it at a random
moment (start-up and saves included), looks at what is left, resumes it, and compares weights and optimizer at
the end. The runs are forked from a process that has loaded torch; else they are what a user starts.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from signal import SIGKILL, SIGTERM, SIGUSR1
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.machine import ReportOptions, describe_machine, table
from jobs import finetune
from models.weights.checkpoint import list_checkpoints
from shards.errors import InputError
from shards.program import run_program
from shards.settings import parse_options
from tests.conftest import write_scenes
from tests.support.forked import join, read_said, start_ranks
from trainer.resume import require_files

STEPS, SAVE_EVERY = 24, 3
PATIENCE_S = 30.0
HEADER = (
    "kind | trials | before the first step | after the last | exit codes | saves cut off "
    "| steps lost, mean | most | failures"
)


@dataclass(frozen=True, kw_only=True)
class FaultOptions(ReportOptions):
    """Interrupt tiny trainings at random moments, resume them, and compare."""

    trials: int = 63
    """Interruptions; the kinds take turns."""
    seed: int = 0
    """Seed of the moments."""


@dataclass(frozen=True)
class Fault:
    """One way to disturb a run."""

    signals: tuple[int, ...]
    """Sent one after the other, up to 0.1 s apart."""
    in_save: bool = False
    """Whether the first one waits for a save to begin."""
    ranks: int = 1
    targets: tuple[int, ...] = (0,)
    """Ranks that get the signals."""


FAULTS: dict[str, Fault] = {
    "kill -9": Fault((SIGKILL,)),
    "kill -9 in a save": Fault((SIGKILL,), in_save=True),
    "SIGTERM": Fault((SIGTERM,)),
    "SIGUSR1": Fault((SIGUSR1,)),
    "SIGTERM twice": Fault((SIGTERM, SIGTERM)),
    "SIGUSR1, SIGTERM in a save": Fault((SIGUSR1, SIGTERM), in_save=True),
    "two processes: kill -9 of one": Fault((SIGKILL,), ranks=2, targets=(1,)),
    "two processes: kill -9 of both in a save": Fault((SIGKILL,), in_save=True, ranks=2, targets=(0, 1)),
    "two processes: SIGTERM to one": Fault((SIGTERM,), ranks=2, targets=(1,)),
}
State = Mapping[str, torch.Tensor]
"""Weights and optimizer of a checkpoint by name."""


class Outcome(NamedTuple):
    """Result of one trial."""

    codes: list[int]
    """Exit codes of the disturbed run; -n is death by signal n."""
    step: int
    """Last step in its log."""
    saved: int
    """Step of its newest checkpoint."""
    half_saves: int
    """Saves that were caught unfinished."""
    failure: str
    """Broken promise; empty if all were kept."""


def main(arguments: Sequence[str]) -> None:
    """Take the trials, and print a report in Markdown; exit with 1 if one failed."""
    options: FaultOptions = parse_options(FaultOptions, arguments, program="benchmarks.faults")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        scenes = write_scenes(Path(folder))
        outcomes = run_trials(Path(folder), scenes, trials=options.trials, seed=options.seed)
    lines = [
        describe_machine(1, [torch]),
        "",
        f"Runs of {STEPS} steps with a checkpoint every {SAVE_EVERY}, EoMT-tiny with LoRA and dropout, "
        "batch 4. A trial interrupts one, resumes it, and compares weights and optimizer state of the last "
        "step with a run never stopped, to the bit. "
        f"Seed {options.seed}; {time.perf_counter() - started:.0f} s in all.",
        "Exit code -n is death by signal n. Steps lost: in the log, and not in the newest checkpoint.",
        *report(outcomes),
    ]
    options.publish("Faults at random moments", lines)
    if any(outcome.failure for taken in outcomes.values() for outcome in taken):
        sys.exit(1)


def report(outcomes: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """Lay the outcomes out as Markdown."""
    rows = []
    for kind, taken in outcomes.items():
        lost = [max(0, outcome.step - outcome.saved) for outcome in taken] or [0]
        codes = sorted({code for outcome in taken for code in outcome.codes})
        row = [kind, len(taken), sum(outcome.step == 0 for outcome in taken)]
        row += [sum(outcome.saved == STEPS for outcome in taken), " ".join(map(str, codes))]
        row += [sum(outcome.half_saves for outcome in taken), f"{np.mean(lost):.1f}", max(lost)]
        rows.append([*row, sum(bool(outcome.failure) for outcome in taken)])
    failures = [f"- {kind}: {each.failure}" for kind in outcomes for each in outcomes[kind] if each.failure]
    trials = sum(map(len, outcomes.values()))
    return [*table(HEADER, rows), "", f"{trials} trials, {len(failures)} failures.", *failures]


def run_trials(
    folder: Path, scenes: str, *, trials: int, seed: int, kinds: Sequence[str] = tuple(FAULTS)
) -> dict[str, list[Outcome]]:
    """Take trials of some kinds in turn, writing to `folder`; `scenes` is a pattern of shards."""
    outcomes: dict[str, list[Outcome]] = {kind: [] for kind in kinds}
    whole: dict[int, tuple[State, float]] = {}
    draw = np.random.default_rng(seed)
    for index in range(trials):
        kind = kinds[index % len(kinds)]
        fault = FAULTS[kind]
        if fault.ranks not in whole:
            whole[fault.ranks] = train_whole(folder, scenes, fault.ranks)
        outcome = take_trial(fault, folder / f"trial-{index}", scenes, *whole[fault.ranks], draw)
        outcomes[kind].append(outcome)
        failures = sum(bool(outcome.failure) for outcome in outcomes[kind])
        logging.info("%d of %d: %s; failures %d", index + 1, trials, kind, failures)
    return outcomes


def train_whole(folder: Path, scenes: str, ranks: int) -> tuple[State, float]:
    """Run without interruption; return the end, and the seconds it took."""
    for name in ("first", "whole"):  # the first one loads what is loaded late
        run = folder / f"{name}-{ranks}"
        started = time.perf_counter()
        codes = join(start(run, scenes, ranks), PATIENCE_S)
        seconds = time.perf_counter() - started
        if any(codes):
            raise RuntimeError(f"a run without interruption failed, exit codes {codes}: {read_said(run)}")
    return read_end(run), seconds


def take_trial(
    fault: Fault, folder: Path, scenes: str, whole: State, seconds: float, draw: np.random.Generator
) -> Outcome:
    """Disturb a run, look at what is left, resume it, and compare its end with a whole run's."""
    processes = start(folder, scenes, fault.ranks)
    disturb(processes, fault, folder, seconds, draw)
    codes = join(processes, PATIENCE_S)
    checkpoints, log = folder / "run/checkpoints", folder / "run/log.txt"
    half_saves = len(list(checkpoints.glob(".*.partial")))
    found = list_checkpoints(checkpoints)
    saved = int(found[-1].name.removeprefix("step-")) if found else 0
    logged = re.findall(r"step (\d+)/", log.read_text()) if log.exists() else []
    step = int(logged[-1]) if logged else 0
    failure = find_damage(found) or find_wrong_codes(fault, codes, step, saved)
    if not failure and any(join(start(folder, scenes, fault.ranks, "--resume"), PATIENCE_S)):
        failure = "does not resume"
    failure = failure or differ(whole, read_end(folder))
    if failure:
        failure += f" (codes {codes}, step {step}, saved {saved}): {read_said(folder).splitlines()[-1:]}"
    shutil.rmtree(folder)
    return Outcome(codes, step, saved, half_saves, failure)


def start(folder: Path, scenes: str, ranks: int, *extra: str) -> list[BaseProcess]:
    """Start a run; its global batch does not depend on the number of ranks."""
    arguments = [
        "--name", "run", "--out", str(folder), "--data.shards", scenes, "--data.crop", "32", "32",
        "--data.batch_size", str(4 // ranks), "--data.workers", "0",
        "--model.size", "tiny", "--model.image_size", "32", "32", "--model.num_queries", "5",
        "--adapt.mode", "lora", "--adapt.lora.dropout", "0.1", "--loss.options.mask.num_points", "32",
        "--optim.lr", "1e-3", "--loop.steps", str(STEPS), "--loop.save_every", str(SAVE_EVERY),
        "--loop.log_every", "1", "--loop.keep_checkpoints", "2",
    ]  # fmt: skip
    return start_ranks(finetune.main, [*arguments, *extra], folder, ranks)


def disturb(
    processes: Sequence[BaseProcess], fault: Fault, folder: Path, seconds: float, draw: np.random.Generator
) -> None:
    """Send the signals: at a moment of the run's usual length, or up to 0.05 s into the next save."""
    time.sleep(float(draw.uniform(0, 0.8 * seconds)))
    if fault.in_save:
        while processes[0].is_alive() and not list((folder / "run/checkpoints").glob(".*.partial")):
            time.sleep(0.001)
        time.sleep(float(draw.uniform(0, 0.05)))
    for number in fault.signals:
        for target in fault.targets:
            pid = processes[target].pid
            if processes[target].is_alive() and pid is not None:
                os.kill(pid, number)
        time.sleep(float(draw.uniform(0, 0.1)))


def find_damage(checkpoints: Sequence[Path]) -> str:
    """Say which checkpoint cannot be read."""
    for path in checkpoints:
        try:
            require_files(path)
        except InputError as error:
            return f"{path.name} is damaged: {error}"
    return ""


def find_wrong_codes(fault: Fault, codes: Sequence[int], step: int, saved: int) -> str:
    """Say if a run that was asked to stop, once, left otherwise than promised."""
    if SIGKILL in fault.signals or len(fault.signals) > 1 or (saved == STEPS and not any(codes)):
        return ""
    if set(codes) == {finetune.STOPPED}:
        return "" if step == saved else "left with 75 and without its last step"
    return "" if step == 0 else "did not leave with 75"


def read_end(folder: Path) -> dict[str, torch.Tensor]:
    """Read weights and optimizer of the last step."""
    last = folder / "run" / "checkpoints" / f"step-{STEPS:07d}"
    values = load_file(last / "model.safetensors")
    return values | load_file(last / "optimizer.safetensors")


def differ(expected: State, actual: State) -> str:
    """Name the first difference, to the bit."""
    if expected.keys() != actual.keys():
        return "the checkpoint holds other names"
    name = next((name for name in expected if not torch.equal(expected[name], actual[name])), None)
    return "" if name is None else f"{name} differs"


if __name__ == "__main__":
    run_program(main)
