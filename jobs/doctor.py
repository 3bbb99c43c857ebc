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

from eval.sets.examine import report_dataset
from eval.submissions.export import report_package
from models.weights.checkpoint import explain_report
from models.weights.diagnosis import Diagnosis, diagnose
from models.weights.formats import KIND_NAMES
from shards.errors import InputError
from shards.examine import report_shards
from shards.settings import parse_options, run_program


@dataclass(frozen=True, kw_only=True)
class CheckpointQuestion:
    """What a checkpoint is, what of it would load, and whether its numbers are sane."""

    path: tyro.conf.Positional[Path]
    """A run or checkpoint folder of this suite, a file of tue-mps/eomt, a Hugging Face folder, a DINOv2 or
    timm backbone file, or an ERFNet file."""


@dataclass(frozen=True, kw_only=True)
class ShardsQuestion:
    """What shards hold, whether every byte is as their manifest says, and whether every member decodes."""

    path: tyro.conf.Positional[str]
    """Folder written by `jobs.prepare`, a tar file, or a pattern of tar files."""
    workers: int = 0
    """Threads; 0 takes one per processor."""


@dataclass(frozen=True, kw_only=True)
class DatasetQuestion:
    """What official downloads hold (Cityscapes, COCO, the anomaly sets), beside what is known of them."""

    path: tyro.conf.Positional[Path]
    """Folder with `leftImg8bit` and `gtFine` (or their zip files), `annotations` and `train2017`, or the
    folders of the anomaly sets."""
    limit: int = 0
    """Decode so many pictures of each part; 0: all. Names are compared for all."""
    strict: bool = False
    """Whether a difference from the known counts is an error, too."""


@dataclass(frozen=True, kw_only=True)
class SubmissionQuestion:
    """Whether a package for SMIYC, Fishyscapes or BRAVO is what the benchmark needs."""

    path: tyro.conf.Positional[Path]
    """Folder of the package, or a zip or tar of what is in it."""
    datasets: Path | None = None
    """Folder with the benchmark's images, to compare names and sizes, and published labels to tell which way
    up the scores are."""
    parts: tuple[str, ...] = ()
    """Of which parts of the benchmark it should be, such as AnomalyTrack-all; by default those in it."""


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
        report_shards(question.path, question.workers)
    elif isinstance(question, DatasetQuestion):
        report_dataset(question.path, question.limit, strict=question.strict)
    elif isinstance(question, SubmissionQuestion):
        report_package(question.path, question.datasets, question.parts)
    else:
        examine_checkpoint(question.path)


def examine_checkpoint(path: Path) -> None:
    """Print what a checkpoint is.

    Raises:
        InputError: it is no checkpoint, or something is wrong with it.
    """
    diagnosis = diagnose(path)
    print(render_diagnosis(diagnosis), end="")
    if diagnosis.problems:
        raise InputError(f"{diagnosis.checkpoint.path}: {'; '.join(diagnosis.problems)}")
    print("\n  no problem found")


def render_diagnosis(diagnosis: Diagnosis) -> str:
    """Render what is known of a checkpoint as lines for a terminal."""
    checkpoint, report = diagnosis.checkpoint, diagnosis.report
    lines = [str(checkpoint.path), f"  kind     {KIND_NAMES[checkpoint.kind]}"]
    for path, num_bytes, digest in diagnosis.files:
        lines.append(f"  file     {path.name}, {num_bytes / 1e6:.1f} MB, sha256 {digest}")
    if config := checkpoint.config:
        height, width = config.image_size
        lines.append(
            f"  model    {config.size}, image {height}x{width}, patch {config.patch_size}, "
            f"{config.num_queries} queries, {config.num_blocks} joint blocks, {config.num_classes} classes"
            + (" and one of outliers" if config.outlier_class == "trained" else "")
        )
    total = sum(part.num_parameters for part in diagnosis.parts)
    tensors = sum(part.num_tensors for part in diagnosis.parts)
    lines.append(f"  weights  {tensors} tensors, {total:,} parameters, {', '.join(diagnosis.dtypes)}")
    lines.append(f"  loading  {report}")
    lines += [f"           {line}" for line in explain_report(report)]
    lines += [f"  note     {note}" for note in checkpoint.notes]
    lines.append(f"\n  {'part':<24}{'tensors':>8}{'parameters':>14}{'mean':>12}{'std':>12}{'largest':>12}")
    for part in diagnosis.parts:
        lines.append(
            f"  {part.part:<24}{part.num_tensors:>8}{part.num_parameters:>14,}"
            f"{part.mean:>12.3g}{part.std:>12.3g}{part.largest:>12.3g}"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_program(main)
