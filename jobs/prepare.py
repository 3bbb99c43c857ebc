"""Turn downloads into shards: Cityscapes into scenes; COCO, or pictures with segment maps, into objects."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from shards.errors import InputError
from shards.manifest import MANIFEST_NAME
from shards.output import require_free
from shards.prepare.cityscapes import JPEG_QUALITY, ImageEncoding, Split, plan_cityscapes
from shards.prepare.coco import plan_cutouts
from shards.prepare.objects import ObjectFilter
from shards.prepare.plan import FolderPlan
from shards.prepare.segments import SegmentFilter, plan_segments
from shards.prepare.writer import write_folder
from shards.program import run_program
from shards.settings import parse_options
from shards.task import Task, parse_task
from shards.tiles import require_zstandard

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Sharing of the work; the shards do not depend on it."""

    workers: int = 0
    """Processes; 0 takes one per processor, fewer for a small set."""
    task: str = ""
    """`I/N`: this is task I (from 0) of N, on any machines that share the output folder; `slurm`: the place
    in a SLURM array. Each writes its share and the last one completes the folder; one that starts again goes
    on where it stopped."""
    resume: bool = False
    """Keep finished shards of an interrupted run in `.OUT.parts`, and go on with them the next time."""

    def check(self, samples_per_shard: int) -> None:
        """Refuse impossible counts and tasks."""
        if samples_per_shard < 1:
            raise InputError(f"samples_per_shard: is {samples_per_shard}; 1 or more is needed")
        if self.workers < 0:
            raise InputError(f"workers: is {self.workers}; 0 or more is needed")
        if self.task:
            parse_task(self.task)


@dataclass(frozen=True, kw_only=True)
class CityscapesJob(Sharing):
    """Cityscapes frames and their labels -> shards of scenes."""

    root: Path
    """Folder that holds `leftImg8bit/` and `gtFine/`, or `leftImg8bit_trainvaltest.zip` and
    `gtFine_trainvaltest.zip`, which are read without unpacking."""
    out: Path
    """New or empty folder for the shards and `manifest.json`."""
    splits: tuple[Split, ...] = ("train", "val")
    """Which parts to take."""
    samples_per_shard: int = 64
    """Most frames in one shard. A small split is still cut into 8 shards."""
    image_encoding: ImageEncoding = "jpeg"
    """`jpeg`: without chroma subsampling, a quarter of the size, decodes 4 times faster than PNG; `png`: the
    original file's bytes; `tiles`: lossless, a fifth larger than PNG, and a crop decodes its part only, which
    is faster than JPEG (needs the package zstandard)."""
    val_encoding: ImageEncoding = "png"
    """The same of split val: without loss, as published mIoU is measured."""
    jpeg_quality: int = JPEG_QUALITY
    """Quality of encoding jpeg, 1 to 100."""

    def __post_init__(self) -> None:
        self.check(self.samples_per_shard)
        if not 1 <= self.jpeg_quality <= 100:
            raise InputError(f"jpeg_quality: is {self.jpeg_quality}; 1 to 100 is needed")
        for name in ("image_encoding", "val_encoding"):
            if getattr(self, name) == "tiles":
                require_zstandard(f"--{name}")
        if not self.splits:
            raise InputError("splits: is empty; train, val or test is needed")

    def plan(self) -> FolderPlan:
        """Plan the shards."""
        names = ("splits", "samples_per_shard", "image_encoding", "val_encoding", "jpeg_quality")
        return plan_cityscapes(self.root, **{name: getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class CocoJob(ObjectFilter, Sharing):
    """COCO pictures and instance annotations -> shards of cut-out objects."""

    images: Path
    """Folder of pictures, or `train2017.zip`, which is read without unpacking."""
    annotations: Path
    """`instances_train2017.json`, or a folder or zip file (`annotations_trainval2017.zip`) that holds it."""
    out: Path
    """New or empty folder for the shards and `manifest.json`."""
    samples_per_shard: int = 1000
    """About the most objects in one shard. A small set is still cut into 8 shards or so."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(self.samples_per_shard)

    def plan(self) -> FolderPlan:
        """Choose the objects and plan the shards."""
        rule = ObjectFilter(**{field.name: getattr(self, field.name) for field in fields(ObjectFilter)})
        return plan_cutouts(self.images, self.annotations, rule, self.samples_per_shard)


@dataclass(frozen=True, kw_only=True)
class SegmentsJob(SegmentFilter, Sharing):
    """Pictures and segment maps, such as ADE20K's -> shards of cut-out objects."""

    images: Path
    """Folder or zip file of pictures."""
    segments: Path
    """Folder or zip file of PNG maps of the same names: one channel holds the number of each pixel's segment,
    three hold R + 256 G + 65536 B."""
    out: Path
    """New or empty folder for the shards and `manifest.json`."""
    samples_per_shard: int = 1000
    """About the most cut-outs in one shard."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(self.samples_per_shard)

    def plan(self) -> FolderPlan:
        """Choose the segments and plan the shards."""
        rule = SegmentFilter(**{field.name: getattr(self, field.name) for field in fields(SegmentFilter)})
        return plan_segments(self.images, self.segments, rule, self.samples_per_shard)


Job = (
    Annotated[CityscapesJob, tyro.conf.subcommand("cityscapes")]
    | Annotated[CocoJob, tyro.conf.subcommand("coco")]
    | Annotated[SegmentsJob, tyro.conf.subcommand("segments")]
)
DOWNLOADS = ("cityscapes", "coco", "segments")


def main(arguments: Sequence[str]) -> None:
    """Prepare one download, as the first argument says: `cityscapes`, `coco` or `segments`."""
    if arguments and arguments[0] not in (*DOWNLOADS, "-h", "--help"):
        known = ", ".join(DOWNLOADS)
        raise InputError(f"which download: {arguments[0]!r} is not known; the first argument is {known}")
    job: CityscapesJob | CocoJob | SegmentsJob = parse_options(Job, arguments, program="jobs.prepare")
    task = parse_task(job.task) if job.task else Task(0, 1) if job.resume else None
    if task is None or not (job.out / MANIFEST_NAME).is_file():  # which another task may have completed
        require_free(job.out)
    plan = job.plan()
    for line in plan.report:
        logger.info("%s", line)
    write_folder(plan, job.out, workers=job.workers, task=task)


if __name__ == "__main__":
    run_program(main)
