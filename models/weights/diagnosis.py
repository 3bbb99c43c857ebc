"""Report on a weight file: its kind, what would load, and its numbers, part by part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.backbone import build_backbone, find_backbone_size, load_backbone_weights
from models.eomt import EoMT
from models.erfnet import fit_erfnet
from models.weights.checkpoint import explain_report, open_checkpoint
from models.weights.files import LoadReport, compare_weights, find_all_zero, find_not_finite, list_parts
from models.weights.formats import Checkpoint
from shards.errors import InputError
from shards.files import hash_file


def report_checkpoint(path: Path) -> None:
    """Print what a checkpoint of any kind is, beside the model that it says it is; raise what is wrong."""
    checkpoint = open_checkpoint(path)
    report = _try_loading(checkpoint)
    print("\n".join(_describe(checkpoint, report)))
    problems = [] if report.fits else [f"does not fit the model: {report.explain()}"]
    if names := find_not_finite(checkpoint.weights):
        problems.append(f"NaN or infinite values in {', '.join(names)}")
    if names := find_all_zero(checkpoint.weights):
        problems.append(f"only zeros in {', '.join(names)}")
    if problems:
        raise InputError(f"{checkpoint.path}: {'; '.join(problems)}")
    print("\n  no problem found")


def _try_loading(checkpoint: Checkpoint) -> LoadReport:
    """Say what loading would do, into the model that the weights say they are."""
    if checkpoint.kind == "backbone":
        return _try_backbone(checkpoint.weights, str(checkpoint.path))
    if checkpoint.kind == "erfnet":
        return compare_weights(*fit_erfnet(checkpoint.weights, str(checkpoint.path)))
    assert checkpoint.config is not None
    with torch.device("meta"):  # names and shapes are all that is needed
        model = EoMT(checkpoint.config)
    return compare_weights(model, checkpoint.weights)


def _try_backbone(weights: Mapping[str, Tensor], where: str) -> LoadReport:
    patch_size = weights["patch_embed.proj.weight"].shape[-1]
    size = find_backbone_size(weights, where)
    backbone = build_backbone(size, (4 * patch_size, 4 * patch_size), patch_size)
    numbers = {name: value.nan_to_num() for name, value in weights.items()}  # judged elsewhere
    try:
        return load_backbone_weights(backbone, numbers, where)
    except InputError:
        return compare_weights(backbone, weights)


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
        statistics = f"{x.mean():>12.3g}{x.std(correction=0):>12.3g}{x.abs().max():>12.3g}"
        yield f"  {part:<24}{len(values):>8}{len(x):>14,}{statistics}"


def _part(name: str) -> str:
    """Return the words before the first dot of a name, of a backbone two; up to the number of a block."""
    words = name.split(".")
    if "blocks" in words[:-1]:
        return ".".join(words[: words.index("blocks") + 2])
    return ".".join(words[:2]) if words[0] == "backbone" else words[0]
