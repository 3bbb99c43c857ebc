"""Say what a file or folder is, and what is wrong with it, before a GPU is asked for.

python -m jobs.doctor checkpoint PATH
python -m jobs.doctor shards FOLDER
python -m jobs.doctor dataset FOLDER
python -m jobs.doctor submission PACKAGE --datasets FOLDER
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from shards.program import run_program
from shards.settings import parse_options


@dataclass(frozen=True, kw_only=True)
class CheckpointQuestion:
    """Kind of a checkpoint, what of it would load, and whether its numbers are sane."""

    path: tyro.conf.Positional[Path]
    """A run or checkpoint folder of this suite, a file of tue-mps/eomt, a Hugging Face folder, a DINOv2 or
    DINOv3 or timm backbone file, or an ERFNet file."""
    base: str = ""
    """DINOv3's own file, where PATH holds differences to it."""


@dataclass(frozen=True, kw_only=True)
class ShardsQuestion:
    """Content of shards, whether every byte is as their manifest says, and whether every member decodes."""

    path: tyro.conf.Positional[str]
    """Folder written by `jobs.prepare`, a tar file, or a pattern of tar files."""
    workers: int = 0
    """Threads; 0 takes one per processor."""


@dataclass(frozen=True, kw_only=True)
class DatasetQuestion:
    """Content of official downloads (Cityscapes, COCO, the anomaly sets), beside what is known of them."""

    path: tyro.conf.Positional[Path]
    """Folder with `leftImg8bit` and `gtFine` (or their zip files), `annotations` and `train2017`, or the
    folders of the anomaly sets."""
    limit: int = 0
    """Pictures decoded of each part; 0: all. Names are compared for all."""
    strict: bool = False
    """A difference from the known counts is an error, too."""


@dataclass(frozen=True, kw_only=True)
class SubmissionQuestion:
    """Format of a package for SMIYC, Fishyscapes or BRAVO, and the way up of its scores."""

    path: tyro.conf.Positional[Path]
    """Folder of the package, or a zip or tar of what is in it."""
    datasets: Path | None = None
    """Folder with the benchmark's images, to compare names and sizes, and published labels to tell which way
    up the scores are."""
    parts: tuple[str, ...] = ()
    """Parts of the benchmark that it should hold, such as AnomalyTrack-all; by default those in it."""


Question = (
    Annotated[CheckpointQuestion, tyro.conf.subcommand("checkpoint")]
    | Annotated[ShardsQuestion, tyro.conf.subcommand("shards")]
    | Annotated[DatasetQuestion, tyro.conf.subcommand("dataset")]
    | Annotated[SubmissionQuestion, tyro.conf.subcommand("submission")]
)


def main(arguments: Sequence[str]) -> None:
    """Answer one question from the command line; problems are a user's mistake (exit code 2)."""
    question: Any = parse_options(Question, arguments, program="jobs.doctor")
    if isinstance(question, ShardsQuestion):
        from shards.examine import report_shards

        report_shards(question.path, question.workers)
    elif isinstance(question, DatasetQuestion):
        from eval.sets.examine import report_dataset

        report_dataset(question.path, question.limit, strict=question.strict)
    elif isinstance(question, SubmissionQuestion):
        from eval.submissions.export import report_package

        report_package(question.path, question.datasets, question.parts)
    else:
        from jobs.work.doctor import report_checkpoint

        report_checkpoint(question.path, question.base)


if __name__ == "__main__":
    run_program(main)
