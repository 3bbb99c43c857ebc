"""Say what a file or folder is, and what is wrong with it, before a GPU is asked for.

python -m jobs.doctor checkpoint PATH
python -m jobs.doctor shards FOLDER
python -m jobs.doctor dataset FOLDER
python -m jobs.doctor submission PACKAGE --datasets FOLDER
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from eval.sets.examine import report_dataset
from eval.submissions.export import report_package
from models.weights.checkpoint import explain_report, open_checkpoint, try_loading
from models.weights.files import list_parts
from models.weights.fit import LoadReport, find_all_zero, find_not_finite
from models.weights.formats import Checkpoint
from shards.errors import InputError
from shards.examine import report_shards
from shards.files import hash_file
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
        report_shards(question.path, question.workers)
    elif isinstance(question, DatasetQuestion):
        report_dataset(question.path, question.limit, strict=question.strict)
    elif isinstance(question, SubmissionQuestion):
        report_package(question.path, question.datasets, question.parts)
    else:
        report_checkpoint(question.path, question.base)


def report_checkpoint(path: Path, base: str = "") -> None:
    """Print what a checkpoint of any kind is, beside the model that it says it is; raise what is wrong.

    Numbers are judged of those weights that loading would take.
    """
    checkpoint = open_checkpoint(path, base)
    weights, report = try_loading(checkpoint, str(checkpoint.path))
    print("\n".join(_describe(checkpoint, report)))
    taken = {name: weights[name] for name in report.loaded}
    problems = [] if report.fits else [f"does not fit the model: {report.explain()}"]
    if names := find_not_finite(taken):
        problems.append(f"NaN or infinite values in {', '.join(names)}")
    if names := find_all_zero(taken):
        problems.append(f"only zeros in {', '.join(names)}")
    if problems:
        raise InputError(f"{checkpoint.path}: {'; '.join(problems)}")
    print("\n  no problem found")


def _describe(checkpoint: Checkpoint, report: LoadReport) -> Iterator[str]:
    weights = checkpoint.weights
    yield str(checkpoint.path)
    yield f"  kind     {checkpoint.title}"
    for file in list_parts(checkpoint.path):
        yield f"  file     {file.name}, {file.stat().st_size / 1e6:.1f} MB, sha256 {hash_file(file)}"
    if config := checkpoint.config:
        height, width = config.image_size
        outliers = " and one of outliers" if config.outlier_class == "trained" else ""
        sizes = f"image {height}x{width}, patch {config.patch_size}, {config.num_queries} queries"
        heads = f"{config.num_blocks} joint blocks, {config.num_classes} classes{outliers}"
        yield f"  model    {config.size}, {sizes}, {heads}"
    if trunk := config.trunk if config else checkpoint.trunk:
        yield f"  trunk    {trunk}"
    if checkpoint.origin:
        yield f"  origin   {checkpoint.origin}"
    total = sum(value.numel() for value in weights.values())
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in weights.values()})
    yield f"  weights  {len(weights)} tensors, {total:,} parameters, {', '.join(dtypes)}"
    yield f"  loading  {report}"
    yield from (f"           {line}" for line in explain_report(report))
    yield from (f"  note     {note}" for note in checkpoint.notes)
    yield f"\n  {'part':<24}{'tensors':>8}{'parameters':>14}{'mean':>12}{'std':>12}{'largest':>12}"
    parts: dict[str, list[Tensor]] = {}
    for name, value in weights.items():
        parts.setdefault(_part(name), []).append(value)
    for part, values in parts.items():
        x = torch.cat([value.detach().flatten().double() for value in values])
        statistics = ""
        if len(x):
            statistics = f"{x.mean():>12.3g}{x.std(correction=0):>12.3g}{x.abs().max():>12.3g}"
        yield f"  {part:<24}{len(values):>8}{len(x):>14,}{statistics}"


def _part(name: str) -> str:
    """Return the words before the first dot of a name, of a backbone two; up to the number of a block."""
    words = name.split(".")
    if "blocks" in words[:-1]:
        return ".".join(words[: words.index("blocks") + 2])
    return ".".join(words[:2]) if words[0] == "backbone" else words[0]


if __name__ == "__main__":
    run_program(main)
