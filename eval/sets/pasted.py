"""How a set of pasted objects was made, in a file beside it: what a run checks before it uses the set."""

from __future__ import annotations

import json
from pathlib import Path

from eval.sets.registry import VALIDATION_SETS
from outlier_paste.config import PasteConfig
from shards.errors import InputError

RECORD_NAME = "paste_validation.json"


def require_unseen(folder: Path, paste: PasteConfig, setting: str) -> None:
    """Check that `folder` is one of `jobs.paste_validation`, and of objects that a run never pastes.

    Of two banks of different paths nothing can be said here: `jobs.paste_validation` compared them.

    Args:
        paste: of the run.
        setting: for the message.

    Raises:
        InputError: it is no such folder, or its objects are among those that the run trains on.
    """
    name = next(iter(VALIDATION_SETS))
    try:
        record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        bank, held_out = str(record["bank"]), float(record["held_out"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{setting} {folder}: no {RECORD_NAME} in it; a folder that jobs.paste_validation wrote is needed"
        ) from None
    if not (folder / name).is_dir():
        raise InputError(f"{setting} {folder}: no folder {name} in it, which jobs.paste_validation writes")
    if paste.probability == 0 or not paste.bank or Path(bank).resolve() != Path(paste.bank).resolve():
        return
    if held_out == 0:
        raise InputError(
            f"{setting} {folder}: its objects are those of {bank}, which this run pastes in training"
        )
    if paste.held_out < held_out:
        raise InputError(
            f"{setting} {folder}: its objects are the {held_out:g} of {bank} that were held out, but this "
            f"run holds out {paste.held_out:g} and would train on them; set paste.held_out {held_out:g}"
        )
