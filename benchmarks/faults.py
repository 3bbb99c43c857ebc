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
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import cv2
import numpy as np
import torch
import webdataset
from safetensors.torch import load_file

from benchmarks.machine import describe_machine, publish
from jobs import finetune
from models.weights.checkpoint import list_checkpoints
from shards.settings import parse_options, run_program
from tests.support.forked import join, read_said, run_ranks, start_ranks

STEPS, SAVE_EVERY = 24, 3
PATIENCE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class FaultOptions:
    """Interrupt tiny trainings at random moments, resume them, and compare."""

    trials: int = 63
    """Interruptions; the kinds take turns."""
    seed: int = 0
    """Of the moments."""
    out: Path | None = None
    """File to write the report to as well."""


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
    "kill -9": Fault((signal.SIGKILL,)),
    "kill -9 in a save": Fault((signal.SIGKILL,), in_save=True),
    "SIGTERM": Fault((signal.SIGTERM,)),
    "SIGUSR1": Fault((signal.SIGUSR1,)),
    "SIGTERM twice": Fault((signal.SIGTERM, signal.SIGTERM)),
    "SIGUSR1, SIGTERM in a save": Fault((signal.SIGUSR1, signal.SIGTERM), in_save=True),
    "two processes: kill -9 of one": Fault((signal.SIGKILL,), ranks=2, targets=(1,)),
    "two processes: kill -9 of both in a save": Fault(
        (signal.SIGKILL,), in_save=True, ranks=2, targets=(0, 1)
    ),
    "two processes: SIGTERM to one": Fault((signal.SIGTERM,), ranks=2, targets=(1,)),
}


@dataclass
class Tally:
    """What came of the trials of one kind."""

    trials: int = 0
    before_training: int = 0
    """Trials that ended before the first step."""
    after_training: int = 0
    """Trials whose run was done before the signal came."""
    codes: set[int] = field(default_factory=set)
    lost: list[int] = field(default_factory=list)
    """Steps in the log that the newest checkpoint lacks."""
    half_saves: int = 0
    """Saves that were caught unfinished."""
    failures: list[str] = field(default_factory=list)


class Trials:
    """Runs of one tiny configuration, interrupted and not.

    Args:
        folder: for everything that is written.
        scenes: shards, as a pattern.
        seed: of the moments.
    """

    def __init__(self, folder: Path, scenes: str, seed: int) -> None:
        self._folder, self._scenes = folder, scenes
        self._draw = np.random.default_rng(seed)
        self._whole: dict[int, dict[str, torch.Tensor]] = {}
        self._seconds: dict[int, float] = {}

    def run(self, kind: str, tally: Tally) -> None:
        """Take one trial of a kind, and add what came of it."""
        fault = FAULTS[kind]
        if fault.ranks not in self._whole:
            self._train_whole(fault.ranks)
        folder = self._folder / f"trial-{len(list(self._folder.iterdir()))}"
        tally.trials += 1
        processes = self._start(folder, fault.ranks)
        self._disturb(processes, fault, folder)
        codes = join(processes, PATIENCE_S)
        tally.codes.update(codes)
        checkpoints = folder / "run" / "checkpoints"
        tally.half_saves += len(list(checkpoints.glob(".*.partial")))
        found, seen = list_checkpoints(checkpoints), _logged_step(folder / "run" / "log.txt")
        newest = int(found[-1].name.removeprefix("step-")) if found else 0
        tally.before_training += seen == 0
        tally.after_training += newest == STEPS
        tally.lost.append(max(0, seen - newest))
        problem = _find_damage(found) or _find_wrong_codes(fault, codes, seen, newest)
        if not problem and any(join(self._start(folder, fault.ranks, "--resume"), PATIENCE_S)):
            problem = "does not resume"
        if not problem:
            problem = _differ(self._whole[fault.ranks], _read_end(folder))
        if problem:
            output = read_said(folder).splitlines()
            tally.failures.append(f"{problem} (codes {codes}, step {seen}, saved {newest}): {output[-1:]}")
        shutil.rmtree(folder)

    def _train_whole(self, ranks: int) -> None:
        """Run without interruption, twice: the first one loads what is loaded late, the second is timed."""
        for name in ("first", "whole"):
            folder = self._folder / f"{name}-{ranks}"
            started = time.perf_counter()
            arguments = _arguments(folder, self._scenes, 4 // ranks)
            run_ranks(finetune.main, arguments, folder, ranks, patience_s=PATIENCE_S)
            self._seconds[ranks] = time.perf_counter() - started
        self._whole[ranks] = _read_end(folder)

    def _start(self, folder: Path, ranks: int, *extra: str) -> list[BaseProcess]:
        arguments = [*_arguments(folder, self._scenes, 4 // ranks), *extra]
        return start_ranks(finetune.main, arguments, folder, ranks)

    def _disturb(self, processes: Sequence[BaseProcess], fault: Fault, folder: Path) -> None:
        """Send the signals: at a moment of the run's usual length, or up to 0.05 s into the next save."""
        time.sleep(float(self._draw.uniform(0, 0.8 * self._seconds[fault.ranks])))
        if fault.in_save:
            checkpoints = folder / "run" / "checkpoints"
            while processes[0].is_alive() and not list(checkpoints.glob(".*.partial")):
                time.sleep(0.001)
            time.sleep(float(self._draw.uniform(0, 0.05)))
        for number in fault.signals:
            for target in fault.targets:
                pid = processes[target].pid
                if processes[target].is_alive() and pid is not None:
                    os.kill(pid, number)
            time.sleep(float(self._draw.uniform(0, 0.1)))


def _arguments(out: Path, scenes: str, batch_size: int) -> list[str]:
    return [
        "--name", "run", "--out", str(out), "--data.shards", scenes, "--data.crop", "32", "32",
        "--data.batch_size", str(batch_size), "--data.workers", "0",
        "--model.size", "tiny", "--model.image_size", "32", "32", "--model.num_queries", "5",
        "--adapt.mode", "lora", "--adapt.lora.dropout", "0.1", "--loss.options.mask.num_points", "32",
        "--optim.lr", "1e-3", "--loop.steps", str(STEPS), "--loop.save_every", str(SAVE_EVERY),
        "--loop.log_every", "1", "--loop.keep_checkpoints", "2",
    ]  # fmt: skip


def _logged_step(log: Path) -> int:
    """Return the last step that the log tells of, in the first start."""
    steps = re.findall(r"step (\d+)/", log.read_text()) if log.exists() else []
    return int(steps[-1]) if steps else 0


def _find_damage(checkpoints: Sequence[Path]) -> str:
    for path in checkpoints:
        try:
            load_file(path / "model.safetensors")
            torch.load(path / "optimizer.bin", weights_only=True)
        except Exception as error:  # whatever a reader says of half a file
            return f"{path.name} is damaged: {error}"
    return ""


def _find_wrong_codes(fault: Fault, codes: Sequence[int], seen: int, newest: int) -> str:
    """Say if a run that was asked to stop, once, left otherwise than promised; -n is death by signal n."""
    if signal.SIGKILL in fault.signals or len(fault.signals) > 1:
        return ""
    if newest == STEPS and not any(codes):
        return ""
    if set(codes) == {finetune.STOPPED}:
        return "" if seen == newest else "left with 75 and without its last step"
    return "" if seen == 0 else "did not leave with 75"


def _read_end(folder: Path) -> dict[str, torch.Tensor]:
    """Read weights and optimizer of the last step."""
    last = folder / "run" / "checkpoints" / f"step-{STEPS:07d}"
    values = load_file(last / "model.safetensors")
    states = torch.load(last / "optimizer.bin", weights_only=True)["state"]
    for index, state in states.items():
        values.update({f"optimizer {index} {name}": torch.as_tensor(value) for name, value in state.items()})
    return values


def _differ(expected: Mapping[str, torch.Tensor], actual: Mapping[str, torch.Tensor]) -> str:
    if expected.keys() != actual.keys():
        return "the checkpoint holds other names"
    name = next((name for name in expected if not torch.equal(expected[name], actual[name])), None)
    return "" if name is None else f"{name} differs"


def write_scenes(folder: Path) -> str:
    """Write eight scenes of 48 x 48, a box on grey, as shards, and return their pattern."""
    for index in range(8):
        draw = np.random.default_rng(index)
        image = draw.integers(60, 120, (48, 48, 3)).astype(np.uint8)
        label = np.zeros((48, 48), np.uint8)
        top, left = draw.integers(0, 30, 2)
        image[top : top + 14, left : left + 14], label[top : top + 14, left : left + 14] = 220, 13
        pictures = {"image.png": image, "label.png": label}
        sample = {name: cv2.imencode(".png", picture)[1].tobytes() for name, picture in pictures.items()}
        with webdataset.TarWriter(str(folder / f"scenes-{index:06d}.tar")) as writer:
            writer.write({"__key__": f"scene{index}", **sample})
    return str(folder / "scenes-*.tar")


def run_trials(
    folder: Path, scenes: str, *, trials: int, seed: int, kinds: Sequence[str] = tuple(FAULTS)
) -> dict[str, Tally]:
    """Take trials of some kinds in turn, and return what came of each kind."""
    tallies = {kind: Tally() for kind in kinds}
    taken = Trials(folder, scenes, seed)
    for index in range(trials):
        kind = kinds[index % len(kinds)]
        taken.run(kind, tallies[kind])
        logging.info("%d of %d: %s; failures %d", index + 1, trials, kind, len(tallies[kind].failures))
    return tallies


def report(tallies: Mapping[str, Tally]) -> list[str]:
    """Lay the tallies out as Markdown."""
    lines = [
        "| kind | trials | before the first step | after the last | exit codes | saves cut off | "
        "steps lost, mean | most | failures |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    for kind, tally in tallies.items():
        lost = f"{np.mean(tally.lost or [0]):.1f} | {max(tally.lost, default=0)}"
        codes = " ".join(map(str, sorted(tally.codes)))
        lines.append(
            f"| {kind} | {tally.trials} | {tally.before_training} | {tally.after_training} | {codes} | "
            f"{tally.half_saves} | {lost} | {len(tally.failures)} |"
        )
    trials = sum(tally.trials for tally in tallies.values())
    failures = [f"- {kind}: {text}" for kind, tally in tallies.items() for text in tally.failures]
    return [*lines, "", f"{trials} trials, {len(failures)} failures.", *failures]


def main(arguments: Sequence[str]) -> None:
    """Take the trials, and print a report in Markdown; exit with 1 if one failed."""
    options = parse_options(FaultOptions, arguments, program="benchmarks.faults")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder, "shards")
        shards.mkdir()
        scenes = write_scenes(shards)
        tallies = run_trials(Path(folder), scenes, trials=options.trials, seed=options.seed)
    lines = [
        "# Faults at random moments",
        "",
        describe_machine(1, [torch]),
        "",
        f"Runs of {STEPS} steps with a checkpoint every {SAVE_EVERY}, EoMT-tiny with LoRA and dropout, "
        "batch 4. A trial interrupts one, resumes it, and compares weights and optimizer state of the last "
        "step with a run never stopped, to the bit. "
        f"Seed {options.seed}; {time.perf_counter() - started:.0f} s in all.",
        "Exit code -n is death by signal n. Steps lost: in the log, and not in the newest checkpoint.",
        "",
        *report(tallies),
    ]
    publish(lines, options.out)
    if any(tally.failures for tally in tallies.values()):
        sys.exit(1)


if __name__ == "__main__":
    run_program(main)
