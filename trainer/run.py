"""A run built from its configuration: model, optimizer, schedules, loss, data, validation."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from functools import partial

from accelerate import Accelerator
from accelerate.utils import set_seed

from models.adapt import apply_adaptation, count_parameters, explain_parameters, plan_unfreezing
from models.eomt import EoMT
from models.segmenter import compile_model
from models.weights.checkpoint import initialise_model
from outlier_paste.paste import build_paste
from shards.errors import InputError
from shards.location import find_classes
from shards.output import make_folder
from shards.reader import ShardReader, list_shards
from shards.scene import read_scene
from shards.schema import OUTLIER_ID
from shards.stream import Stream, build_stream
from trainer.checkpoint import TrainState
from trainer.collective import require_agreement
from trainer.config import FinetuneConfig
from trainer.ema import WeightAverage
from trainer.loop import Run
from trainer.losses.loss import build_loss
from trainer.memory import fit_micro_batch, fullest_batch, try_step
from trainer.optim import build_lr_schedule, build_optimizer
from trainer.resume import restore_model, restore_training
from trainer.run_folder import Start, hold_run, plan_start, require_same_samples
from trainer.runtime import StopSignal, make_accelerator, require_launch
from trainer.sharding import prepare, shard_model
from trainer.tracking import describe_groups
from trainer.validation import build_validation


@contextlib.contextmanager
def open_run(
    config: FinetuneConfig, stop: StopSignal, *, resume: bool
) -> Iterator[tuple[Run, FinetuneConfig, Sequence[str]]]:
    """Build a run, or restore it from its newest checkpoint, and hold the lock of its folder meanwhile.

    Yields the run, its complete configuration, and lines that say what of its model trains.
    """
    require_launch(config.loop)
    start = plan_start(config, resume=resume)
    config = start.config
    set_seed(config.seed)
    if start.checkpoint is None:
        data = config.data
        shards = list_shards(data.shards, data.split, cache=data.cache, max_errors=data.max_errors)
        sets = tuple(dict.fromkeys(shard.title for shard in shards if shard.title))
        model = initialise_model(config.model.of_classes(find_classes(shards), sets), config.init)
        apply_adaptation(model, config.adapt)
        config = dataclasses.replace(config, model=model.config)  # complete, and checked as a whole
    accelerator = make_accelerator(config.loop.precision, start.folder)
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)
    stop.leave_if_asked(in_training=False)
    require_agreement(accelerator, f"{start.folder}: checkpoint to start from", str(start.checkpoint))
    with contextlib.ExitStack() as held:
        if start.is_there:  # before anything is read that another run may be writing
            held.enter_context(hold_run(start, accelerator))
        if start.checkpoint is not None:
            model = restore_model(accelerator, start.checkpoint, config.model, config.adapt)
        count = count_parameters(model.parameters())
        what_trains = [f"{config.adapt.mode}; {count}", *explain_parameters(model)]
        if config.loop.fit_memory:
            config = _fit_memory(config, model, accelerator)
        run = _build(config, model, accelerator, start, stop)
        if not start.is_there:
            make_folder(start.folder, "out/name")
            held.enter_context(hold_run(start, accelerator))
        yield run, config, what_trains


def global_batch(config: FinetuneConfig, accelerator: Accelerator) -> int:
    """Return the images of one step, over all processes."""
    return config.data.batch_size * config.loop.grad_accum * accelerator.num_processes


def _fit_memory(config: FinetuneConfig, model: EoMT, accelerator: Accelerator) -> FinetuneConfig:
    """Halve the micro-batch while it does not fit, and take more of them instead."""
    model.recompute = config.loop.activation_checkpointing
    loss = build_loss(config.loss)

    def attempt(size: int) -> None:
        batch = fullest_batch(size, config.data.crop, model.config.num_classes)
        try_step(accelerator, model, loss, config.loss.weights, config.schedule, batch)

    size = fit_micro_batch(accelerator, config.data.batch_size, attempt)
    grad_accum = config.loop.grad_accum * config.data.batch_size // size
    data = dataclasses.replace(config.data, batch_size=size)
    loop = dataclasses.replace(config.loop, grad_accum=grad_accum)
    return dataclasses.replace(config, data=data, loop=loop)


def _build(
    config: FinetuneConfig, model: EoMT, accelerator: Accelerator, start: Start, stop: StopSignal
) -> Run:
    batch, steps = global_batch(config, accelerator), config.loop.steps
    _shard_and_compile(config, model, accelerator)  # before the optimizer takes the parameters
    fused = accelerator.scaler is None
    optim = config.optim.resolved(config.schedule.preset).scaled(batch)
    optimizer = build_optimizer(model, optim, fused=fused)
    unfreeze_steps = plan_unfreezing(config.adapt, model, steps)
    schedule = config.schedule.resolved(steps, batch)
    lr_schedule = build_lr_schedule(optimizer, schedule, steps, unfreeze_steps)
    prepared, optimizer = prepare(accelerator, model, optimizer)  # neither the stream nor the schedule
    ema = WeightAverage(accelerator.unwrap_model(prepared), config.ema)
    state = TrainState()
    if start.checkpoint is not None:
        state = restore_training(accelerator, start.checkpoint, model, optimizer, lr_schedule, ema)
    state.best.metric, state.best.patience = config.validation.select, config.validation.patience
    stream = _open_stream(config, model, accelerator, state.samples_seen)
    require_same_samples(state, stream, batch, accelerator.num_processes)
    shown, folder, ask = config.tracking, start.folder, stop.leave_if_asked
    describe = partial(describe_groups, optimizer, model, config.loop.max_grad_norm)
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
        evaluate=build_validation(config.validation, config.paste, shown, model, accelerator, folder, ask),
        details=describe if shown.groups and shown.trackers else None,
        stop_requested=stop,
        deadline=stop.deadline,
        unfreeze_steps=unfreeze_steps,
    )


def _open_stream(config: FinetuneConfig, model: EoMT, accelerator: Accelerator, start: int) -> Stream:
    """Open this process's share of the samples, from the position on at which the run stands."""
    ranks = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    classes = model.classes
    paste = build_paste(config.paste, classes)
    stream = build_stream(config.data, seed=config.seed, **ranks, start_position=start, transform=paste)
    reader = stream.dataset.reader
    classes.require_fit(reader.classes, "--resume: the run", "data.shards", "a resumed run keeps its data")
    terms = (config.loss.name,) if config.loss.trains_head else config.loss.outlier
    if terms and paste is None:
        _require_outliers(reader, ", ".join(terms))
    return stream


def _require_outliers(reader: ShardReader, terms: str) -> None:
    """Check that some label holds outliers; those of shards that do are found at once."""
    for index in range(len(reader)):
        with contextlib.suppress(InputError):  # data.max_errors says what becomes of unreadable samples
            if (read_scene(reader, index).label == OUTLIER_ID).any():
                return
    told = f"none is pasted, and no label of {len(reader)} holds {OUTLIER_ID}"
    remedy = "set paste.bank and paste.probability, or leave loss.outlier empty"
    raise InputError(f"loss.outlier: there are no outliers for {terms}: {told}; {remedy}")


def _shard_and_compile(config: FinetuneConfig, model: EoMT, accelerator: Accelerator) -> None:
    model.recompute = config.loop.activation_checkpointing
    if config.loop.sharding == "fsdp2":
        shard_model(model, accelerator)
    if config.loop.compile:
        compile_model(model, accelerator.device, "loop.compile")
