"""The report of `jobs.doctor` on a checkpoint of any kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from models.onnx import ONNX_NAME
from models.weights.card import check_card
from models.weights.checkpoint import explain_report, open_checkpoint, try_loading
from models.weights.files import list_parts
from models.weights.fit import LoadReport, find_all_zero, find_not_finite
from models.weights.formats import Checkpoint
from models.weights.hub import localize
from shards.errors import InputError
from shards.files import hash_file


def report_checkpoint(path: Path, base: str = "") -> None:
    """Print what a checkpoint of any kind is, beside the model that it says it is; raise what is wrong.

    Numbers are judged of those weights that loading would take.
    """
    path = localize(path)
    card = check_card(path)
    if card and (graph := path / ONNX_NAME).is_file():
        print(f"{graph}\n  kind     ONNX graph\n  card     {card}\n\n  no problem found")
        return
    checkpoint = open_checkpoint(path, base)
    weights, report = try_loading(checkpoint, str(checkpoint.path))
    print("\n".join(_describe(checkpoint, report, card)))
    taken = {name: weights[name] for name in report.loaded}
    problems = [] if report.fits else [f"does not fit the model: {report.explain()}"]
    if names := find_not_finite(taken):
        problems.append(f"NaN or infinite values in {', '.join(names)}")
    if names := find_all_zero(taken):
        problems.append(f"only zeros in {', '.join(names)}")
    if problems:
        raise InputError(f"{checkpoint.path}: {'; '.join(problems)}")
    print("\n  no problem found")


def _describe(checkpoint: Checkpoint, report: LoadReport, card: str) -> Iterator[str]:
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
        if config.outlier_head.exists:
            yield f"  outlier head {config.outlier_head}"
        if config.classes:
            yield f"  classes  {', '.join(config.classes)}"
        if config.trained_on:
            yield f"  trained  on {', '.join(config.trained_on)}"
    if trunk := config.trunk if config else checkpoint.trunk:
        yield f"  trunk    {trunk}"
    if checkpoint.origin:
        yield f"  origin   {checkpoint.origin}"
    if card:
        yield f"  card     {card}"
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
