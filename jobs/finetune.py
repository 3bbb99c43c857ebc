"""Fine-tune EoMT: read the configuration, build the parts, call the loop.

python -m jobs.finetune CONFIG.yaml --loop.steps 2000 --seed 3
accelerate launch -m jobs.finetune CONFIG.yaml --resume
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil
from accelerate import Accelerator

from jobs.preview_paste import draw_contact_sheet, paste_scenes
from models.adapt import apply_adaptation, count_frozen, explain_parameters, plan_unfreezing
from models.eomt import EoMT
from models.segmenter import compile_model
from models.weights.checkpoint import initialise_model
from outlier_paste.paste import build_paste
from shards.files import make_folder, write_atomically
from shards.settings import flat_settings, load_config, run_program, write_config
from shards.stream import build_stream
from trainer.best import Best
from trainer.collective import require_agreement, writing
from trainer.config import FinetuneConfig
from trainer.ema import WeightAverage
from trainer.log_file import log_file
from trainer.loop import Run, TrainState, train
from trainer.losses import build_loss
from trainer.memory import TrialStep, fit_micro_batch
from trainer.optim import build_optimizer, explain_rates
from trainer.profile import record_profile
from trainer.randomness import seed_everything
from trainer.run_folder import (
    CONFIG_NAME,
    PROVENANCE_NAME,
    RunLock,
    as_started,
    data_folders,
    describe_run,
    find_start,
    global_batch,
    require_same_batch,
    require_same_samples,
    require_unchanged,
    restore,
    write_provenance,
)
from trainer.runtime import Deadline, StopSignal, find_end, make_accelerator
from trainer.schedule import build_lr_schedule
from trainer.sharding import prepare, shard_model
from trainer.tracking import GroupDetails, end_comparison, show_picture, show_text, start_tracking
from trainer.validation import build_validation

logger = logging.getLogger(__name__)

FINISHED_NAME = "finished.json"
"""Written when a run has come to its end, also to an early one."""
STOPPED = 75
"""Exit code of a run that was asked to stop and has saved (EX_TEMPFAIL: try again)."""


def main(arguments: Sequence[str]) -> None:
    """Run one fine-tuning from the command line; exit with 75 if it was asked to stop before its end."""
    resume = "--resume" in arguments
    arguments = [argument for argument in arguments if argument != "--resume"]
    config = load_config(FinetuneConfig, arguments, program="jobs.finetune")
    state = finetune(config, resume=resume, started=psutil.Process().create_time())
    if not state.has_ended(config.loop.steps):
        sys.exit(STOPPED)


def finetune(config: FinetuneConfig, *, resume: bool = False, started: float | None = None) -> TrainState:
    """Run one fine-tuning.

    Args:
        resume: continue from the newest checkpoint of the run's folder, if there is one.
        started: Unix time from which `loop.time_limit` counts; None: now.

    Raises:
        InputError: a setting or a file it names is wrong, or the run's folder is taken.
        StorageError: the run's folder cannot be written; the checkpoints that are there stay.
    """
    folder = Path(config.out) / config.name
    deadline = Deadline(find_end(config.loop.time_limit, started or time.time()))
    config = dataclasses.replace(config, loss=config.loss.completed())
    config = as_started(config, folder / CONFIG_NAME) if resume else config
    checkpoint, is_there = find_start(config, folder, resume=resume), (folder / CONFIG_NAME).exists()
    seed_everything(config.seed)
    if checkpoint is None:
        model = initialise_model(config.model, config.init, config.data.crop)
        config = dataclasses.replace(config, model=model.config)  # complete, and checked as a whole
    else:
        model = EoMT(config.model)
    count = apply_adaptation(model, config.adapt)
    accelerator = make_accelerator(config.loop.precision, folder)
    with RunLock(folder, accelerator) as lock:
        check = partial(require_unchanged, folder, checkpoint, is_there=is_there)
        require_agreement(accelerator, f"{folder}: checkpoint to start from", str(checkpoint))
        if is_there:  # before anything is read that another run may be writing
            lock.take(check)
        if config.loop.fit_memory:
            config = _fit_memory(config, model, accelerator)
        run = _build_run(config, model, accelerator, folder, checkpoint)
        make_folder(folder, "out/name")
        lock.take(check)
        run = dataclasses.replace(run, deadline=deadline)
        return _train_in(folder, config, run, [f"{config.adapt.mode}; {count}", *explain_parameters(model)])


def _train_in(folder: Path, config: FinetuneConfig, run: Run, explanation: Sequence[str]) -> TrainState:
    """Write what a run folder begins with, train, and say how it ended."""
    accelerator = run.accelerator
    with writing(accelerator, f"{folder}: cannot be written"):
        if accelerator.is_main_process:
            write_config(config, folder / CONFIG_NAME)
            write_provenance(
                folder / PROVENANCE_NAME,
                seed=config.seed,
                data=data_folders(config),
                num_processes=accelerator.num_processes,
            )
            (folder / FINISHED_NAME).unlink(missing_ok=True)
        start_tracking(accelerator, config.tracking, flat_settings(config), _compared(config))
    with log_file(folder / "log.txt" if accelerator.is_main_process else None):
        _introduce(folder, config, run, explanation)
        traced = config.loop.profile if accelerator.is_main_process else 0
        with (
            StopSignal(accelerator, run.deadline) as stop_requested,
            record_profile(folder, traced) as after_step,
        ):
            run = dataclasses.replace(run, stop_requested=stop_requested, after_step=after_step)
            state = train(run, config.loop)
        if state.best.is_over:
            logger.info("ended early at step %d: %s", state.step, state.best.explain())
        elif not state.has_ended(config.loop.steps):
            logger.info("%s: saved at step %d; --resume continues", stop_requested.reason, state.step)
    if state.has_ended(config.loop.steps):
        with writing(accelerator, f"{folder}: cannot be written"):
            if accelerator.is_main_process:
                _write_end(folder, state)
                end_comparison(accelerator)
    accelerator.end_training()
    return state


def _introduce(folder: Path, config: FinetuneConfig, run: Run, explanation: Sequence[str]) -> None:
    """Say in the log and in TensorBoard what is about to be trained."""
    accelerator = run.accelerator
    logger.info("%s: %s", folder, explanation[0])
    for line in explanation[1:]:
        logger.info("  %s", line)
    logger.info(
        "from step %d to %d on %d processes", run.state.step, config.loop.steps, accelerator.num_processes
    )
    rates = explain_rates(run.optimizer, config.optim, global_batch(config, accelerator))
    logger.info("%s", rates)
    if accelerator.is_main_process:
        card = describe_run(folder / PROVENANCE_NAME, folder / CONFIG_NAME, [explanation[0], rates])
        show_text(accelerator, "run", card, run.state.step)
    if accelerator.is_main_process and run.state.step == 0:
        _show_pasted(accelerator, config)


def _fit_memory(config: FinetuneConfig, model: EoMT, accelerator: Accelerator) -> FinetuneConfig:
    """Halve the micro-batch while it does not fit, and take more of them instead."""
    model.recompute = config.loop.activation_checkpointing
    weights, crop = config.loss.weights, config.data.crop
    trial = TrialStep(accelerator, model, build_loss(config.loss), weights, config.schedule, crop)
    size = fit_micro_batch(accelerator, config.data.batch_size, trial)
    grad_accum = config.loop.grad_accum * config.data.batch_size // size
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=size),
        loop=dataclasses.replace(config.loop, grad_accum=grad_accum),
    )


def _build_run(
    config: FinetuneConfig, model: EoMT, accelerator: Accelerator, folder: Path, checkpoint: Path | None
) -> Run:
    """Build every part, and restore them from `checkpoint` if one is given."""
    _quiet_other_ranks(accelerator)
    batch = global_batch(config, accelerator)
    if config.loop.sharding == "fsdp2":
        shard_model(model, accelerator)
    fused = accelerator.device.type == "cuda" and accelerator.scaler is None
    optimizer = build_optimizer(model, config.optim.scaled(batch), fused=fused)
    unfreeze_steps = plan_unfreezing(config.adapt, model, config.loop.steps)
    schedule = config.schedule.resolved(config.loop.steps, batch)
    lr_schedule = build_lr_schedule(optimizer, schedule, config.loop.steps, unfreeze_steps)
    state = TrainState(best=Best(config.validation.select, config.validation.patience))
    model.recompute = config.loop.activation_checkpointing
    if config.loop.compile:
        compile_model(model, accelerator.device, "loop.compile")
    prepared, optimizer = prepare(accelerator, model, optimizer)  # neither the stream nor the schedule
    accelerator.register_for_checkpointing(lr_schedule, state)
    ema = WeightAverage(accelerator.unwrap_model(prepared), config.ema)
    if checkpoint is not None:
        restore(accelerator, checkpoint)
        ema.load(checkpoint)
        require_same_batch(config, accelerator, state)
    stream = build_stream(
        config.data,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        start_position=state.samples_seen,
        transform=build_paste(config.paste),
    )
    require_same_samples(stream, state)
    shows_groups = config.tracking.groups and config.tracking.tensorboard
    return Run(
        accelerator=accelerator,
        model=prepared,
        optimizer=optimizer,
        lr_schedule=lr_schedule,
        schedule=schedule,
        loss=build_loss(config.loss),
        loss_weights=config.loss.weights,
        batches=iter(stream),
        seed=config.seed,
        folder=folder,
        ema=ema,
        state=state,
        evaluate=build_validation(
            config.validation, config.paste, config.tracking, model, accelerator, folder
        ),
        details=GroupDetails(optimizer, model, config.loop.max_grad_norm) if shows_groups else None,
        num_frozen=partial(count_frozen, unfreeze_steps),
    )


def _compared(config: FinetuneConfig) -> list[str]:
    """Name the scalars by which TensorBoard compares runs."""
    validation = config.validation
    best = [f"best/{validation.select}"] if validation.select else []
    return [*best, *(f"validation/{metric}" for metric in validation.metrics()), "loss/total"]


def _show_pasted(accelerator: Accelerator, config: FinetuneConfig) -> None:
    """Show what is pasted, before an hour is spent on it."""
    count = config.tracking.pasted_scenes
    if count and config.tracking.tensorboard and config.paste.probability > 0:
        sheet = draw_contact_sheet(paste_scenes(config, count), columns=count)
        show_picture(accelerator, "pasted scenes", sheet, step=0)


def _write_end(folder: Path, state: TrainState) -> None:
    end = {"step": state.step, "early": state.best.is_over, "best": state.best.state_dict()}
    write_atomically(folder / FINISHED_NAME, json.dumps(end, indent=1) + "\n")


def _quiet_other_ranks(accelerator: Accelerator) -> None:
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)


if __name__ == "__main__":
    run_program(main)
