"""Make a validation set of pasted anomalies: `python -m jobs.paste_validation CONFIG.yaml --out DIR`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from outlier_paste.paste import OutlierPaste
from outlier_paste.validation_set import (
    FOLDER,
    RECORD_NAME,
    hash_files,
    open_held_out,
    paste_frames,
    write_set,
)
from shards.errors import InputError
from shards.files import Location, to_json, write_atomically
from shards.output import require_free, staged_folder
from shards.program import run_program
from shards.reader import open_shards
from shards.scene import require_scenes
from shards.settings import load_config, parse_options, require_least, split_arguments
from trainer.config import FinetuneConfig

logger = logging.getLogger(__name__)
PROGRAM = "jobs.paste_validation"


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
    """Number of frames, evenly spread over the split; 0 takes all."""
    bank: Location = ""
    """A bank of its own, such as one of COCO val2017; it must share no photograph with paste.bank. Empty:
    the held-out part of paste.bank."""
    variant: int = 0
    """Another number gives other objects at other places. The seed of the run has no part in it, so that all
    runs of a sweep are compared on the same pictures."""

    def __post_init__(self) -> None:
        require_least(self, frames=0, variant=0)


def main(arguments: Sequence[str]) -> None:
    """Write the validation set of a configuration."""
    own, of_run = split_arguments(arguments, PasteValidationOptions)
    options: PasteValidationOptions = parse_options(PasteValidationOptions, own, program=PROGRAM)
    require_free(options.out)
    config = load_config(FinetuneConfig, of_run, program=PROGRAM)
    from eval.sets.benchmarks import require_no_benchmark, require_no_benchmark_scenes

    setting = "validation.shards" if config.validation.shards else "data.shards"
    places = config.validation.shards or config.data.shards
    for place in places:
        require_no_benchmark(place, setting)
    reader = open_shards(places, config.validation.split, setting)
    require_scenes(reader)
    require_no_benchmark_scenes(reader, setting)
    bank = open_held_out(config.paste, options.bank)
    always = dataclasses.replace(config.paste, bank=config.paste.bank or options.bank, probability=1.0)
    with staged_folder(options.out) as folder:
        count = min(options.frames or len(reader), len(reader))
        frames = paste_frames(reader, OutlierPaste(always, bank, reader.classes), count, options.variant)
        written = write_set(frames, folder / FOLDER)
        if not written:
            raise InputError(f"paste: none of {len(reader)} frames has a place for an object")
        record = {"frames": written, "variant": options.variant, "bank": options.bank or config.paste.bank}
        record |= {"files": hash_files(folder)}
        record |= {"held_out": 0.0 if options.bank else config.paste.held_out}
        record |= {"objects": len(bank), "paste": config.paste}
        write_atomically(folder / RECORD_NAME, to_json(record))
    logger.info("%s: %d frames from a bank of %d objects", options.out, len(written), len(bank))


if __name__ == "__main__":
    run_program(main)
