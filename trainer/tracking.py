"""What of a run can be watched: TensorBoard scalars and the run's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from accelerate import Accelerator


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """What of a run can be watched while it trains; log.txt is always written."""

    tensorboard: bool = True
    """Write scalars and settings to the run's tensorboard/ folder."""


def start_tracking(
    accelerator: Accelerator, config: TrackingConfig, settings: Mapping[str, str | int | float | bool]
) -> None:
    """Open the trackers, so that `accelerator.log` reaches them.

    Args:
        settings: of the whole run, flat: TensorBoard takes no nested ones.
    """
    if config.tensorboard:
        accelerator.init_trackers("tensorboard", config=dict(settings))
