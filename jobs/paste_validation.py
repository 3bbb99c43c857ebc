"""Make a validation set of pasted anomalies: `python -m jobs.paste_validation CONFIG.yaml --out DIR`."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from eval.sets.pasted import RECORD_NAME
from eval.sets.registry import VALIDATION_SETS
from outlier_paste.bank import CutoutBank, open_bank, photo_of
from outlier_paste.config import PasteConfig
from outlier_paste.paste import OutlierPaste
from shards.errors import InputError
from shards.files import require_free, staged_folder
from shards.order import sample_generator
from shards.reader import ShardReader, open_shards
from shards.scene import decode_scene, require_scenes
from shards.schema import ANOMALY, NORMAL, OUTLIER_ID, VOID, VOID_ID, Sample
from shards.settings import load_config, parse_options, run_program, split_arguments
from trainer.config import FinetuneConfig

logger = logging.getLogger(__name__)

FOLDER = next(iter(VALIDATION_SETS))
ATTEMPTS = 10
"""So often objects are drawn for a frame that has no place for them; then it is left out."""


@dataclass(frozen=True, kw_only=True)
class PasteValidationOptions:
    """Paste objects that training never sees onto whole Cityscapes val frames, in the layout of a test set.

    `python -m jobs.paste_validation CONFIG.yaml --out DIR [--section.setting value ...]`: frames are those of
    `validation.shards`, or of `data.shards` where that is empty; objects, places and blending follow the
    section `paste`, except that every frame gets objects. The objects are those that `paste.held_out` keeps
    from training, or those of `--bank`. `jobs.evaluate --datasets DIR` scores the set like any other.
    """

    out: Path
    """New or empty folder for PastedVal/ and a record of how it was made."""
    frames: int = 100
    """So many frames, evenly spread over the split; 0 takes all."""
    bank: str = ""
    """A bank of its own, such as one of COCO val2017; it must share no photograph with paste.bank. Empty:
    the held-out part of paste.bank."""
    variant: int = 0
    """Another number gives other objects at other places. The seed of the run has no part in it, so that all
    runs of a sweep are compared on the same pictures."""

    def __post_init__(self) -> None:
        for name in ("frames", "variant"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: got {getattr(self, name)}; 0 or more are needed")


def main(arguments: Sequence[str]) -> None:
    """Write the validation set of a configuration."""
    own, of_run = split_arguments(arguments, PasteValidationOptions)
    options: PasteValidationOptions = parse_options(
        PasteValidationOptions, own, program="jobs.paste_validation"
    )
    require_free(options.out)
    config = load_config(FinetuneConfig, of_run, program="jobs.paste_validation")
    reader = open_shards(config.validation.shards or config.data.shards, config.validation.split)
    require_scenes(reader)
    bank = open_held_out(config.paste, options.bank)
    always = dataclasses.replace(config.paste, bank=config.paste.bank or options.bank, probability=1.0)
    paste = OutlierPaste(always, bank)
    with staged_folder(options.out) as folder:
        written = write_set(paste_frames(reader, paste, options), folder / FOLDER)
        if not written:
            raise InputError(f"paste: none of {len(reader)} frames has a place for an object")
        record = {"frames": written, "variant": options.variant, "bank": options.bank or config.paste.bank}
        record |= {"held_out": 0.0 if options.bank else config.paste.held_out}
        record |= {"objects": len(bank), "paste": dataclasses.asdict(config.paste)}
        (folder / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    logger.info("%s: %d frames from a bank of %d objects", options.out, len(written), len(bank))


def open_held_out(config: PasteConfig, own_bank: str) -> CutoutBank:
    """Open the objects of validation, and make sure that training pastes none of their photographs.

    Args:
        config: of the run.
        own_bank: bank of the validation alone; empty takes what the run holds out.

    Raises:
        InputError: nothing is held out, or a photograph is on both sides.
    """
    if not own_bank:
        if not config.bank:
            raise InputError("paste.bank: is empty; a folder of cut-outs is needed")
        if config.held_out == 0:
            raise InputError(
                "paste.held_out: is 0, so training pastes every object of the bank; fine-tune with a share "
                "such as 0.1, or give --bank another one"
            )
        return open_bank(config.bank, config.cache_mb, held_out=config.held_out, take_held_out=True)
    bank = open_bank(own_bank, config.cache_mb)
    if config.bank:
        trained = {photo_of(key) for key in open_bank(config.bank, held_out=config.held_out).keys}
        shared = sorted({photo_of(key) for key in bank.keys} & trained)
        if shared:
            raise InputError(
                f"--bank {own_bank}: shares {len(shared)} photographs with the training part of paste.bank "
                f"{config.bank}, such as {shared[0]}; a disjoint bank is needed"
            )
    return bank


def paste_frames(
    reader: ShardReader, paste: OutlierPaste, options: PasteValidationOptions
) -> Iterator[Sample]:
    """Yield the chosen frames with objects; what cannot have any is left out, and said."""
    count = min(options.frames or len(reader), len(reader))
    chosen = np.linspace(0, len(reader) - 1, count).round().astype(int).tolist()
    for index in tqdm(chosen, desc="frames", unit="frame", disable=None):
        key = reader.keys[index]
        sample = decode_scene(reader, index)
        for attempt in range(ATTEMPTS):
            sample = paste(sample, sample_generator("paste validation", options.variant, attempt, key))
            if (sample.label == OUTLIER_ID).any():
                yield sample
                break
        else:
            logger.info("%s: no place for an object, left out", key)


def write_set(samples: Iterator[Sample], folder: Path) -> list[str]:
    """Write pictures and masks as the evaluation reads them; return the frames' names."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels_masks").mkdir()
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


if __name__ == "__main__":
    run_program(main)
