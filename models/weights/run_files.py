"""Names of the files in a run's folder, and what is found by them without a look inside."""

from __future__ import annotations

import re
from pathlib import Path

CONFIG_NAME = "config.yaml"
PROVENANCE_NAME = "provenance.json"
LOCK_NAME = "lock"
FINISHED_NAME = "finished.json"
"""Written when a run has come to its end, also to an early one."""
CHECKPOINTS_FOLDER = "checkpoints"
BEST_FOLDER = "best"
"""Folder of a run's best weights, as `step-NNNNNNN`, where a metric was declared."""
STEP_PATTERN = re.compile(r"step-(\d{7})")


def list_checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints `step-NNNNNNN` of a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and STEP_PATTERN.fullmatch(path.name))


def run_of(checkpoint: Path) -> str | None:
    """Return the name of the run whose folder holds a checkpoint; None where it lies in none."""
    folder = checkpoint.resolve().parent
    return folder.parent.name if folder.name in (CHECKPOINTS_FOLDER, BEST_FOLDER) else None


def newest_checkpoint(run_folder: Path) -> Path | None:
    """Return the run's checkpoint with the highest step, or None."""
    found = list_checkpoints(run_folder / CHECKPOINTS_FOLDER)
    return found[-1] if found else None


def list_runs(folder: Path) -> list[Path]:
    """List the runs that a folder holds, by name; none where it is a run itself."""
    if (folder / CONFIG_NAME).is_file() or not folder.is_dir():
        return []
    return sorted(path.parent for path in folder.glob(f"*/{CONFIG_NAME}"))
