"""Kinds of weight files: how each is recognised by looking, and its names translated to ours.

What stands before the names (`module.`, `model.`, Lightning's `network.`) is found by the names themselves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
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
from models.weights.files import (
    INDEX_SUFFIX,
    WEIGHT_SUFFIXES,
    read_metadata,
    read_weight_file,
    render_shape,
    some,
)
from models.weights.huggingface import from_huggingface, read_huggingface_config, without_unit_scales
from shards.errors import InputError
from shards.files import from_json

WEIGHTS_NAME = "model.safetensors"
AVERAGE_NAME = "ema.safetensors"
"""In a checkpoint folder: averages of those weights that train, which stand for them."""
INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing put before or into a name."""
SHARD_PATTERN = re.compile(r"-\d{5}-of-\d{5}\.")
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
    "eomt-anomaly": Kind("EoMT of this suite", ("queries.weight", "backbone.")),
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
    found = _without_infixes(read_weight_file(file), file)
    kind, prefix = _recognise(found, file)
    weights = {n.removeprefix(prefix): value for n, value in found.items() if n.startswith(prefix)}
    outside = [name for name in found if not name.startswith(prefix)]
    notes = [f"left aside, as it is not below {prefix}: {some(outside)}"] if outside else []
    if not KINDS[kind].is_eomt:
        return Checkpoint(file, kind, weights, None, tuple(notes))
    if averages := _read_averages(path, weights):
        notes.append(f"weights averaged over training, from {AVERAGE_NAME}")
    return _read_eomt(file, kind, weights | averages, notes)


def _read_eomt(file: Path, kind: str, weights: dict[str, Tensor], notes: list[str]) -> Checkpoint:
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
    if lora is not None:
        notes.append(f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}, merged")
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
    for name in (WEIGHTS_NAME, "pytorch_model.bin"):
        for file in (path / name, path / f"{name}{INDEX_SUFFIX}"):
            if file.is_file():
                return file
    files = sorted(p for p in path.iterdir() if p.is_file())
    found = [file for file in files if file.suffix in WEIGHT_SUFFIXES]
    if not found:
        names = f"; it holds {some([file.name for file in files])}" if files else ""
        lacking = f"the folder holds no weight file ({', '.join(WEIGHT_SUFFIXES)}){names}"
        raise InputError(f"weights {path}: {lacking}")
    if len(found) > 1:
        if all(SHARD_PATTERN.search(file.name) for file in found):
            raise InputError(
                f"weights {path}: {len(found)} parts of one model without their {INDEX_SUFFIX[1:]}"
            )
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
    fields = {
        "size": find_size(width, count_blocks(weights, "backbone.blocks"), str(where)),
        "image_size": (grid * patch_size, grid * patch_size),
        "patch_size": patch_size,
        "num_queries": num_queries,
        "num_blocks": num_blocks,
        "num_classes": weights[head].shape[0] - 1,
        "class_head": "isomax" if isomax else "linear",
    }
    return from_json(ModelConfig, fields, str(where)).completed()


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


def _without_infixes(weights: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    for name, value in weights.items():
        bare = name
        for infix in INFIXES:
            bare = bare.replace(infix, "")
        if bare in plain:
            raise InputError(f"{where}: holds {bare} twice, with and without what a wrapper adds to names")
        plain[bare] = value
    return plain


def _recognise(weights: Mapping[str, Tensor], where: Path) -> tuple[str, str]:
    """Return the kind, and what stands before the names of all its weights."""
    for kind, row in KINDS.items():
        prefixes = sorted(set.intersection(*(_find_before(mark, weights) for mark in row.marks)))
        if len(prefixes) > 1:
            places = ", ".join(prefix or "no prefix" for prefix in prefixes)
            raise InputError(
                f"{where}: holds an {row.title} {len(prefixes)} times: {places}; keep one of them"
            )
        if prefixes:
            if kind == "upstream" and not _find_before("encoder.backbone.blocks.0.attn.", weights):
                other = "an EoMT over DINOv3, published as differences to DINOv3's weights"
                raise InputError(f"{where}: {other}; only EoMT over DINOv2 is supported")
            return kind, prefixes[0]
    known = ", ".join(row.title for row in KINDS.values())
    unknown = f"weights of no known kind, with names {some(list(weights))}; known kinds: {known}"
    raise InputError(f"{where}: {unknown}; --model_file measures any other network (docs/own-models.md)")


def _find_before(mark: str, names: Iterable[str]) -> set[str]:
    """Return what stands before `mark` in names where it begins at a dot; see `Kind.marks`."""
    dotted = [(f".{name}", f".{mark}") for name in names]
    if mark.endswith("."):
        found = {name.partition(m)[0] for name, m in dotted if m in name}
    else:
        found = {name.removesuffix(m) for name, m in dotted if name.endswith(m)}
    return {f"{prefix}.".lstrip(".") for prefix in found}


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
