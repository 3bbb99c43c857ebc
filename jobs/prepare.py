"""Turn downloads into shards: Cityscapes into scenes; COCO, or pictures with segment maps, into objects."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import cv2
import tyro

from shards.errors import InputError
from shards.files import require_free, staged_folder
from shards.manifest import (
    MANIFEST_NAME,
    MANIFEST_VERSION,
    Manifest,
    ShardEntry,
    read_manifest,
    write_manifest,
)
from shards.prepare.cityscapes import JPEG_QUALITY, ImageEncoding, Split, plan_cityscapes
from shards.prepare.coco import MASK_ENCODING, plan_cutouts
from shards.prepare.objects import REPORT_NAME, ObjectFilter, render_report
from shards.prepare.parts import write_part
from shards.prepare.segments import SegmentFilter, plan_segments
from shards.prepare.writer import ShardPlan, write_shards
from shards.schema import LABEL_ENCODING
from shards.settings import parse_options, run_program
from shards.task import Task, parse_task
from shards.tiles import require_zstandard, zstd_version

logger = logging.getLogger(__name__)

SAMPLES_PER_WORKER = 64
"""A worker process takes seconds to start, in which this one writes about so many samples."""


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How the work is shared; the shards do not depend on it."""

    workers: int = 0
    """Processes; 0 takes one per processor, fewer for a small set."""
    task: str = ""
    """`I/N`: this is task I (from 0) of N, on any machines that share the output folder; `slurm`: the place
    in a SLURM array. Each writes its share and the last one completes the folder; one that starts again goes
    on where it stopped."""
    resume: bool = False
    """Keep finished shards of an interrupted run in `.OUT.parts`, and go on with them the next time."""

    def check(self, samples_per_shard: int) -> None:
        """Check the counts.

        Raises:
            InputError: one of them, or the task, is impossible.
        """
        _check_counts(samples_per_shard, self.workers)
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
    jpeg_quality: int = JPEG_QUALITY
    """Of `--image_encoding jpeg`, 1 to 100."""

    def __post_init__(self) -> None:
        self.check(self.samples_per_shard)
        if not 1 <= self.jpeg_quality <= 100:
            raise InputError(f"jpeg_quality: is {self.jpeg_quality}; 1 to 100 is needed")
        if self.image_encoding == "tiles":
            require_zstandard("--image_encoding")
        if not self.splits:
            raise InputError("splits: is empty; train, val or test is needed")


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

    def rule(self) -> ObjectFilter:
        """Return the options that say which objects qualify."""
        return ObjectFilter(**{name: getattr(self, name) for name in ObjectFilter.__dataclass_fields__})


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

    def rule(self) -> SegmentFilter:
        """Return the options that say which segments qualify."""
        return SegmentFilter(**{name: getattr(self, name) for name in SegmentFilter.__dataclass_fields__})


Job = (
    Annotated[CityscapesJob, tyro.conf.subcommand("cityscapes")]
    | Annotated[CocoJob, tyro.conf.subcommand("coco")]
    | Annotated[SegmentsJob, tyro.conf.subcommand("segments")]
)
DOWNLOADS = ("cityscapes", "coco", "segments")


def main(arguments: Sequence[str]) -> None:
    """Prepare one download, as the first argument says: `cityscapes`, `coco` or `segments`."""
    if arguments and arguments[0] not in (*DOWNLOADS, "-h", "--help"):
        raise InputError(
            f"which download: {arguments[0]!r} is not known; the first argument is {', '.join(DOWNLOADS)}"
        )
    job: CityscapesJob | CocoJob | SegmentsJob = parse_options(Job, arguments, program="jobs.prepare")
    if not _may_be_complete(job):
        require_free(job.out)
    if isinstance(job, CityscapesJob):
        prepare_cityscapes(job)
    else:
        prepare_cutouts(job)


def prepare_cityscapes(job: CityscapesJob) -> None:
    """Write the shards of a Cityscapes download."""
    plans = plan_cityscapes(
        job.root,
        splits=job.splits,
        samples_per_shard=job.samples_per_shard,
        image_encoding=job.image_encoding,
        jpeg_quality=job.jpeg_quality,
    )
    for split in dict.fromkeys(plan.split for plan in plans):
        sizes = [plan.num_samples for plan in plans if plan.split == split]
        logger.info("%s: %d frames in %d shards", split, sum(sizes), len(sizes))
    options: dict[str, Any] = {"splits": list(job.splits), "samples_per_shard": job.samples_per_shard}
    if job.image_encoding == "jpeg":
        options["jpeg_quality"] = job.jpeg_quality
    if job.image_encoding == "tiles":
        options["zstd"] = zstd_version()
    _write(plans, job, "cityscapes", LABEL_ENCODING, job.image_encoding, options)


def prepare_cutouts(job: CocoJob | SegmentsJob) -> None:
    """Write the shards of the objects in a download, and a report of what they are."""
    size = job.samples_per_shard
    if isinstance(job, CocoJob):
        plan = plan_cutouts(job.images, job.annotations, rule=job.rule(), samples_per_shard=size)
    else:
        plan = plan_segments(job.images, job.segments, rule=job.rule(), samples_per_shard=size)
    for line in plan.report:
        logger.info("%s", line)
    options = {**asdict(job.rule()), "samples_per_shard": size}
    report = {REPORT_NAME: render_report(plan.report, plan.sizes)}
    _write(plan.shards, job, "cutouts", MASK_ENCODING, "jpeg", options, report)


def _write(
    plans: Sequence[ShardPlan],
    job: CityscapesJob | CocoJob | SegmentsJob,
    kind: str,
    label_encoding: str,
    image_encoding: str,
    options: dict[str, Any],
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write all shards, or this task's share; `texts` (file name -> content) come with the manifest."""
    began = time.monotonic()
    options = {**options, "opencv": cv2.__version__}  # whose encoders decide the bytes
    draft = Manifest(MANIFEST_VERSION, kind, label_encoding, image_encoding, 0, options, ())
    finish = partial(_finish, draft, texts or {})
    workers = job.workers or _default_workers(plans)
    if job.task or job.resume:
        if _may_be_complete(job) and _is_made_like(draft, read_manifest(job.out)):
            logger.info("%s: is complete already", job.out)
            return
        task = parse_task(job.task) if job.task else Task(0, 1)
        identity = {**options, "kind": kind, "image_encoding": image_encoding}
        result = write_part(
            plans, job.out, task, options=identity, finish=finish, workers=workers, description=kind
        )
        if not isinstance(result, Manifest):
            others = f"{len(result)} shards of other tasks are missing yet" if result else "all are complete"
            logger.info("%s: task %s has written its share; %s", job.out, task, others)
            return
        manifest = result
    else:
        with staged_folder(job.out) as folder:
            manifest = finish(write_shards(plans, folder, workers=workers, description=kind), folder)
    megabytes, seconds = sum(entry.num_bytes for entry in manifest.shards) / 1e6, time.monotonic() - began
    counts = (manifest.num_samples, len(manifest.shards), megabytes, seconds)
    logger.info("%s: %d samples in %d shards, %.1f MB, %.1f s", job.out, *counts)


def _finish(
    draft: Manifest, texts: Mapping[str, str], shards: tuple[ShardEntry, ...], folder: Path
) -> Manifest:
    manifest = replace(draft, num_samples=sum(entry.num_samples for entry in shards), shards=shards)
    write_manifest(manifest, folder)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return manifest


def _is_made_like(draft: Manifest, manifest: Manifest) -> bool:
    """Compare what two folders are made with; JSON knows no tuples."""
    same = json.loads(json.dumps(draft.options)) == manifest.options
    return same and (draft.kind, draft.image_encoding) == (manifest.kind, manifest.image_encoding)


def _may_be_complete(job: CityscapesJob | CocoJob | SegmentsJob) -> bool:
    """Say whether this is a task that starts again, after another one has completed the folder."""
    return bool(job.task or job.resume) and (job.out / MANIFEST_NAME).is_file()


def _default_workers(plans: Sequence[ShardPlan]) -> int:
    """Return one worker per processor, but not more than have work for longer than their start takes."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(processors, 1 + sum(plan.num_samples for plan in plans) // SAMPLES_PER_WORKER)


def _check_counts(samples_per_shard: int, workers: int) -> None:
    if samples_per_shard < 1:
        raise InputError(f"samples_per_shard: is {samples_per_shard}; 1 or more is needed")
    if workers < 0:
        raise InputError(f"workers: is {workers}; 0 or more is needed")


if __name__ == "__main__":
    run_program(main)
