"""What goes wrong on one of two ranks: both leave, one of them says why, and no checkpoint is harmed.

Run with RANK set, this file is one of the two processes: it plays all scenes and writes what came of each.
"""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

import jobs.finetune
import jobs.run_lock
from jobs.config_file import load_config
from jobs.finetune import finetune
from jobs.finetune_config import FinetuneConfig
from models.checkpoint import list_checkpoints
from models.eomt import Prediction
from shards.batch import Batch
from shards.errors import ReportedError
from slurm.launch import _free_port, rank_variables
from slurm.lock import hold_lock
from trainer.loop import Run, TrainState
from trainer.losses import Loss, build_loss
from trainer.losses.targets import StepTotals

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
POISON = "scene0"  # in the sixth of the samples, so in the batch of rank 0 of the second step
RUN = {"out": "", "scenes": ""}


def make_config(name: str, *extra: str) -> FinetuneConfig:
    arguments = [
        "--name", name, "--out", RUN["out"], "--data.shards", RUN["scenes"], "--data.crop", "32", "32",
        "--data.batch_size", "1", "--data.workers", "0", "--tracking.tensorboard", "False",
        "--model.size", "tiny", "--model.image_size", "32", "32", "--model.num_queries", "5",
        "--loss.options.mask.num_points", "32", "--optim.lr", "1e-3", "--loop.steps", "4",
        "--loop.save_every", "1", "--loop.log_every", "1", "--loop.keep_checkpoints", "0",
    ]  # fmt: skip
    return load_config(FinetuneConfig, [*arguments, *extra], program="jobs.finetune")


class PoisonedLoss:
    """A loss whose dice term is NaN on the rank that sees a certain scene."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    def __getattr__(self, name: str) -> object:
        return getattr(self._loss, name)

    def __call__(
        self, output: Prediction, batch: Batch, totals: StepTotals, generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        terms = dict(self._loss(output, batch, totals, generators))
        if POISON in batch.keys:
            terms["dice"] = terms["dice"] * math.nan
        return terms


def after(step: int, action: Callable[[Run], None]) -> None:
    """Let `action` happen on this rank once that many steps were taken."""
    train = jobs.finetune.train

    def train_and_act(run: Run, config: object) -> TrainState:
        asked = run.stop_requested

        def stop_requested() -> bool:
            if run.state.step == step:
                action(run)
            return asked()

        object.__setattr__(run, "stop_requested", stop_requested)
        return train(run, config)  # type: ignore[arg-type]

    jobs.finetune.train = train_and_act


def locked(rank: int) -> None:
    folder = Path(RUN["out"]) / "locked"
    folder.mkdir(exist_ok=True)
    jobs.run_lock.WAIT_S = 0.0
    if rank == 0:
        with hold_lock(folder / "lock", wait_s=0, owner="process 7 on node3"):
            finetune(make_config("locked"))
    finetune(make_config("locked"))


def diverged(_: int) -> None:
    jobs.finetune.build_loss = lambda config: PoisonedLoss(build_loss(config))  # type: ignore[assignment]
    finetune(make_config("diverged"))


def skipped(_: int) -> None:
    jobs.finetune.build_loss = lambda config: PoisonedLoss(build_loss(config))  # type: ignore[assignment]
    state = finetune(make_config("skipped", "--loop.skip_bad_steps", "1"))
    assert (state.step, state.skipped_steps, state.samples_seen) == (4, 1, 10)


def apart(rank: int) -> None:
    def flip(run: Run) -> None:
        weight = run.accelerator.unwrap_model(run.model).mask_head[2].weight
        with torch.no_grad():
            weight[3, 4] += 1e-6 * rank

    after(3, flip)
    finetune(make_config("apart"))


def full(rank: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(_: Run) -> None:
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    after(3, fill)
    try:
        finetune(make_config("full"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def late(rank: int) -> None:
    """Only the clock of rank 1 says that the hour is over."""
    state = finetune(make_config("late", "--loop.time_limit", "60"), started=time.time() - 3600 * rank)
    assert state.step == 1


SCENES = (locked, diverged, skipped, apart, full, late)


def play(out: Path, scenes: str) -> None:
    """Play every scene on this rank, and write what was raised."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    RUN.update(out=str(out), scenes=scenes)
    rank = int(os.environ["RANK"])
    usual = (jobs.finetune.build_loss, jobs.finetune.train)
    outcomes: dict[str, list[object]] = {}
    for scene in SCENES:
        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            scene(rank)
            outcomes[scene.__name__] = [0, ""]
        except ReportedError as error:
            outcomes[scene.__name__] = [error.exit_code, str(error)]
        except SystemExit as stop:
            outcomes[scene.__name__] = [stop.code, ""]
        jobs.finetune.build_loss, jobs.finetune.train = usual
    (out / f"outcomes-{rank}.json").write_text(json.dumps(outcomes))


Outcomes = dict[str, list[tuple[int, str]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, scene_shards: str) -> Path:
    out, port = tmp_path_factory.mktemp("ranks"), _free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(out), scene_shards],
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
                **rank_variables(rank, 2, port),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return out


@pytest.fixture(name="ended")
def _ended(folder: Path) -> Outcomes:
    ranks = [json.loads((folder / f"outcomes-{rank}.json").read_text()) for rank in range(2)]
    return {scene: [tuple(rank[scene]) for rank in ranks] for scene in ranks[0]}


def checkpoints(folder: Path, name: str) -> list[str]:
    return [path.name for path in list_checkpoints(folder / name / "checkpoints")]


def test_a_locked_folder_is_refused_by_all_and_said_by_one(folder: Path, ended: Outcomes) -> None:
    (code, told), other = ended["locked"]
    assert (code, other) == (2, (2, ""))
    assert f"{folder}/locked: another run is writing there: " in told
    assert "lock is held by process 7 on node3; wait for its end, or --name starts another" in told


def test_a_term_that_is_nan_on_one_rank_is_named_with_the_samples_of_both(
    folder: Path, ended: Outcomes
) -> None:
    (code, told), other = ended["diverged"]
    assert (code, other) == (70, (70, ""))
    assert told.startswith("step 2: gradient norm is nan; loss terms not finite: dice; mask ")
    assert told.endswith("samples scene0, scene7")
    assert checkpoints(folder, "diverged") == ["step-0000001", "step-0000002"]


def test_both_ranks_skip_a_step_that_is_bad_on_one(folder: Path, ended: Outcomes) -> None:
    assert ended["skipped"] == [(0, ""), (0, "")]
    assert checkpoints(folder, "skipped")[-1] == "step-0000004"


def test_ranks_whose_weights_differ_in_one_number_save_nothing(folder: Path, ended: Outcomes) -> None:
    """Changed after step 3, before its save: what differs is named by the first parameter."""
    (code, told), other = ended["apart"]
    assert (code, other) == (70, (70, ""))
    assert told == "step 3: mask_head.2.weight is not the same on all 2 processes; not saved"
    assert checkpoints(folder, "apart") == ["step-0000001", "step-0000002"]


def test_a_disk_that_is_full_for_one_rank_ends_both(folder: Path, ended: Outcomes) -> None:
    silent, (code, told) = ended["full"]
    assert (silent, code) == ((74, ""), 74)
    assert f"{folder}/full/checkpoints/step-0000003: cannot be saved; older checkpoints stay: " in told
    assert checkpoints(folder, "full") == ["step-0000001", "step-0000002"]
    assert [path.name for path in (folder / "full" / "checkpoints").glob(".*")] == []
    saved = load_file(folder / "full" / "checkpoints" / "step-0000002" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in saved.values())


def test_the_time_of_one_rank_is_the_time_of_all(folder: Path, ended: Outcomes) -> None:
    assert ended["late"] == [(0, ""), (0, "")]
    assert checkpoints(folder, "late") == ["step-0000001"]
    assert "time limit: saved at step 1; --resume continues" in (folder / "late" / "log.txt").read_text()


if __name__ == "__main__":
    play(Path(sys.argv[1]), sys.argv[2])
