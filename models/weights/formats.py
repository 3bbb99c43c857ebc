"""Kinds of weight files: how each is recognised by looking, and its names translated to ours.

Prefixes that wrappers leave (`module.`, `_orig_mod.`, Lightning's `network.`) are taken off first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from models.backbone import SIZES, count_blocks, find_size
from models.config import (
    DESCRIPTION_NAME,
    METADATA_KEY,
    LoraSettings,
    ModelConfig,
    parse_description,
    read_description,
)
from models.lora import merge_weights
from models.weights.files import INDEX_SUFFIX, WEIGHT_SUFFIXES, read_metadata, read_weight_file, render_shape
from models.weights.huggingface import from_huggingface, read_huggingface_config, without_unit_scales
from shards.errors import InputError

WEIGHTS_NAME = "model.safetensors"
AVERAGE_NAME = "ema.safetensors"
"""In a checkpoint folder: averages of those weights that train, which stand for them."""
WRAPPERS = ("module.", "_orig_mod.", "network.")
NO_WEIGHTS = ("attn_mask_probs", "criterion.empty_weight", "encoder.pixel_mean", "encoder.pixel_std")
"""Buffers of the other implementations that are settings, not weights."""


class Kind(NamedTuple):
    """One kind of weights."""

    title: str
    marks: tuple[str, ...]
    """Names that all occur in it; one with a dot at its end is the start of a name."""
    is_eomt: bool = True
    translate: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    """Gives the weights our names."""


def from_upstream(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of tue-mps/eomt to ours; names it does not know stay as they are."""
    ours = {}
    for name, value in weights.items():
        bare = name.removeprefix("encoder.") if name.startswith("encoder.backbone.") else name
        ours[f"queries.{bare.removeprefix('q.')}" if bare.startswith("q.") else bare] = value
    return ours


KINDS = {
    "eomt-anomaly": Kind("EoMT of this suite", ("queries.weight",)),
    "upstream": Kind("EoMT of tue-mps/eomt", ("q.weight", "encoder.backbone."), translate=from_upstream),
    "huggingface": Kind(
        "EoMT of Hugging Face transformers",
        ("query.weight", "layers.0.attention."),
        translate=from_huggingface,
    ),
    "backbone": Kind(
        "ViT backbone (DINOv2 or timm)",
        ("blocks.0.attn.qkv.weight", "patch_embed.proj.weight"),
        is_eomt=False,
    ),
    "erfnet": Kind("ERFNet", ("encoder.initial_block.conv.weight",), is_eomt=False),
}


@dataclass(frozen=True)
class Checkpoint:
    """Weights in our names, and what can be said of the model they belong to."""

    path: Path
    """The weight file (or index of weight files) that was read."""
    kind: str
    """Key of `KINDS`."""
    weights: dict[str, Tensor]
    """Plain: adapters are merged."""
    config: ModelConfig | None
    """Complete, from the description or the shapes of the weights; None where the file holds no EoMT."""
    notes: tuple[str, ...] = ()
    """Assumptions and what was left aside, for the reader."""

    @property
    def title(self) -> str:
        """Name of the kind, for messages."""
        return KINDS[self.kind].title


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a weight file of any kind in `KINDS`, or a folder that holds one (not a run folder)."""
    file = find_weight_file(path)
    weights = _unwrap_all(read_weight_file(file), file)
    averages = _read_averages(path, weights)
    weights |= averages
    kind = _recognise(weights, file)
    if KINDS[kind].is_eomt:
        return _read_eomt(file, kind, weights, averaged=bool(averages))
    return Checkpoint(file, kind, weights, None)


def _read_eomt(file: Path, kind: str, weights: dict[str, Tensor], *, averaged: bool) -> Checkpoint:
    settings = {name: value for name, value in weights.items() if name in NO_WEIGHTS}
    weights = KINDS[kind].translate({n: v for n, v in weights.items() if n not in settings})
    mask_probs = settings.get("attn_mask_probs")
    if mask_probs is not None and mask_probs.ndim != 1:
        raise InputError(f"{file}: attn_mask_probs has {mask_probs.ndim} dimensions; one is needed")
    num_blocks = 0 if mask_probs is None else len(mask_probs)
    described, lora = _read_settings(file, kind)
    if lora is not None:
        weights = merge_weights(weights, lora, str(file))
    elif any(".lora_" in name for name in weights):
        raise InputError(f"{file}: LoRA adapters without the {DESCRIPTION_NAME} that says their strength")
    config = described or _read_config_off(weights, file, num_blocks=num_blocks)
    if config.num_blocks > (depth := SIZES[config.size].depth):
        raise InputError(f"{file}: {config.num_blocks} joint blocks; size {config.size} has {depth} blocks")
    if config.size == "tiny":
        weights = without_unit_scales(weights)
    notes = [f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}, merged"] if lora else []
    if averaged:
        notes.append(f"weights averaged over training, from {AVERAGE_NAME}")
    if described is None and not num_blocks:
        notes.append(f"joint blocks are not in the file: {config.num_blocks}, as the size has by default")
    if mask_probs is not None and bool((mask_probs > 0).any()):
        notes.append("its training was to keep masked attention; here inference never masks")
    if settings:
        notes.append(f"settings of the other implementation, no weights: {', '.join(sorted(settings))}")
    return Checkpoint(file, kind, weights, config, tuple(notes))


def find_weight_file(path: Path) -> Path:
    """Return the weight file that `path` is, or the one in it: of a usual name, or the only one."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"weights {path}: no such file or folder")
    for name in (WEIGHTS_NAME, f"model{INDEX_SUFFIX}", "pytorch_model.bin"):
        if (path / name).is_file():
            return path / name
    found = sorted(p for p in path.iterdir() if p.is_file() and p.suffix in WEIGHT_SUFFIXES)
    if not found:
        raise InputError(f"weights {path}: the folder holds no weight file ({', '.join(WEIGHT_SUFFIXES)})")
    if len(found) > 1:
        raise InputError(f"weights {path}: the folder holds {len(found)} weight files; name one of them")
    return found[0]


def _read_config_off(weights: Mapping[str, Tensor], where: Path, *, num_blocks: int = 0) -> ModelConfig:
    """Tell sizes from the shapes of an EoMT's weights (our names).

    The image size is the position grid times the patch size. What the weights do not say is taken to be as in
    published checkpoints: a square grid, an entropic scale of 10, no trained outlier class, and, where
    `num_blocks` is 0, the size's own joint blocks.
    """
    isomax = "class_head.prototypes" in weights
    head = "class_head.prototypes" if isomax else "class_head.weight"
    needed = {"queries.weight": 2, head: 2, "backbone.patch_embed.proj.weight": 4, "backbone.pos_embed": 3}
    if missing := [name for name in needed if name not in weights]:
        raise InputError(f"{where}: an EoMT without {', '.join(missing)}; its sizes cannot be read")
    for name, dimensions in needed.items():
        if weights[name].ndim != dimensions or not weights[name].numel():
            shape = render_shape(weights[name].shape)
            raise InputError(f"{where}: {name} is {shape}; {dimensions} dimensions are needed")
    num_queries, width = weights["queries.weight"].shape
    patch_size = weights["backbone.patch_embed.proj.weight"].shape[-1]
    positions = weights["backbone.pos_embed"].shape[1]
    grid = math.isqrt(positions)
    if grid * grid != positions:
        raise InputError(f"{where}: {positions} positions are no square grid; the image size cannot be read")
    return ModelConfig(
        size=find_size(width, count_blocks(weights, "backbone.blocks"), str(where)),
        image_size=(grid * patch_size, grid * patch_size),
        patch_size=patch_size,
        num_queries=num_queries,
        num_blocks=num_blocks,
        num_classes=weights[head].shape[0] - 1,
        class_head="isomax" if isomax else "linear",
    ).completed()


def _read_averages(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the averages in a checkpoint folder, which replace its latest weights; none for a file."""
    file = path / AVERAGE_NAME
    if not path.is_dir() or not file.is_file():
        return {}
    averages = read_weight_file(file)
    for name, value in averages.items():
        if name not in weights or weights[name].shape != value.shape:
            raise InputError(f"{file}: averages {name}, of which {WEIGHTS_NAME} has none of this shape")
    return averages


def _unwrap_all(weights: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Take off what DistributedDataParallel, torch.compile and Lightning put before or into a name."""
    plain: dict[str, Tensor] = {}
    for name, value in weights.items():
        bare = name.replace("_orig_mod.", "")
        while bare.startswith(WRAPPERS):
            bare = bare.partition(".")[2]
        if bare in plain:
            twice = f"holds {bare} twice, under other prefixes"
            raise InputError(f"{where}: {twice}; which one counts is unknown")
        plain[bare] = value
    return plain


def _recognise(weights: Mapping[str, Tensor], where: Path) -> str:
    def has(mark: str) -> bool:
        return mark in weights or (mark.endswith(".") and any(name.startswith(mark) for name in weights))

    for kind, row in KINDS.items():
        if all(map(has, row.marks)):
            if kind == "upstream" and not has("encoder.backbone.blocks.0.attn."):
                other = "an EoMT over DINOv3, published as differences to DINOv3's weights"
                raise InputError(f"{where}: {other}; only EoMT over DINOv2 is supported")
            return kind
    first, known = ", ".join(list(weights)[:3]), ", ".join(row.title for row in KINDS.values())
    raise InputError(f"{where}: weights of no known kind (first names: {first}); known kinds: {known}")


def _read_settings(file: Path, kind: str) -> tuple[ModelConfig | None, LoraSettings | None]:
    """Read the settings of the model beside its weights, or in their header."""
    if kind == "huggingface" and (file.parent / "config.json").is_file():
        return read_huggingface_config(file.parent / "config.json"), None
    if kind == "eomt-anomaly":
        if file.name == WEIGHTS_NAME and (file.parent / DESCRIPTION_NAME).is_file():
            return read_description(file.parent)
        if text := read_metadata(file).get(METADATA_KEY):
            return parse_description(text, str(file))
    return None, None
