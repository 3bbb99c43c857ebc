"""Checkpoints of a run, complete or absent, and the best one by a declared metric."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from models.eomt import EoMT
from models.weights.checkpoint import BEST_FOLDER, CHECKPOINTS_FOLDER, list_checkpoints, write_description
from models.weights.formats import WEIGHTS_NAME
from shards.errors import ReportedError
from shards.files import to_json, write_atomically
from trainer.collective import explain_failure, require_sound_weights, writing
from trainer.ema import WeightAverage

logger = logging.getLogger(__name__)

BEST_RECORD = "best.json"
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

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; patience is a setting, not a state."""
        return {"metric": self.metric, "value": self.value, "step": self.step, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the counters of a checkpoint."""
        self.value, self.step, self.waited = float(state["value"]), int(state["step"]), int(state["waited"])


def save_checkpoint(
    accelerator: Accelerator, model: EoMT, run_folder: Path, step: int, *, keep: int, ema: WeightAverage
) -> Path:
    """Save weights, optimizer, schedule, counters and random states as `checkpoints/step-NNNNNNN`.

    All ranks write into a hidden folder beside it, which gets its name when all are done; a StorageError on
    one ends all, and what is there stays. Then all but the newest `keep` checkpoints are removed, hidden
    first, so that a run killed meanwhile leaves none that is half there; `keep` 0 removes none.
    """
    folder = run_folder / CHECKPOINTS_FOLDER
    final = folder / f"step-{step:07d}"
    partial = folder / f".{final.name}.partial"
    require_sound_weights(accelerator, model, step)
    free = shutil.disk_usage(run_folder).free // 10**6  # torch does not say why it could not write
    failure = f"{final}: cannot be saved; older checkpoints stay, {free} MB were free"
    try:
        with writing(accelerator, failure):
            if accelerator.is_main_process:
                folder.mkdir(parents=True, exist_ok=True)
                _remove_leftovers(folder)
        with writing(accelerator, failure):
            accelerator.save_state(str(partial))
        with writing(accelerator, failure):
            if accelerator.is_main_process:
                write_description(model, partial)
                ema.save(partial)
                _flush(partial)
                if final.exists():
                    _remove(final)
                partial.rename(final)
    except (ReportedError, SystemExit):
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)  # its room may be needed
        raise
    if accelerator.is_main_process:
        logger.info("saved %s", final)
        for old in list_checkpoints(folder)[:-keep] if keep else []:
            _remove(old)
    return final


def _remove_leftovers(folder: Path) -> None:
    """Remove what a save or a removal that was killed has left."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


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


def newest_checkpoint(run_folder: Path) -> Path | None:
    """Return the run's checkpoint with the highest step, or None."""
    found = list_checkpoints(run_folder / CHECKPOINTS_FOLDER)
    return found[-1] if found else None


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
    folder = run_folder / BEST_FOLDER
    final = folder / f"step-{best.step:07d}"
    with writing(accelerator, f"{final}: cannot be saved; the best before stays"):
        if accelerator.is_main_process:
            _write_best(weights, model, final, best)
    return final


def _write_best(weights: Mapping[str, Tensor], model: EoMT, final: Path, best: Best) -> None:
    folder = final.parent
    partial = folder / f".{final.name}.partial"
    _remove_leftovers(folder)
    partial.mkdir(parents=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(tensors, partial / WEIGHTS_NAME, metadata={"format": "pt"})
    write_description(model, partial)
    write_atomically(partial / BEST_RECORD, to_json(best))
    _flush(partial)
    if final.exists():  # of a run that was killed after this save and resumed from before it
        for path in partial.iterdir():  # one by one, so that there are weights at every moment
            path.replace(final / path.name)
        partial.rmdir()
    else:
        partial.rename(final)
    for old in list_checkpoints(folder):
        if old != final:
            _remove(old)
    shown = show_metric(best.metric, best.value)
    logger.info("best %s so far: %s; saved %s", best.metric, shown, final)
