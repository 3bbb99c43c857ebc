"""Checkpoints of a run: complete or absent, oldest dropped, newest found."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from accelerate import Accelerator

from models.checkpoint import CHECKPOINTS_FOLDER, list_checkpoints, write_description
from models.eomt import ModelConfig

logger = logging.getLogger(__name__)


def save_checkpoint(
    accelerator: Accelerator, config: ModelConfig, run_folder: Path, step: int, *, keep: int
) -> Path:
    """Save weights, optimizer, schedule, counters and random states as `checkpoints/step-NNNNNNN`.

    All ranks write into a hidden folder beside it, which gets its name when all are done. Then all but
    the newest `keep` checkpoints are removed; `keep` 0 removes none.
    """
    folder = run_folder / CHECKPOINTS_FOLDER
    final = folder / f"step-{step:07d}"
    partial = folder / f".{final.name}.partial"
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)  # of a save that was killed
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_description(config, partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in list_checkpoints(folder)[: -keep or None] if keep else []:
            shutil.rmtree(old, ignore_errors=True)
        logger.info("saved %s", final)
    accelerator.wait_for_everyone()
    return final


def newest_checkpoint(run_folder: Path) -> Path | None:
    """Return the run's checkpoint with the highest step, or None."""
    found = list_checkpoints(run_folder / CHECKPOINTS_FOLDER)
    return found[-1] if found else None
