"""Say what a file or folder is, and what is wrong with it, before a GPU is asked for.

python -m jobs.doctor checkpoint PATH
python -m jobs.doctor shards FOLDER
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from jobs.command_line import parse_options, run_program
from models.checkpoint import explain_report
from models.diagnosis import Diagnosis, diagnose
from models.formats import KIND_NAMES
from shards.errors import InputError
from shards.manifest import find_changed_shards, read_manifest


@dataclass(frozen=True, kw_only=True)
class CheckpointQuestion:
    """What a checkpoint is, what of it would load, and whether its numbers are sane."""

    path: tyro.conf.Positional[Path]
    """A run or checkpoint folder of this suite, a file of tue-mps/eomt, a Hugging Face folder, a DINOv2 or
    timm backbone file, or an ERFNet file."""


@dataclass(frozen=True, kw_only=True)
class ShardsQuestion:
    """What a folder of shards holds, and whether every byte is as its manifest says."""

    path: tyro.conf.Positional[Path]
    """Folder written by `jobs.prepare`."""


Question = (
    Annotated[CheckpointQuestion, tyro.conf.subcommand("checkpoint")]
    | Annotated[ShardsQuestion, tyro.conf.subcommand("shards")]
)


def main(arguments: Sequence[str]) -> None:
    """Answer one question from the command line; problems are a user's mistake (exit code 2)."""
    question: Any = parse_options(Question, arguments, program="jobs.doctor")
    if isinstance(question, ShardsQuestion):
        examine_shards(question.path)
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


def examine_shards(folder: Path) -> None:
    """Print what a folder of shards holds.

    Raises:
        InputError: a shard is missing, or differs from what the manifest says.
    """
    manifest = read_manifest(folder)
    print(f"{folder}\n  kind     {manifest.kind}, images as {manifest.image_encoding}")
    for split in manifest.splits:
        entries = manifest.select(split)
        num_bytes = sum(entry.num_bytes for entry in entries)
        num_samples = sum(entry.num_samples for entry in entries)
        print(f"  {split:<8} {num_samples:,} samples in {len(entries)} shards, {num_bytes / 1e6:,.1f} MB")
    if changed := find_changed_shards(manifest, folder):
        raise InputError(f"{folder}: bytes differ from the manifest's hashes in {', '.join(changed)}")
    print("\n  every shard has the bytes that the manifest says")


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
