"""The best checkpoint of a run by one declared metric, and when to wait for a better one no longer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LOWER_IS_BETTER = ("fpr95",)


@dataclass
class Best:
    """The best validation so far; its counters are kept in checkpoints, so that a resumed run goes on."""

    metric: str = ""
    """What is compared, as in `validation.select`; empty: nothing is."""
    patience: int = 0
    """Validations in a row without a better value that end the run; 0: any number."""
    value: float = math.nan
    step: int = 0
    """Of the best value; 0 before the first."""
    waited: int = 0
    """Validations since."""

    def judge(self, scalars: Mapping[str, float], step: int) -> bool:
        """Take the validation of a step; return whether it is the best so far, an equal one not.

        A value that is NaN is never better.

        Args:
            scalars: by TensorBoard tag; `validation/METRIC` is read.
        """
        if not self.metric:
            return False
        value = float(scalars[f"validation/{self.metric}"])
        is_first = not self.step and not math.isnan(value)
        lower = self.metric.split("/")[0] in LOWER_IS_BETTER
        if is_first or (value < self.value if lower else value > self.value):
            self.value, self.step, self.waited = value, step, 0
            return True
        self.waited += 1
        return False

    @property
    def is_over(self) -> bool:
        """Whether the run has waited long enough."""
        return bool(self.patience) and self.waited >= self.patience

    def explain(self) -> str:
        """Say what there is of it, in a line."""
        return (
            f"best {self.metric} {self.value:.4f} at step {self.step}, {self.waited} validations before now"
        )

    def scalars(self) -> dict[str, float]:
        """Return the best value by TensorBoard tag; {} before the first."""
        return {f"best/{self.metric}": self.value} if self.step else {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; patience is a setting, not a state."""
        return {"metric": self.metric, "value": self.value, "step": self.step, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the counters of a checkpoint."""
        self.value, self.step = float(state["value"]), int(state["step"])
        self.waited = int(state["waited"])
