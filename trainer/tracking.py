"""What of a run can be watched: TensorBoard scalars and the run's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator
from jaxtyping import UInt8

from shards.errors import InputError
from trainer.event_file import forgive_write_failures


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """What of a run can be watched while it trains; log.txt is always written."""

    tensorboard: bool = True
    """Write scalars and settings to the run's tensorboard/ folder."""
    pasted_scenes: int = 4
    """So many scenes of the run, all with objects, are shown there when it starts; 0: none."""

    def __post_init__(self) -> None:
        if self.pasted_scenes < 0:
            raise InputError(f"tracking.pasted_scenes: got {self.pasted_scenes}; 0 or more are needed")


def start_tracking(
    accelerator: Accelerator, config: TrackingConfig, settings: Mapping[str, str | int | float | bool]
) -> None:
    """Open the trackers, so that `accelerator.log` reaches them.

    Args:
        settings: of the whole run, flat: TensorBoard takes no nested ones.
    """
    if config.tensorboard:
        accelerator.init_trackers("tensorboard", config=dict(settings))
        forgive_write_failures(accelerator)


def show_picture(accelerator: Accelerator, tag: str, picture: UInt8[np.ndarray, "H W 3"], step: int) -> None:
    """Show a picture (R, G, B) in TensorBoard, if that is open."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({tag: picture[None]}, step=step, dataformats="NHWC")
