"""Counters of a run that its checkpoints keep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from shards.errors import InputError

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
