"""What a weight file is and whether its numbers are sane: the facts behind `jobs.doctor checkpoint`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.backbone import build_backbone, find_backbone_size, load_backbone_weights
from models.eomt import EoMT
from models.erfnet import erfnet_for, with_batch_counters
from models.weights.checkpoint import open_checkpoint
from models.weights.files import LoadReport, compare_weights, find_all_zero, find_not_finite, list_parts
from models.weights.formats import Checkpoint
from shards.errors import InputError
from shards.files import hash_file


@dataclass(frozen=True)
class PartStatistics:
    """The numbers of one part of a model, such as `class_head`."""

    part: str
    num_tensors: int
    num_parameters: int
    mean: float
    std: float
    largest: float
    """Largest absolute value."""


@dataclass(frozen=True)
class Diagnosis:
    """Everything that can be said of a weight file without running it."""

    checkpoint: Checkpoint
    files: tuple[tuple[Path, int, str], ...]
    """Path, size in bytes and SHA-256 of each file of weights."""
    dtypes: tuple[str, ...]
    parts: tuple[PartStatistics, ...]
    report: LoadReport
    """What loading it would do."""
    not_finite: tuple[str, ...]
    """Tensors with a NaN or an infinite value."""
    all_zero: tuple[str, ...]
    """Matrices and convolutions (two or more dimensions) without a value other than 0."""

    @property
    def problems(self) -> list[str]:
        """What stands against using it."""
        told = [] if self.report.fits else [f"does not fit the model: {self.report.explain()}"]
        if self.not_finite:
            told.append(f"NaN or infinite values in {', '.join(self.not_finite)}")
        if self.all_zero:
            told.append(f"only zeros in {', '.join(self.all_zero)}")
        return told


def diagnose(path: Path) -> Diagnosis:
    """Read a checkpoint of any kind, compare it with the model it says it is, and look at its numbers.

    Raises:
        InputError: nothing is there, or it is no weight file of a known kind.
    """
    checkpoint = open_checkpoint(path)
    weights = checkpoint.weights
    return Diagnosis(
        checkpoint=checkpoint,
        files=tuple((f, f.stat().st_size, hash_file(f)) for f in list_parts(checkpoint.path)),
        dtypes=tuple(sorted({str(value.dtype).removeprefix("torch.") for value in weights.values()})),
        parts=tuple(measure_parts(weights)),
        report=try_loading(checkpoint),
        not_finite=tuple(find_not_finite(weights)),
        all_zero=tuple(find_all_zero(weights)),
    )


def try_loading(checkpoint: Checkpoint) -> LoadReport:
    """Say what loading would do, into the model that the weights say they are.

    Raises:
        InputError: a backbone of no known size.
    """
    if checkpoint.kind == "backbone":
        return _try_backbone(checkpoint)
    if checkpoint.kind == "erfnet":
        return _try_erfnet(checkpoint)
    assert checkpoint.config is not None
    with torch.device("meta"):  # names and shapes are all that is needed
        model = EoMT(checkpoint.config)
    return compare_weights(model, checkpoint.weights)


def measure_parts(weights: Mapping[str, Tensor]) -> list[PartStatistics]:
    """Gather the numbers of each part: what stands before the first dot; of a backbone, each block."""
    parts: dict[str, list[Tensor]] = {}
    for name, value in weights.items():
        parts.setdefault(_part(name), []).append(value)
    return [_measure(part, values) for part, values in parts.items()]


def _try_backbone(checkpoint: Checkpoint) -> LoadReport:
    weights, where = checkpoint.weights, str(checkpoint.path)
    patch_size = weights["patch_embed.proj.weight"].shape[-1]
    size = find_backbone_size(weights, where)
    backbone = build_backbone(size, (4 * patch_size, 4 * patch_size), patch_size)
    numbers = {name: value.nan_to_num() for name, value in weights.items()}  # not what is asked here
    try:
        return load_backbone_weights(backbone, numbers, where)
    except InputError:
        return compare_weights(backbone, weights)


def _try_erfnet(checkpoint: Checkpoint) -> LoadReport:
    model = erfnet_for(checkpoint.weights, str(checkpoint.path))
    return compare_weights(model, with_batch_counters(model, checkpoint.weights))


def _part(name: str) -> str:
    words = name.split(".")
    if "blocks" in words[:-1]:
        return ".".join(words[: words.index("blocks") + 2])
    return ".".join(words[:2]) if words[0] == "backbone" else words[0]


def _measure(part: str, values: list[Tensor]) -> PartStatistics:
    numbers = torch.cat([value.detach().flatten().double() for value in values])
    return PartStatistics(
        part=part,
        num_tensors=len(values),
        num_parameters=len(numbers),
        mean=float(numbers.mean()),
        std=float(numbers.std(correction=0)),
        largest=float(numbers.abs().max()),
    )
