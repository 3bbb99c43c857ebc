"""Fine-tune EoMT: read the configuration, build the parts, call the loop.

python -m jobs.finetune CONFIG.yaml --loop.steps 2000 --seed 3
accelerate launch -m jobs.finetune CONFIG.yaml --resume
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator

from eval.run import evaluate_miou
from jobs.command_line import run_program
from jobs.config_file import flat_settings, load_config, read_config, write_config
from jobs.finetune_config import FinetuneConfig, ValidationConfig
from jobs.preview_paste import draw_contact_sheet, paste_scenes
from jobs.provenance import PROVENANCE_NAME, require_same_data, write_provenance
from jobs.run_lock import RunLock, is_barely_begun
from jobs.segmenter import make_segment
from models.adapt import apply_adaptation, explain_parameters, plan_thaw
from models.checkpoint import initialise_model
from models.eomt import EoMT
from models.lora import merged
from outlier_paste.paste import build_paste
from shards.errors import InputError
from shards.reader import open_shards
from shards.scene import decode_scenes, require_scenes
from shards.staging import make_folder, require_free
from shards.stream import Stream, build_stream
from trainer.agreement import require_agreement, writing
from trainer.checkpoint import newest_checkpoint
from trainer.deadline import Deadline, find_end
from trainer.log_file import log_file
from trainer.loop import Run, TrainState, train
from trainer.losses import build_loss
from trainer.optim import build_optimizer
from trainer.randomness import seed_everything
from trainer.runtime import StopSignal, compile_model, make_accelerator
from trainer.schedule import build_lr_schedule
from trainer.sharding import prepare, shard_model
from trainer.tracking import show_picture, start_tracking

logger = logging.getLogger(__name__)

MAY_CHANGE = (
    *("out", "name", "data.workers", "data.batch_size", "data.cache", "loop.grad_accum"),
    *("loop.log_every", "loop.eval_every", "loop.save_every", "loop.keep_checkpoints"),
    *("loop.time_limit", "loop.skip_bad_steps", "loop.sharding"),
    *("validation.shards", "validation.split", "validation.limit"),
    *("tracking.tensorboard", "tracking.pasted_scenes", "paste.cache_mb"),
)
"""Settings that a resumed run may change: they alter no weight, as long as the global batch stays."""
CONFIG_NAME = "config.yaml"
STOPPED = 75
"""Exit code of a run that was asked to stop and has saved (EX_TEMPFAIL: try again)."""


def main(arguments: Sequence[str]) -> None:
    """Run one fine-tuning from the command line; exit with 75 if it was asked to stop before its end."""
    resume = "--resume" in arguments
    arguments = [argument for argument in arguments if argument != "--resume"]
    config = load_config(FinetuneConfig, arguments, program="jobs.finetune")
    state = finetune(config, resume=resume, started=psutil.Process().create_time())
    if state.step < config.loop.steps:
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
    config = _as_started(config, folder / CONFIG_NAME) if resume else config
    checkpoint, is_there = _find_start(config, folder, resume=resume), (folder / CONFIG_NAME).exists()
    seed_everything(config.seed)
    if checkpoint is None:
        model = initialise_model(config.model, config.init, config.data.crop)
        config = dataclasses.replace(config, model=model.config)  # complete, and checked as a whole
    else:
        model = EoMT(config.model)
    count = apply_adaptation(model, config.adapt)
    accelerator = make_accelerator(config.loop.precision, folder)
    with RunLock(folder, accelerator) as lock:
        check = partial(_require_unchanged, folder, checkpoint, is_there=is_there)
        require_agreement(accelerator, f"{folder}: checkpoint to start from", str(checkpoint))
        if is_there:  # before anything is read that another run may be writing
            lock.take(check)
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
                data=_data_folders(config),
                num_processes=accelerator.num_processes,
            )
        start_tracking(accelerator, config.tracking, flat_settings(config))
    with log_file(folder / "log.txt" if accelerator.is_main_process else None):
        logger.info("%s: %s", folder, explanation[0])
        for line in explanation[1:]:
            logger.info("  %s", line)
        logger.info(
            "from step %d to %d on %d processes", run.state.step, config.loop.steps, accelerator.num_processes
        )
        if accelerator.is_main_process and run.state.step == 0:
            _show_pasted(accelerator, config)
        with StopSignal(accelerator, run.deadline) as stop_requested:
            state = train(dataclasses.replace(run, stop_requested=stop_requested), config.loop)
        if state.step < config.loop.steps:
            logger.info("%s: saved at step %d; --resume continues", stop_requested.reason, state.step)
    accelerator.end_training()
    return state


def _build_run(
    config: FinetuneConfig, model: EoMT, accelerator: Accelerator, folder: Path, checkpoint: Path | None
) -> Run:
    """Build every part, and restore them from `checkpoint` if one is given."""
    _quiet_other_ranks(accelerator)
    if config.loop.sharding == "fsdp2":
        shard_model(model, accelerator)
    optimizer = build_optimizer(model, config.optim)
    thaw = plan_thaw(config.adapt, model, config.loop.steps)
    lr_schedule = build_lr_schedule(optimizer, config.schedule, config.loop.steps, thaw)
    state = TrainState()
    if config.loop.compile:
        compile_model(model, accelerator.device, "loop.compile")
    prepared, optimizer = prepare(accelerator, model, optimizer)  # neither the stream nor the schedule
    accelerator.register_for_checkpointing(lr_schedule, state)
    if checkpoint is not None:
        _restore(accelerator, checkpoint)
        _require_same_batch(config, accelerator, state)
    stream = build_stream(
        config.data,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        start_position=state.samples_seen,
        transform=build_paste(config.paste),
    )
    _require_same_samples(stream, state)
    return Run(
        accelerator=accelerator,
        model=prepared,
        optimizer=optimizer,
        lr_schedule=lr_schedule,
        schedule=config.schedule,
        loss=build_loss(config.loss),
        loss_weights=config.loss.weights,
        batches=iter(stream),
        seed=config.seed,
        folder=folder,
        state=state,
        evaluate=_make_validation(config.validation, accelerator.device),
        num_frozen=thaw.num_frozen,
    )


def _show_pasted(accelerator: Accelerator, config: FinetuneConfig) -> None:
    """Show what is pasted, before an hour is spent on it."""
    count = config.tracking.pasted_scenes
    if count and config.tracking.tensorboard and config.paste.probability > 0:
        sheet = draw_contact_sheet(paste_scenes(config, count), columns=count)
        show_picture(accelerator, "pasted scenes", sheet, step=0)


def _make_validation(
    config: ValidationConfig, device: torch.device
) -> Callable[[EoMT], Mapping[str, float]] | None:
    if not config.shards:
        return None
    reader = open_shards(config.shards, config.split)
    require_scenes(reader)
    count = min(config.limit or len(reader), len(reader))

    def validate(model: EoMT) -> Mapping[str, float]:
        with merged(model):
            result = evaluate_miou(
                make_segment(model, device), decode_scenes(reader, count), window=model.image_size
            )
        logger.info("validation mIoU %.4f over %d frames", result.miou, count)
        return {"validation/miou": result.miou}

    return validate


def _as_started(config: FinetuneConfig, path: Path) -> FinetuneConfig:
    """Fill what the model's settings leave out as the run to be resumed has it."""
    if not path.exists():
        return config
    return dataclasses.replace(config, model=config.model.completed(read_config(FinetuneConfig, path).model))


def _find_start(config: FinetuneConfig, folder: Path, *, resume: bool) -> Path | None:
    """Return the checkpoint to continue from, or None for a run that starts; refuse a folder in use."""
    path = folder / CONFIG_NAME
    if not resume and path.exists():
        raise InputError(f"{folder}: a run is already there; --resume continues it, --name starts another")
    if not path.exists():
        if not is_barely_begun(folder):
            require_free(folder, "out/name")
        if resume:
            logger.info("%s: nothing to resume, starting", folder)
        return None
    _require_same_settings(config, path)
    require_same_data(folder / PROVENANCE_NAME, _data_folders(config))
    checkpoint = newest_checkpoint(folder)
    logger.info(
        "%s: resuming from %s", folder, checkpoint.name if checkpoint else "the start, nothing was saved"
    )
    return checkpoint


def _require_unchanged(folder: Path, checkpoint: Path | None, *, is_there: bool) -> None:
    """Check, now that nobody else writes there, that a folder is what it was when the run was planned."""
    if (folder / CONFIG_NAME).exists() != is_there or newest_checkpoint(folder) != checkpoint:
        raise InputError(f"{folder}: another run wrote there while this one was starting; start it again")


def _data_folders(config: FinetuneConfig) -> list[str]:
    return [*config.data.shards, *([config.paste.bank] if config.paste.bank else [])]


def _restore(accelerator: Accelerator, checkpoint: Path) -> None:
    """Load weights, optimizer, schedule and counters.

    Raises:
        InputError: a file of the checkpoint is missing or damaged.
    """
    try:
        accelerator.load_state(str(checkpoint))
    except Exception as error:  # torch, safetensors, zipfile and pickle each raise their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"--resume: {checkpoint} cannot be restored; remove it to continue from the one before: {reason}"
        ) from None


def _require_same_settings(config: FinetuneConfig, path: Path) -> None:
    """Check that a run is resumed with the settings it was started with."""
    before, now = flat_settings(read_config(FinetuneConfig, path)), flat_settings(config)
    for name in sorted(before.keys() | now.keys()):
        if name not in MAY_CHANGE and before.get(name) != now.get(name):
            raise InputError(
                f"--resume: {name} is {now.get(name)} but {path} has {before.get(name)}; "
                f"a resumed run keeps its settings"
            )


def _require_same_batch(config: FinetuneConfig, accelerator: Accelerator, state: TrainState) -> None:
    """Check that the number of processes keeps the global batch."""
    global_batch = config.data.batch_size * config.loop.grad_accum * accelerator.num_processes
    if state.samples_seen != state.batches_seen * global_batch:
        raise InputError(
            f"--resume: the run took {state.samples_seen // state.batches_seen} samples per step, this start "
            f"would take {global_batch} (data.batch_size x loop.grad_accum x {accelerator.num_processes} "
            f"processes)"
        )


def _require_same_samples(stream: Stream, state: TrainState) -> None:
    """Check that the sequence goes on that the run has begun, wherever its shards lie now."""
    reader = stream.dataset.reader
    if state.data and state.data != reader.fingerprint():
        raise InputError(
            f"--resume: data.shards hold {len(reader)} samples, but not those that the run was started with, "
            f"or in another order; a resumed run keeps its data"
        )
    state.data = reader.fingerprint()


def _quiet_other_ranks(accelerator: Accelerator) -> None:
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)


if __name__ == "__main__":
    run_program(main)
