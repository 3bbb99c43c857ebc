"""Scenes that two ranks play, one after the other in one pair of processes, which spares loading torch anew.

In each of them, `main` plays all scenes and writes what came of each.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import jobs.work.finetune
import trainer.run
import trainer.run_folder
from jobs.work.finetune import finetune
from shards.errors import ReportedError
from shards.files import hold_lock
from tests.trainer import small_run
from trainer.checkpoint import TrainState
from trainer.config import FinetuneConfig
from trainer.loop import Run, train
from trainer.losses.loss import build_loss

POISON = "scene0"  # in the sixth of the samples, so in the batch of rank 0 of the second step
RUN = {"out": "", "scenes": "", "cutouts": ""}


def make_config(name: str, *extra: str) -> FinetuneConfig:
    own = ["--name", name, "--data.batch_size", "1", "--loop.save_every", "1"]
    own += ["--tracking.tensorboard", "False"]
    return small_run.make_config(Path(RUN["out"]), RUN["scenes"], *own, *extra)


def after(step: int, action: Callable[[Run], None]) -> None:
    """Let `action` happen on this rank once that many steps were taken."""

    def train_and_act(run: Run, config: object) -> TrainState:
        asked = run.stop_requested

        def stop_requested() -> bool:
            if run.state.step == step:
                action(run)
            return asked()

        object.__setattr__(run, "stop_requested", stop_requested)
        return train(run, config)  # type: ignore[arg-type]

    jobs.work.finetune.train = train_and_act


def locked(rank: int) -> None:
    folder = Path(RUN["out"]) / "locked"
    folder.mkdir(exist_ok=True)
    trainer.run_folder.WAIT_S = 0.0
    if rank == 0:
        with hold_lock(folder / "lock", wait_s=0.0, owner="process 7 on node3"):
            finetune(make_config("locked"))
    finetune(make_config("locked"))


def diverged(_: int) -> None:
    trainer.run.build_loss = lambda config: small_run.PoisonedLoss(build_loss(config), POISON)  # type: ignore[assignment]
    finetune(make_config("diverged"))


def skipped(_: int) -> None:
    trainer.run.build_loss = lambda config: small_run.PoisonedLoss(build_loss(config), POISON)  # type: ignore[assignment]
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
        if rank == 0:  # the one that writes
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


MODES = {
    "full": "dinov3-tiny",
    "heads": "dinov3-tiny",
    "queries": "tiny",
    "queries+heads": "tiny",
    "last-2": "dinov3-tiny",
    "lora": "dinov3-tiny",
    "gradual": "tiny",
    "outlier_head": "tiny",
}
"""What trains, and over which trunk: each of the two with and without blocks that stand still."""
THAW = ("--adapt.thaw", "0.25", "0.75", "--schedule.backbone_warmup", "0")
VALIDATED = ("--loop.eval_every", "2", "--loop.save_every", "2")
VALIDATED += ("--validation.split", "train", "--validation.limit", "4", "--validation.shards")
"""Before the scenes."""


def adapt(mode: str) -> list[str]:
    return ["--adapt.mode", mode, "--model.size", MODES[mode], *THAW]


def adaptation(mode: str) -> list[str]:
    """Options of a run with outlier losses; half of the scenes are pasted, so a rank may have no outlier."""
    pasted = ["--paste.bank", RUN["cutouts"], "--paste.probability", "0.5"]
    if mode == "outlier_head":
        return [*small_run.HEAD_OPTIONS, *pasted]
    return [
        *adapt(mode), "--loss.classification", "logit_norm",
        "--loss.outlier", "rba", "energy", "mask2anomaly", "uno", "--model.outlier_class", "trained",
        *pasted,
    ]  # fmt: skip


def adapted(_: int) -> None:
    """DistributedDataParallel takes every mode as it comes, told nothing of unused parameters."""
    for mode in MODES:
        AcceleratorState._reset_state(reset_partial_state=True)
        seen: list[object] = []
        after(1, lambda run, seen=seen: seen.append(run.model.find_unused_parameters))  # type: ignore[misc]
        finetune(make_config(f"two-{mode}", *adaptation(mode)))
        assert seen == [False]


def sharded(rank: int) -> None:
    """In three modes; then from the middle of that, and from the middle of a run of one process."""
    out = Path(RUN["out"])
    for mode in ("full", "lora", "gradual"):
        AcceleratorState._reset_state(reset_partial_state=True)
        extra = ("--loop.sharding", "fsdp2", *adapt(mode), *VALIDATED, RUN["scenes"])
        finetune(make_config(f"sharded-{mode}", *extra))
    for name, source in (("again", "sharded-lora"), ("from-one", "plain-lora")):
        if rank == 0:
            shutil.copytree(out / source, out / name)
            small_run.forget_after(2, out / name)
        torch.distributed.barrier()
        AcceleratorState._reset_state(reset_partial_state=True)
        finetune(make_config(name, "--loop.sharding", "fsdp2", *adapt("lora")), resume=True)


SCENES = (locked, diverged, skipped, apart, full, late, adapted, sharded)


def main(arguments: Sequence[str]) -> None:
    """Play every scene on this rank, and write what was raised; given out folder, scenes and cut-outs."""
    RUN.update(zip(("out", "scenes", "cutouts"), arguments, strict=True))
    rank = int(os.environ["RANK"])
    Accelerator.end_training = lambda _: None  # the ranks stay connected from scene to scene
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
        trainer.run.build_loss, jobs.work.finetune.train = build_loss, train  # type: ignore[assignment]
    Path(RUN["out"], f"outcomes-{rank}.json").write_text(json.dumps(outcomes))
