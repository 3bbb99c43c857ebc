"""The synthetic world on disk: street scenes, objects and anomaly sets in their official layouts."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import operator
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from jobs.world.anomaly_layout import ANOMALY_SETS, AnomalyFrame
from jobs.world.cityscapes_layout import StreetFrame
from jobs.world.coco_json import write_annotations
from jobs.world.coco_layout import ObjectPicture
from jobs.world.picture_files import write_preview
from shards.errors import InputError
from shards.output import staged_folder
from shards.program import run_program
from shards.progress import Progress
from shards.settings import parse_options, require_least

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SynthesizeOptions:
    """Draw a synthetic world and write it as Cityscapes, COCO and five anomaly benchmarks lie on disk."""

    out: Path
    """Folder to create; an existing one must be empty."""
    seed: int = 0
    """Same seed, same bytes, whatever the number of workers."""
    height: int = 256
    """Rows of a street scene; it is twice as wide. The originals have 1024."""
    train: int = 160
    """Street scenes in the train split."""
    val: int = 24
    """Street scenes in the val split."""
    coco: int = 60
    """Pictures of objects."""
    coco_height: int = 480
    """Rows of a picture of objects; every tenth is smaller, and the usual filter drops sides below 480."""
    anomaly_images: int = 12
    """Pictures in each of the five anomaly sets."""
    workers: int = 2
    """Processes that draw."""

    def __post_init__(self) -> None:
        ones = dict.fromkeys(("train", "val", "coco", "anomaly_images", "workers"), 1)
        require_least(self, seed=0, height=64, coco_height=64, **ones)
        if self.height % 2:
            raise InputError(f"--height: got {self.height}; an even number is needed")


def main(arguments: Sequence[str]) -> None:
    """Run `python -m jobs.synthesize`."""
    synthesize(parse_options(SynthesizeOptions, arguments, program="jobs.synthesize"))


def synthesize(options: SynthesizeOptions) -> None:
    """Draw the world that `options` describe into a new or empty folder."""
    seed, height = options.seed, options.height
    coco = [ObjectPicture(seed, options.coco_height, index) for index in range(options.coco)]
    street = [StreetFrame(seed, height, "train", index) for index in range(options.train)]
    street += [StreetFrame(seed, height, "val", index) for index in range(options.val)]
    numbers = range(options.anomaly_images)
    anomalies = [AnomalyFrame(seed, height, name, index) for name in ANOMALY_SETS for index in numbers]
    drawings: list[Callable[[Path], Any]] = [picture.write for picture in coco]
    drawings += [frame.write for frame in street] + [frame.write for frame in anomalies]
    with staged_folder(options.out) as root:
        results = _draw_all(drawings, root, options.workers)
        write_annotations(root, results[: len(coco)])
        write_preview(root)
    logger.info("%s: %d pictures, overview in preview.png", options.out, len(drawings))


def _draw_all(drawings: Sequence[Callable[[Path], Any]], root: Path, workers: int) -> list[Any]:
    """Write every drawing under `root`; what they return keeps the order of `drawings`."""
    write = operator.methodcaller("__call__", root)
    progress = functools.partial(Progress, total=len(drawings), desc="drawing", unit="picture")
    if workers == 1:
        return list(progress(map(write, drawings)))
    context = multiprocessing.get_context("spawn")  # a fork while threads run (OpenCV, PyTorch) may hang
    with context.Pool(workers, initializer=_start_worker) as pool:
        return list(progress(pool.imap(write, drawings, chunksize=2)))


def _start_worker() -> None:
    """Keep a worker on one core, and leave Ctrl-C to the main process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


if __name__ == "__main__":
    run_program(main)
