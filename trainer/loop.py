"""The training loop, from top to bottom."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from models.adapt import count_frozen
from models.eomt import EoMT, Prediction
from shards.batch import Batch
from shards.progress import Progress
from trainer.checkpoint import TrainState, save_best, save_checkpoint
from trainer.collective import drop_step, find_bad_step
from trainer.ema import WeightAverage
from trainer.losses.loss import Loss, weighted_sum
from trainer.losses.targets import StepTotals, count_totals
from trainer.memory import peak_memory
from trainer.optim import draw_for_validation, draw_unmasked, sample_generators, seed_dropout
from trainer.runtime import Deadline, StopAsked
from trainer.sections import LoopConfig, ScheduleConfig
from trainer.sharding import fill_gradients, whole, whole_model
from trainer.tracking import show_scalars
from trainer.watchdog import Watchdog

logger = logging.getLogger(__name__)

UNGROUPED = re.compile("^(Loss|speed)/")
"""What a line of the log leaves out of a scalar's tag."""


@dataclass(frozen=True)
class Run:
    """Everything the loop needs, built."""

    accelerator: Accelerator
    model: nn.Module
    """Prepared: EoMT itself, or EoMT inside DistributedDataParallel."""
    optimizer: torch.optim.Optimizer
    lr_schedule: LambdaLR
    schedule: ScheduleConfig
    loss: Loss
    loss_weights: Mapping[str, float]
    batches: Iterator[Batch]
    """Endless, already this rank's share, starting where `state` stands."""
    seed: int
    folder: Path
    ema: WeightAverage
    state: TrainState = field(default_factory=TrainState)
    evaluate: Callable[[EoMT, int, Tensor | None], Mapping[str, float]] | None = None
    """Validation of a model at a step, with the queries unmasked then: scalars by TensorBoard tag, the same
    on all ranks."""
    stop_requested: Callable[[], bool] = lambda: False
    details: Callable[[float], Mapping[str, float]] | None = None
    """Scalars for TensorBoard beside each log line, from the norm of all gradients."""
    deadline: Deadline = field(default_factory=Deadline)
    after_step: Callable[[], None] = lambda: None
    """Called after every optimizer step (see `trainer.run_log.record_profile`)."""
    watchdog: Watchdog = field(default_factory=Watchdog)
    unfreeze_steps: tuple[int, ...] = ()
    """Step from which each of the first blocks trains (see `models.adapt.plan_unfreezing`)."""


def train(run: Run, config: LoopConfig) -> TrainState:
    """Take optimizer steps until `config.steps`, validation gets no better, or the job is asked to stop.

    A resumed run enters here exactly like a fresh one: weights, optimizer, schedule and counters were
    restored into `run` before the call. A bad step too many ends in a DivergenceError, with the weights of
    before it; a checkpoint that cannot be saved in a StorageError.
    """
    accelerator, state = run.accelerator, run.state
    hidden = not accelerator.is_main_process
    progress = Progress(total=config.steps, initial=state.step, unit="step", every_s=math.inf, disable=hidden)
    clock = _Clock(state.samples_seen)
    run.model.train()
    stopping = False
    if state.validation_due and not (stopping := not _validate(run, config)):
        _save(run, config)

    while not stopping and not state.has_ended(config.steps):
        batches = clock.wait_for(run.batches, config.grad_accum, accelerator.device)
        sums, prediction, grad_norm = _backward(run, config, batches)
        if bad := find_bad_step(accelerator, sums, grad_norm):
            _skip(run, bad, batches, config.skip_bad_steps)
            continue
        logs = is_due(state.step + 1, config.log_every, config.steps)
        details = run.details(grad_norm) if logs and run.details else {}  # before gradients are gone
        _update(run)
        progress.update()
        if logs:
            scalars = _step_scalars(run, sums, prediction, grad_norm, clock)
            show_scalars(accelerator, {**scalars, **details}, state.step)
            named = "  ".join(f"{UNGROUPED.sub('', tag)} {value:.4g}" for tag, value in scalars.items())
            logger.info("step %d/%d  to_go %s  %s", state.step, config.steps, progress.rest(), named)
        run.lr_schedule.step()  # after the log, which shows the rates of this step
        state.validation_due = is_due(state.step, config.eval_every, config.steps)
        stopping = not _validate(run, config) or run.stop_requested()  # the same answer on all ranks
        if stopping or state.best.is_over or is_due(state.step, config.save_every, config.steps):
            _save(run, config)
    progress.close()
    return state


def _backward(
    run: Run, config: LoopConfig, batches: list[Batch]
) -> tuple[dict[str, Tensor], Prediction, float]:
    """Add up the gradients of a step's micro-batches, and clip them.

    Loss terms are shares of the whole step (see `StepTotals`), so micro-batches and ranks add up. Returns
    this rank's terms, its last prediction, and the norm of all gradients before clipping.
    """
    accelerator, state = run.accelerator, run.state
    model: EoMT = accelerator.unwrap_model(run.model)
    share = accelerator.num_processes  # DistributedDataParallel averages over ranks
    counts = count_totals([batch.label for batch in batches], run.loss.area_exponent)
    totals = StepTotals(*accelerator.reduce(counts, reduction="sum").tolist())
    place = state.step, config.steps, model.num_blocks, model.num_queries
    sums: dict[str, Tensor] = {}
    for i, batch in enumerate(batches):
        seed_dropout(run.seed, state.step, batch.keys)
        generators = sample_generators(run.seed, state.step, batch.keys, accelerator.device)
        unmasked = draw_unmasked(run.schedule, *place, generators)
        is_last = i == len(batches) - 1  # after which ranks exchange their gradients
        with contextlib.nullcontext() if is_last else accelerator.no_sync(run.model):
            prediction = run.model(batch.image, unmasked, count_frozen(run.unfreeze_steps, state.step))
            terms = run.loss(prediction, batch, totals, generators)
            accelerator.backward(weighted_sum(terms, run.loss_weights) * share)
        sums = {name: sums.get(name, 0) + value.detach() for name, value in terms.items()}
        state.samples_seen += len(batch) * accelerator.num_processes
    fill_gradients(run.model)
    trained = [p for p in run.model.parameters() if p.requires_grad]
    norm = accelerator.clip_grad_norm_(trained, config.max_grad_norm or math.inf)
    return sums, prediction, float(whole(norm))


def _update(run: Run) -> None:
    """Take the optimizer's step."""
    run.optimizer.step()
    run.optimizer.zero_grad()
    if not run.accelerator.optimizer_step_was_skipped:  # as fp16 does with an infinite gradient
        run.ema.update()
    run.state.step += 1
    run.watchdog.beat()
    with run.watchdog.paused():
        run.after_step()


def _validate(run: Run, config: LoopConfig) -> bool:
    """Validate where that is due; return False where it was given up and stays due, as the run must leave."""
    state, model = run.state, run.accelerator.unwrap_model(run.model)
    state.validation_due &= run.evaluate is not None
    if not state.validation_due or run.evaluate is None:
        return True
    run.model.eval()
    place = state.step, config.steps, model.num_blocks, model.num_queries
    unmasked = draw_for_validation(run.schedule, *place)
    try:
        with run.watchdog.paused(), run.ema.applied():
            measured = run.evaluate(whole_model(model), state.step, unmasked)
            # masked, it is not yet what anybody would run
            if unmasked is None and state.best.judge(measured, state.step):
                save_best(run.accelerator, run.model, model, run.folder, state.best)
    except StopAsked:
        return False
    finally:
        run.model.train()
    show_scalars(run.accelerator, {**measured, **state.best.scalars()}, state.step)
    state.validation_due = False
    return True


def _save(run: Run, config: LoopConfig) -> None:
    model: EoMT = run.accelerator.unwrap_model(run.model)
    where, keep = (run.optimizer, run.state, run.folder), config.keep_checkpoints
    with run.watchdog.paused(), run.deadline.saving():
        save_checkpoint(run.accelerator, model, *where, keep=keep, ema=run.ema)


def is_due(step: int, every: int, last: int) -> bool:
    """Say whether something that happens every `every` steps, and at the last one, happens now; 0: never."""
    return every > 0 and (step % every == 0 or step == last)


def _skip(run: Run, reason: str, batches: list[Batch], allowed: int) -> None:
    """Leave a bad step out: its samples are gone by, and the same step is tried with the next ones."""
    state = run.state
    keys = gather_object([key for batch in batches for key in batch.keys])
    message = f"step {state.step}: {reason}; samples {', '.join(keys)}"
    drop_step(run.accelerator, run.optimizer, message, may=state.skipped_steps < allowed)
    state.skipped_steps += 1
    logger.warning("skipped, %d of %d allowed: %s", state.skipped_steps, allowed, message)


def _step_scalars(
    run: Run, sums: Mapping[str, Tensor], prediction: Prediction, grad_norm: float, clock: _Clock
) -> dict[str, float]:
    accelerator, state = run.accelerator, run.state
    reduced = accelerator.reduce(dict(sums), reduction="sum")
    terms = {f"Loss/{name}": float(value) for name, value in reduced.items()}
    total = sum(run.loss_weights[name] * float(value) for name, value in reduced.items())
    rates = {f"lr/{group['name']}": float(group["lr"]) for group in run.optimizer.param_groups}
    heads = {tag: value for tag, value in rates.items() if tag in ("lr/heads", "lr/lora", "lr/backbone.norm")}
    bounds = {f"Loss/lower_bound/{name}": value for name, value in run.loss.lower_bounds(prediction).items()}
    errors = accelerator.reduce(torch.tensor(float(clock.errors), device=accelerator.device), reduction="sum")
    return {
        **{"Loss/total": total, **terms, **bounds, "grad_norm/all": grad_norm, **(heads or rates)},
        **clock.rates(state.samples_seen),
        **({"skipped_steps": state.skipped_steps} if state.skipped_steps else {}),
        **{"data/errors": float(errors), **peak_memory(accelerator)},
    }


class _Clock:
    """Measures images per second and the share of time that went into waiting for data."""

    def __init__(self, samples_seen: int) -> None:
        self._since, self._waited, self._samples = time.perf_counter(), 0.0, samples_seen
        self.errors = 0
        """Unreadable samples that others stood in for, on this rank, since the start."""

    def wait_for(self, batches: Iterator[Batch], count: int, device: torch.device) -> list[Batch]:
        started = time.perf_counter()
        loaded = [next(batches) for _ in range(count)]
        self._waited += time.perf_counter() - started
        self.errors += sum(len(batch.errors) for batch in loaded)
        return [batch.to(device) for batch in loaded]

    def rates(self, samples_seen: int) -> dict[str, float]:
        now = time.perf_counter()
        elapsed = max(now - self._since, 1e-9)
        speed, share = (samples_seen - self._samples) / elapsed, self._waited / elapsed
        self._since, self._waited, self._samples = now, 0.0, samples_seen
        return {"speed/images_per_s": speed, "speed/data_wait_share": share}
