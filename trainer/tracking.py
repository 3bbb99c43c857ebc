"""What of a run can be watched: TensorBoard scalars and the run's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from accelerate import Accelerator

from shards.errors import InputError
from trainer.board import start_comparison
from trainer.event_file import forgive_write_failures


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """What of a run can be watched while it trains; log.txt is always written."""

    tensorboard: bool = True
    """Write to the run's tensorboard/ folder; what it shows, and what that costs: docs/monitoring.md."""
    pasted_scenes: int = 4
    """So many scenes of the run, all with objects, are shown there when it starts; 0: none."""
    groups: bool = True
    """Log learning rate and gradient norm of every parameter group, and norms of adapters, beside each log
    line."""
    probes: int = 3
    """So many frames of each validation set, always the same, are shown at every validation: ground truth,
    prediction and a map for each of validation.scores; 0: none."""
    curves: bool = True
    """Show precision over recall and the scores of normal and anomalous pixels of validation.pasted."""

    def __post_init__(self) -> None:
        for name in ("pasted_scenes", "probes"):
            if getattr(self, name) < 0:
                raise InputError(f"tracking.{name}: got {getattr(self, name)}; 0 or more are needed")


def start_tracking(
    accelerator: Accelerator,
    config: TrackingConfig,
    settings: Mapping[str, str | int | float | bool],
    metrics: Sequence[str] = (),
) -> None:
    """Open the trackers, so that `accelerator.log` reaches them.

    Args:
        settings: of the whole run, flat: TensorBoard takes no nested ones.
        metrics: tags of the scalars by which runs are compared.
    """
    if config.tensorboard:
        accelerator.init_trackers("tensorboard")
        forgive_write_failures(accelerator)
        start_comparison(accelerator, settings, metrics)
