"""Validation sets of pasted objects that training never sees: made, recorded, checked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from outlier_paste.bank import CutoutBank, open_bank, photo_of
from outlier_paste.config import PasteConfig
from outlier_paste.paste import OutlierPaste
from shards.errors import InputError
from shards.files import read_json
from shards.order import sample_generator
from shards.progress import Progress
from shards.reader import ShardReader
from shards.scene import decode_scene
from shards.schema import ANOMALY, NORMAL, OUTLIER_ID, VOID, VOID_ID, Sample

logger = logging.getLogger(__name__)

RECORD_NAME = "paste_validation.json"
FOLDER = "PastedVal"
"""Folder of the set, by which the evaluation knows its layout."""
ATTEMPTS = 10
"""Draws of objects for a frame that has no place for them; then it is left out."""


def open_held_out(config: PasteConfig, own_bank: str) -> CutoutBank:
    """Open the objects of validation, and refuse them where training pastes one of their photographs."""
    if not own_bank:
        if not config.bank:
            raise InputError("paste.bank: is empty; a folder of cut-outs is needed")
        if config.held_out == 0:
            advice = "fine-tune with a share such as 0.1, or give --bank another one"
            raise InputError(f"paste.held_out: is 0, so training pastes every object of the bank; {advice}")
        return open_bank(config.bank, config.cache_mb, held_out=config.held_out, take_held_out=True)
    bank = open_bank(own_bank, config.cache_mb)
    if config.bank:
        trained = {photo_of(key) for key in open_bank(config.bank, held_out=config.held_out).keys}
        if shared := sorted({photo_of(key) for key in bank.keys} & trained):
            common = f"{len(shared)} photographs with the training part of paste.bank {config.bank}"
            told = f"shares {common}, such as {shared[0]}"
            raise InputError(f"--bank {own_bank}: {told}; a disjoint bank is needed")
    return bank


def paste_frames(reader: ShardReader, paste: OutlierPaste, count: int, variant: int) -> Iterator[Sample]:
    """Yield `count` frames, evenly spread, with objects; what cannot have any is left out, and said."""
    chosen = np.linspace(0, len(reader) - 1, count).round().astype(int).tolist()
    for index in Progress(chosen, desc="frames", unit="frame"):
        key = reader.keys[index]
        sample = decode_scene(reader, index)
        for attempt in range(ATTEMPTS):
            sample = paste(sample, sample_generator("paste validation", variant, attempt, key))
            if (sample.label == OUTLIER_ID).any():
                yield sample
                break
        else:
            logger.info("%s: no place for an object, left out", key)


def write_set(samples: Iterator[Sample], folder: Path) -> list[str]:
    """Write pictures and masks as the evaluation reads them; return the frames' names."""
    for place in ("images", "labels_masks"):
        (folder / place).mkdir(parents=True)
    names = []
    for sample in samples:
        picture = cv2.cvtColor(sample.image, cv2.COLOR_RGB2BGR)
        for place, content in (("images", picture), ("labels_masks", mask_of(sample.label))):
            (folder / place / f"{sample.key}.png").write_bytes(cv2.imencode(".png", content)[1].tobytes())
        names.append(sample.key)
    return names


def mask_of(label: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """Return 1 where an object was pasted, 255 where the frame is void, and 0 elsewhere."""
    table = np.full(256, NORMAL, np.uint8)
    table[OUTLIER_ID], table[VOID_ID] = ANOMALY, VOID
    return table[label]


def require_unseen(folder: Path, paste: PasteConfig, setting: str) -> None:
    """Check that `folder` is one of `jobs.paste_validation`, and of objects that a run never pastes.

    Of two banks of different paths nothing can be said here: `jobs.paste_validation` compared them.
    """
    try:
        record = read_json(dict[str, Any], folder / RECORD_NAME)
        bank, held_out = str(record["bank"]), float(record["held_out"])
    except (ValueError, KeyError, TypeError):  # an InputError is a ValueError
        needed = "a folder that jobs.paste_validation wrote is needed"
        raise InputError(f"{setting} {folder}: no {RECORD_NAME} in it; {needed}") from None
    if not (folder / FOLDER).is_dir():
        raise InputError(f"{setting} {folder}: no folder {FOLDER} in it, which jobs.paste_validation writes")
    if paste.probability == 0 or not paste.bank or Path(bank).resolve() != Path(paste.bank).resolve():
        return
    if held_out == 0:
        objects = f"its objects are those of {bank}"
        raise InputError(f"{setting} {folder}: {objects}, which this run pastes in training")
    if paste.held_out < held_out:
        objects = f"its objects are the {held_out:g} of {bank} that were held out"
        run = f"this run holds out {paste.held_out:g} and would train on them"
        raise InputError(f"{setting} {folder}: {objects}, but {run}; set paste.held_out {held_out:g}")
