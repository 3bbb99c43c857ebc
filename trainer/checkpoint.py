"""Checkpoints of a run, complete or absent and free of pickles, their counters, and the best by a metric."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from models.eomt import EoMT
from models.weights.checkpoint import write_description
from models.weights.files import some, write_weight_file
from models.weights.fit import find_not_finite
from models.weights.formats import WEIGHTS_NAME
from models.weights.run_files import BEST_FOLDER, CHECKPOINTS_FOLDER, list_checkpoints
from shards.errors import InputError
from shards.files import hash_file, to_json, write_atomically
from trainer.collective import DivergenceError, explain_failure, require_sound_weights, writing
from trainer.ema import WeightAverage

logger = logging.getLogger(__name__)

BEST_RECORD = "best.json"
STATE_NAME = "training.json"
OPTIMIZER_NAME = "optimizer.safetensors"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of a parameter: its number of updates, and averages of its gradient and of its square."""
LOWER_IS_BETTER = ("fpr95",)


def show_metric(name: str, value: float) -> str:
    """Write a metric of validation for a reader: fractions in percent, as in tables, others as they are."""
    return f"{value:.4f}" if name.startswith("gap/") else f"{100 * value:.2f} %"


@dataclass
class Best:
    """The best validation so far; its counters are kept in checkpoints, so that a resumed run goes on."""

    metric: str = ""
    """Metric that is compared, as in `validation.select`; empty: none."""
    patience: int = 0
    """Validations in a row without a better value that end the run; 0: any number."""
    value: float = math.nan
    step: int = 0
    """Step of the best value; 0 before the first."""
    waited: int = 0
    """Validations since then."""

    def __post_init__(self) -> None:
        _require_counters(self, "patience", "step", "waited")
        if self.step and not math.isfinite(self.value):
            raise InputError(f"value is {self.value}; a number is needed")

    def judge(self, scalars: Mapping[str, float], step: int) -> bool:
        """Take the validation of a step; return whether it is the best so far, an equal one not.

        Of the scalars, by TensorBoard tag, `Validation/METRIC` is read; one that is NaN is never better.
        """
        if not self.metric:
            return False
        value = float(scalars[f"Validation/{self.metric}"])
        is_first = not self.step and not math.isnan(value)
        lower = self.metric.split("/")[0] in LOWER_IS_BETTER
        if is_first or (value < self.value if lower else value > self.value):
            self.value, self.step, self.waited = value, step, 0
            return True
        self.waited += 1
        return False

    @property
    def is_over(self) -> bool:
        """True when `patience` validations in a row were no better."""
        return bool(self.patience) and self.waited >= self.patience

    def explain(self) -> str:
        """Describe the best validation in a line."""
        when = f"at step {self.step}, {self.waited} validations before now"
        return f"best {self.metric} {show_metric(self.metric, self.value)} {when}"

    def scalars(self) -> dict[str, float]:
        """Return the best value by TensorBoard tag; none before the first."""
        return {f"Validation/best/{self.metric}": self.value} if self.step else {}


@dataclass
class TrainState:
    """Counters that a checkpoint keeps."""

    step: int = 0
    samples_seen: int = 0
    """Over all ranks: the position in the global sequence of samples."""
    skipped_steps: int = 0
    """Bad steps that were left out; each took samples, and is no step."""
    data: str = ""
    """Fingerprint of those samples (`shards.reader.ShardReader`)."""
    best: Best = field(default_factory=Best)
    validation_due: bool = False
    """Whether the validation of this step was given up, and comes before the next step."""

    def __post_init__(self) -> None:
        _require_counters(self, "step", "samples_seen", "skipped_steps")

    @property
    def batches_seen(self) -> int:
        """Global batches that were taken, good or bad."""
        return self.step + self.skipped_steps

    def has_ended(self, steps: int) -> bool:
        """Say whether a run of `steps` steps is over, by their number or by validation."""
        return not self.validation_due and (self.step >= steps or self.best.is_over)


def _require_counters(state: Best | TrainState, *names: str) -> None:
    for name in names:
        if (number := getattr(state, name)) < 0:
            raise InputError(f"{name} is {number}; at least 0 is needed")


@dataclass(frozen=True, kw_only=True)
class LossScale:
    """Loss scaling of fp16."""

    scale: float
    growth_tracker: int
    """Steps without an overflow since the scale last changed."""

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf or self.growth_tracker < 0:
            given = f"scale {self.scale} and growth_tracker {self.growth_tracker}"
            raise InputError(f"{given}; above 0, and 0 or more")


@dataclass(frozen=True, kw_only=True)
class SavedTraining:
    """Content of `training.json`. The learning rates are none of it: they follow from the step."""

    state: TrainState
    files: Mapping[str, str]
    """SHA-256 of every other file of the checkpoint."""
    loss_scale: LossScale | None = None


def save_checkpoint(
    accelerator: Accelerator,
    model: EoMT,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
    run_folder: Path,
    *,
    keep: int,
    ema: WeightAverage,
) -> Path:
    """Save weights, averages, optimizer and counters as `checkpoints/step-NNNNNNN`.

    All ranks call it. The first writes into a hidden folder beside it, which then gets its name; a
    StorageError ends all, and what is there stays. Then all but the newest `keep` checkpoints are removed,
    hidden first, so that a run killed meanwhile leaves none that is half there; `keep` 0 removes none.
    """
    folder = run_folder / CHECKPOINTS_FOLDER
    final = folder / f"step-{state.step:07d}"
    require_sound_weights(accelerator, model, state.step)
    weights, moments = model.state_dict(), pack_moments(model, optimizer)  # whole, which takes all ranks
    free = shutil.disk_usage(run_folder).free // 10**6  # torch does not say why it could not write
    failure = f"{final}: cannot be saved; older checkpoints stay, {free} MB were free"
    with writing(accelerator, failure):
        if accelerator.is_main_process:
            with _staged(final) as partial:
                write_weight_file(weights, partial / WEIGHTS_NAME)
                _write_moments(moments, partial / OPTIMIZER_NAME, state.step)
                write_description(model, partial)
                ema.save(partial)
                _write_state(accelerator, state, partial)
            if final.exists():
                _remove(final)
            partial.rename(final)
    if accelerator.is_main_process:
        logger.info("saved %s", final)
        for old in list_checkpoints(folder)[:-keep] if keep else []:
            _remove(old)
    return final


def pack_moments(model: EoMT, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what AdamW keeps, as `queries.weight.exp_avg`, for every parameter that trains.

    Before its first update it keeps nothing of a parameter, which is the same as zeros.
    """
    entries = optimizer.state_dict()["state"]
    parameters = dict(model.named_parameters())
    return {
        f"{name}.{moment}": entries[i][moment]
        if i in entries
        else torch.zeros(() if moment == "step" else parameters[name].shape)
        for i, name in enumerate(names_of(model, optimizer))
        for moment in MOMENTS
    }


def names_of(model: EoMT, optimizer: torch.optim.Optimizer) -> list[str]:
    """Name an optimizer's parameters, in its order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _write_moments(moments: Mapping[str, Tensor], path: Path, step: int) -> None:
    if broken := find_not_finite(moments):
        found = f"step {step}: the optimizer's {some(broken)} are NaN or infinite"
        raise DivergenceError(f"{found}; not saved")
    write_weight_file(moments, path)


def _write_state(accelerator: Accelerator, state: TrainState, folder: Path) -> None:
    scale = None
    if accelerator.scaler is not None:
        scaling = accelerator.scaler.state_dict()
        scale = LossScale(scale=scaling["scale"], growth_tracker=scaling["_growth_tracker"])
    files = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
    write_atomically(folder / STATE_NAME, to_json(SavedTraining(state=state, files=files, loss_scale=scale)))


@contextmanager
def _staged(final: Path) -> Iterator[Path]:
    """Yield a new, hidden folder beside `final`, on the disk at the end of the block, gone if that fails.

    First removes what a save or a removal that was killed has left.
    """
    for leftover in final.parent.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = final.with_name(f".{final.name}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        _flush(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # its room may be needed
        raise


def _flush(folder: Path) -> None:
    """Have every file on the disk before the folder gets its name: a server may refuse one only now."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(checkpoint: Path) -> None:
    hidden = checkpoint.with_name(f".{checkpoint.name}.removed")
    try:
        checkpoint.rename(hidden)
    except OSError as error:
        logger.warning("%s: cannot be removed: %s", checkpoint, explain_failure(error))
    shutil.rmtree(hidden, ignore_errors=True)


def save_best(
    accelerator: Accelerator, prepared: nn.Module, model: EoMT, run_folder: Path, best: Best
) -> Path:
    """Save the weights as `best/step-NNNNNNN`, then remove the one that was best before.

    It is weights and `model.json` only: to evaluate, export or start from, not to resume. Written under a
    hidden name and renamed, and the older one goes last, so that a run killed meanwhile keeps at least one,
    and of two the newer is the better. All ranks have to call it, with the model prepared and unwrapped.
    """
    require_sound_weights(accelerator, model, best.step)
    weights = accelerator.get_state_dict(prepared)
    final = run_folder / BEST_FOLDER / f"step-{best.step:07d}"
    with writing(accelerator, f"{final}: cannot be saved; the best before stays"):
        if accelerator.is_main_process:
            _write_best(weights, model, final, best)
    return final


def _write_best(weights: Mapping[str, Tensor], model: EoMT, final: Path, best: Best) -> None:
    with _staged(final) as partial:
        write_weight_file(weights, partial / WEIGHTS_NAME)
        write_description(model, partial)
        write_atomically(partial / BEST_RECORD, to_json(best))
    if final.exists():  # of a run that was killed after this save and resumed from before it
        for path in partial.iterdir():  # one by one, so that there are weights at every moment
            path.replace(final / path.name)
        partial.rmdir()
    else:
        partial.rename(final)
    for old in list_checkpoints(final.parent):
        if old != final:
            _remove(old)
    logger.info("best %s so far: %s; saved %s", best.metric, show_metric(best.metric, best.value), final)
