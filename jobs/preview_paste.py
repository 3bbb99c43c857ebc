"""Draw a contact sheet of pasted scenes: `python -m jobs.preview_paste CONFIG.yaml --out PNG`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from outlier_paste.bank import open_bank
from outlier_paste.config import PasteConfig
from outlier_paste.paste import build_paste
from shards.errors import InputError
from shards.files import write_atomically
from shards.location import find_classes
from shards.output import claimed
from shards.program import run_program
from shards.progress import Progress
from shards.reader import list_shards
from shards.schema import CITYSCAPES, OUTLIER_ID, ClassTable, Sample
from shards.settings import load_config, parse_options, require_least, split_arguments
from trainer.config import FinetuneConfig

logger = logging.getLogger(__name__)

OUTLINE_COLOR = (0, 255, 255)
"""Cyan, in R, G, B; no class and hardly any photograph has it."""
OUTLIER_COLOR = (255, 255, 255)
CAPTION_HEIGHT = 24
GAP = 8


@dataclass(frozen=True, kw_only=True)
class PreviewOptions:
    """Draw the first scenes of a fine-tuning run, each with its pasted objects and its label map.

    `python -m jobs.preview_paste CONFIG.yaml --out PNG [--section.setting value ...]`: the sections `data`
    and `paste` and the seed are those of the run, so that the crops, objects and places are the very ones
    that it trains on, except that every scene gets objects, whatever `paste.probability` says.
    """

    out: Path
    """PNG file to write."""
    overwrite: bool = False
    """Replace the file if it is there."""
    scenes: int = 12
    """Number of scenes."""
    columns: int = 4
    """Scenes side by side."""
    tile_width: int = 480
    """Width of a scene on the sheet, in pixels."""

    def __post_init__(self) -> None:
        require_least(self, scenes=1, columns=1, tile_width=1)
        if self.out.suffix.lower() != ".png":
            raise InputError(f"out: got {self.out}; a name that ends in .png is needed")


def main(arguments: Sequence[str]) -> None:
    """Write the contact sheet of a configuration."""
    own, of_run = split_arguments(arguments, PreviewOptions)
    options: PreviewOptions = parse_options(PreviewOptions, own, program="jobs.preview_paste")
    if options.out.is_dir():
        raise InputError(f"--out {options.out}: is a folder; the name of a PNG file is needed")
    config = load_config(FinetuneConfig, of_run, program="jobs.preview_paste")
    with claimed(options.out):
        is_there = options.out.exists() or options.out.is_symlink()  # which may lead to nothing
        if is_there and not options.overwrite:
            raise InputError(f"--out {options.out}: the file is already there; --overwrite True replaces it")
        scenes = paste_scenes(config, options.scenes)
        log_bank(config.paste)
        shape = {"columns": options.columns, "tile_width": options.tile_width}
        sheet = draw_contact_sheet(scenes, find_scene_classes(config), **shape)
        _, content = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
        write_atomically(options.out, content.tobytes())
    logger.info("%s: %d scenes", options.out, len(scenes))


def paste_scenes(config: FinetuneConfig, num_scenes: int) -> list[Sample]:
    """Make the first scenes of a run, every one of them with outliers where a place for them is found."""
    from shards.stream import build_stream

    paste = build_paste(dataclasses.replace(config.paste, probability=1.0), find_scene_classes(config))
    assert paste is not None, "a probability of 1 pastes"
    data = dataclasses.replace(config.data, batch_size=1, workers=0)
    stream = build_stream(
        data, seed=config.seed, rank=0, world_size=1, transform=paste, num_batches=num_scenes
    )
    return [
        Sample(key=batch.keys[0], image=batch.image[0].permute(1, 2, 0).numpy(), label=batch.label[0].numpy())
        for batch in Progress(stream, total=num_scenes, desc="scenes", unit="scene")
    ]


def find_scene_classes(config: FinetuneConfig) -> ClassTable:
    """Return the classes of the scenes of a run."""
    data = config.data
    return find_classes(list_shards(data.shards, data.split, cache=data.cache, max_errors=data.max_errors))


def log_bank(config: PasteConfig) -> None:
    """Say how many objects of which categories may be pasted."""
    bank = open_bank(config.bank, held_out=config.held_out)
    counts = bank.category_counts()
    listed = ", ".join(f"{name} {count}" for name, count in counts.most_common(12))
    more = f" and {len(counts) - 12} more" if len(counts) > 12 else ""
    logger.info("%d objects of %d categories: %s%s", len(bank), len(counts), listed, more)


def draw_contact_sheet(
    scenes: Sequence[Sample], classes: ClassTable = CITYSCAPES, *, columns: int = 4, tile_width: int = 480
) -> UInt8[np.ndarray, "H W 3"]:
    """Arrange scenes of one size, at least one, row by row; each is `tile_width` pixels wide."""
    tiles = [draw_scene(scene, tile_width, classes) for scene in scenes]
    columns = min(columns, len(tiles))
    height, width = tiles[0].shape[0] + GAP, tile_width + GAP
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * height + GAP, columns * width + GAP, 3), 32, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = GAP + i // columns * height, GAP + i % columns * width
        sheet[top : top + tile.shape[0], left : left + tile_width] = tile
    return sheet


def draw_scene(scene: Sample, width: int, classes: ClassTable = CITYSCAPES) -> UInt8[np.ndarray, "H W 3"]:
    """Draw one scene: its key and share of outlier pixels, its outlined picture, its label map in colours."""
    size = (width, max(1, round(scene.label.shape[0] * width / scene.label.shape[1])))
    method = cv2.INTER_AREA if width < scene.label.shape[1] else cv2.INTER_LINEAR
    picture = cv2.resize(scene.image, size, interpolation=method)
    label = cv2.resize(scene.label, size, interpolation=cv2.INTER_NEAREST_EXACT)
    outlier = (label == OUTLIER_ID).astype(np.uint8)
    contours, _ = cv2.findContours(outlier, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, OUTLINE_COLOR, 1)
    caption = np.zeros((CAPTION_HEIGHT, width, 3), np.uint8)
    text = f"{scene.key}  {100 * float((scene.label == OUTLIER_ID).mean()):.1f} %"
    cv2.putText(caption, text, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([caption, picture, label_colors(classes)[label]])


def label_colors(classes: ClassTable = CITYSCAPES) -> UInt8[np.ndarray, "256 3"]:
    """Return the colour of each label value: the class's own, white for outliers, black for void."""
    colors = classes.palette()
    colors[OUTLIER_ID] = OUTLIER_COLOR
    return colors


if __name__ == "__main__":
    run_program(main)
