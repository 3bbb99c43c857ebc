"""Turn downloads into shards: Cityscapes or own folders into scenes; COCO or segment maps into objects."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from shards.errors import InputError
from shards.files import require_title
from shards.manifest import MANIFEST_NAME
from shards.output import require_free
from shards.prepare.cityscapes import plan_cityscapes
from shards.prepare.coco import plan_cutouts
from shards.prepare.folders import plan_folders, read_classes
from shards.prepare.objects import ObjectFilter
from shards.prepare.plan import FolderPlan
from shards.prepare.scenes import SceneEncoding, Split
from shards.prepare.segments import SegmentFilter, plan_segments
from shards.prepare.writer import write_folder
from shards.program import run_program
from shards.settings import parse_options, require_least
from slurm.status import parse_task

logger = logging.getLogger(__name__)
Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Sharing of the work; the shards do not depend on it."""

    workers: int = 0
    """Threads; 0 takes one per processor."""
    task: str = ""
    """`I/N`: this is task I (from 0) of N, on any machines that share the output folder; `slurm`: the place
    in a SLURM array. Each writes its share and the last one completes the folder; one that starts again goes
    on where it stopped."""
    resume: bool = False
    """Keep finished shards of an interrupted run in `.OUT.parts`, and go on with them the next time."""

    def check(self) -> None:
        """Refuse impossible counts and tasks."""
        require_least(self, samples_per_shard=1, workers=0)
        if self.task:
            parse_task(self.task)

    def part(self, kind: type[Part]) -> Part:
        """Return the settings of a base class alone."""
        return kind(**{field.name: getattr(self, field.name) for field in fields(kind)})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class CityscapesJob(SceneEncoding, Sharing):
    """Cityscapes frames and their labels -> shards of scenes."""

    root: Path
    """Folder that holds `leftImg8bit/` and `gtFine/`, or `leftImg8bit_trainvaltest.zip` and
    `gtFine_trainvaltest.zip`, which are read without unpacking."""
    out: Path
    """New or empty folder for the shards and `manifest.json`."""
    splits: tuple[Split, ...] = ("train", "val")
    """Which parts to take."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
        if not self.splits:
            raise InputError("splits: is empty; train, val or test is needed")

    def plan(self) -> FolderPlan:
        """Plan the shards."""
        return plan_cityscapes(self.root, splits=self.splits, **vars(self.part(SceneEncoding)))


@dataclass(frozen=True, kw_only=True)
class FoldersJob(SceneEncoding, Sharing):
    """Pictures, label maps of the same names, and a table of classes -> shards of scenes."""

    images: Path
    """Folder of pictures, at any of four depths. Where all lie in folders train, val and test, these are the
    splits."""
    labels: Path
    """Folder of PNG label maps, laid out as the pictures: numbers of a channel or a palette, or colours."""
    classes: Path
    """YAML file: name, colour and ids of each class, and ids of void and outlier; docs/sample-format.md."""
    out: Path
    """New or empty folder for the shards and `manifest.json`."""
    image_ending: str = ""
    """End of pictures' names that those of labels lack, such as _leftImg8bit.png; empty: their suffix."""
    label_ending: str = ".png"
    """The same of labels, such as _gtFine_labellevel3Ids.png or _L.png; other files are left aside."""
    split: Split = "train"
    """Split of pictures that lie in no folder of such a name."""
    name: str = ""
    """Name of the set in results; empty: that of the folder OUT."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
        require_title(self.name or self.out.absolute().name, "--name")

    def plan(self) -> FolderPlan:
        """Plan the shards."""
        return plan_folders(
            (self.images, self.image_ending),
            (self.labels, self.label_ending),
            read_classes(self.classes),
            self.part(SceneEncoding),
            split=self.split,
            name=self.name or self.out.absolute().name,
        )


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
        self.check()

    def plan(self) -> FolderPlan:
        """Choose the objects and plan the shards."""
        return plan_cutouts(self.images, self.annotations, self.part(ObjectFilter), self.samples_per_shard)


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
        self.check()

    def plan(self) -> FolderPlan:
        """Choose the segments and plan the shards."""
        return plan_segments(self.images, self.segments, self.part(SegmentFilter), self.samples_per_shard)


Job = (
    Annotated[CityscapesJob, tyro.conf.subcommand("cityscapes")]
    | Annotated[CocoJob, tyro.conf.subcommand("coco")]
    | Annotated[SegmentsJob, tyro.conf.subcommand("segments")]
    | Annotated[FoldersJob, tyro.conf.subcommand("folders")]
)


def main(arguments: Sequence[str]) -> None:
    """Prepare one download, as the first argument says: `cityscapes`, `coco`, `segments` or `folders`."""
    job: Job = parse_options(Job, arguments, program="jobs.prepare")
    task = parse_task(job.task) if job.task else (0, 1) if job.resume else None
    if task is None or not (job.out / MANIFEST_NAME).is_file():  # which another task may have completed
        require_free(job.out)
    plan = job.plan()
    for line in plan.report:
        logger.info("%s", line)
    write_folder(plan, job.out, workers=job.workers, task=task)


if __name__ == "__main__":
    run_program(main)
