"""Checkpoints of any kind in `kinds.py`: weights in our names, and the model that they are of."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from timm.layers import resample_abs_pos_embed
from torch import Tensor

from models.adapt import merge_weights
from models.adaptation import LoraSettings
from models.backbone import read_trunk, trunk_weights
from models.config import DESCRIPTION_NAME, METADATA_KEY, ModelConfig, parse_description, read_description
from models.trunk import SIZES, Trunk
from models.weights.files import (
    INDEX_SUFFIX,
    WEIGHT_SUFFIXES,
    hash_weights,
    read_metadata,
    read_weight_file,
    render_shape,
    some,
)
from models.weights.fit import Shapes
from models.weights.huggingface import read_huggingface_config, without_unit_scales
from models.weights.kinds import KINDS, add_difference, holds_differences, recognise, without_infixes
from shards.errors import InputError
from shards.files import from_json, read_json

WEIGHTS_NAME = "model.safetensors"
AVERAGE_NAME = "ema.safetensors"
"""In a checkpoint folder: averages of those weights that train, which stand for them."""
SHARD_PATTERN = re.compile(r"-\d{5}-of-\d{5}\.")
DEFAULT_GRID = 64
"""Rows and columns of patches that are taken where no weight says how many, as of 1024 x 1024 pixels."""
DINOV3_LICENCE = "DINOv3 License, https://ai.meta.com/resources/models-and-libraries/dinov3-license/"
NO_WEIGHTS = ("attn_mask_probs", "criterion.empty_weight", "encoder.pixel_mean", "encoder.pixel_std")
"""Buffers of the other implementations that are settings, not weights."""


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
    trunk: Trunk | None = None
    """Architecture of a backbone."""
    notes: tuple[str, ...] = ()
    """Assumptions and what was left aside, for the reader."""

    @property
    def title(self) -> str:
        """Name of the kind, for messages."""
        return KINDS[self.kind].title

    @property
    def origin(self) -> str:
        """Name, hash and licence of the weights that trained first, as far as they are known."""
        trunk = self.config.trunk if self.config else self.trunk
        if trunk is None or self.kind == "eomt-anomaly" or (self.config and self.config.origin):
            return self.config.origin if self.config else ""
        is_named = not self.path.name.startswith(("model.", "pytorch_model."))
        name = self.path.name if is_named else self.path.parent.name
        name = name if name.isprintable() else repr(name)
        return f"{name}, sha256 {hash_weights(self.path)}, licence: {_read_licence(self.path, trunk)}"


def read_checkpoint(path: Path, base: str = "") -> Checkpoint:
    """Read a weight file of any kind in `KINDS`, or a folder that holds one (not a run folder).

    `base` is the backbone that a file of tue-mps/eomt over DINOv3 holds differences to.
    """
    file = find_weight_file(path)
    found = without_infixes(read_weight_file(file), file)
    kind, prefix = recognise(found, file)
    weights = {n.removeprefix(prefix): value for n, value in found.items() if n.startswith(prefix)}
    outside = [name for name in found if not name.startswith(prefix)]
    notes = [f"left aside, as it is not below {prefix}: {some(outside)}"] if outside else []
    if not KINDS[kind].is_eomt:
        return _read_backbone(file, kind, weights, notes, base)
    if averages := _read_averages(path, weights):
        notes.append(f"weights averaged over training, from {AVERAGE_NAME}")
    return _read_eomt(file, kind, weights | averages, notes, base)


def _read_backbone(
    file: Path, kind: str, weights: dict[str, Tensor], notes: list[str], base: str
) -> Checkpoint:
    if base:
        raise InputError(f"model.base {base}: {file} is a {KINDS[kind].title}; {BASE_RULE}")
    if kind == "erfnet":
        return Checkpoint(file, kind, weights, None, None, tuple(notes))
    ours = KINDS[kind].translate(weights)
    num_heads = _read_beside(file).get("num_attention_heads") if kind == "transformers" else 0
    trunk = read_trunk(ours, str(file), num_heads if isinstance(num_heads, int) else 0)
    return Checkpoint(file, kind, ours, None, trunk, tuple(notes))


def _read_eomt(file: Path, kind: str, weights: dict[str, Tensor], notes: list[str], base: str) -> Checkpoint:
    settings = {name: value for name, value in weights.items() if name in NO_WEIGHTS}
    weights = KINDS[kind].translate({n: v for n, v in weights.items() if n not in settings})
    weights = _add_base(file, kind, weights, settings, base, notes)
    mask_probs = settings.get("attn_mask_probs")
    if mask_probs is not None and mask_probs.ndim != 1:
        raise InputError(f"{file}: attn_mask_probs has {mask_probs.ndim} dimensions; one is needed")
    num_blocks = 0 if mask_probs is None else len(mask_probs)
    if kind != "eomt-anomaly" and _is_tiny(weights):
        weights = without_unit_scales(weights)
    described, lora = read_settings(file, kind, weights)
    if lora is not None:
        weights = merge_weights(weights, lora, str(file))
    elif any(".lora_" in name for name in weights):
        raise InputError(f"{file}: LoRA adapters without the {DESCRIPTION_NAME} that says their strength")
    config = described or _read_config_off(weights, file, num_blocks=num_blocks)
    if config.num_blocks > (depth := config.trunk.depth):
        raise InputError(f"{file}: {config.num_blocks} joint blocks; size {config.size} has {depth} blocks")
    if described is None and config.trunk.rotary:
        height, width = config.image_size
        notes.append(f"the image size is in no weight: {height}x{width}; any other is seen as it is")
    if lora is not None:
        notes.append(f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}, merged")
    if described is None and not num_blocks:
        notes.append(f"joint blocks are not in the file: {config.num_blocks}, as the size has by default")
    if mask_probs is not None and bool((mask_probs > 0).any()):
        notes.append("its training was to keep masked attention; here inference never masks")
    if settings:
        notes.append(f"settings of the other implementation, no weights: {', '.join(sorted(settings))}")
    return Checkpoint(file, kind, weights, config, None, tuple(notes))


BASE_RULE = "only files of tue-mps/eomt over DINOv3 hold differences to a base; leave it out"


def _add_base(
    file: Path,
    kind: str,
    weights: dict[str, Tensor],
    settings: Mapping[str, Tensor],
    base: str,
    notes: list[str],
) -> dict[str, Tensor]:
    """Add a file's differences to the backbone that they are from, if it holds differences."""
    trunk = trunk_weights(weights)
    is_difference = kind == "upstream" and holds_differences(trunk, settings)
    if is_difference and not base:
        remedy = (
            "jobs.finetune takes DINOv3's own file of that size as --model.base FILE, jobs.doctor and "
            "jobs.export as --base FILE; what jobs.export --to safetensors writes is whole for all programs"
        )
        raise InputError(f"{file}: holds differences to DINOv3's weights, no whole EoMT; {remedy}")
    if not base:
        return weights
    if not is_difference:
        raise InputError(f"model.base {base}: {file} holds whole weights, no differences; {BASE_RULE}")
    start = read_checkpoint(Path(base))
    if start.trunk is None:
        raise InputError(f"model.base {base}: {start.title}; DINOv3's own file is needed")
    notes.append(f"differences, added to {start.path}, sha256 {hash_weights(start.path)}")
    whole = add_difference(trunk, start.weights, str(file), base)
    return weights | {f"backbone.{name}": value for name, value in whole.items()}


def fit_positions(
    weights: dict[str, Tensor], saved: ModelConfig, wanted: ModelConfig
) -> tuple[dict[str, Tensor], dict[str, Shapes]]:
    """Resample the position embedding as timm does, bicubic with antialiasing, if the image sizes differ."""
    name = "backbone.pos_embed"
    if saved.image_size == wanted.image_size or name not in weights:
        return weights, {}
    fitted = resample_abs_pos_embed(weights[name], [*wanted.grid], [*saved.grid], num_prefix_tokens=0)
    return {**weights, name: fitted}, {name: (tuple(weights[name].shape), tuple(fitted.shape))}


def _is_tiny(weights: Mapping[str, Tensor]) -> bool:
    """Say whether these are of a backbone of 1.3 M parameters, which has no LayerScale."""
    final = weights.get("backbone.norm.weight")
    return final is not None and tuple(final.shape) == (SIZES["tiny"].width,)


def _read_beside(file: Path) -> dict[str, Any]:
    """Return what stands in a `config.json` beside a weight file, as transformers and timm write it."""
    try:
        return read_json(dict[str, Any], file.parent / "config.json")
    except InputError:  # none, or another program's
        return {}


def _read_licence(file: Path, trunk: Trunk | None) -> str:
    """Return the licence that stands beside weights, or that of all files of their kind."""
    settings = _read_beside(file)
    pretrained = settings.get("pretrained_cfg")
    for beside in (settings, pretrained if isinstance(pretrained, dict) else {}):
        if isinstance(name := beside.get("license"), str) and name.isprintable():
            return name
    return DINOV3_LICENCE if trunk and trunk.rotary else "as its publisher says (DINOv2: Apache-2.0)"


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
    needed = {"queries.weight": 2, head: 2, "backbone.patch_embed.proj.weight": 4}
    rotary = "backbone.blocks.0.attn.q_bias" in weights
    needed |= {} if rotary else {"backbone.pos_embed": 3}
    if missing := [name for name in needed if name not in weights]:
        raise InputError(f"{where}: an EoMT without {', '.join(missing)}; its sizes cannot be read")
    for name, dimensions in needed.items():
        if weights[name].ndim != dimensions or not weights[name].numel():
            shape = render_shape(weights[name].shape)
            raise InputError(f"{where}: {name} is {shape}; {dimensions} dimensions are needed")
    patch_size = weights["backbone.patch_embed.proj.weight"].shape[-1]
    positions = DEFAULT_GRID**2 if rotary else weights["backbone.pos_embed"].shape[1]
    grid = math.isqrt(positions)
    if grid * grid != positions:
        raise InputError(f"{where}: {positions} positions are no square grid; the image size cannot be read")
    fields = {
        "trunk": asdict(read_trunk(trunk_weights(weights), str(where))),
        "image_size": (grid * patch_size, grid * patch_size),
        "patch_size": patch_size,
        "num_queries": weights["queries.weight"].shape[0],
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


def read_settings(
    file: Path, kind: str = "eomt-anomaly", weights: Mapping[str, Tensor] | None = None
) -> tuple[ModelConfig | None, LoraSettings | None]:
    """Read the settings of the model beside its weights, or in their header; None: none are there."""
    if weights is not None and kind == "huggingface" and (file.parent / "config.json").is_file():
        return read_huggingface_config(file.parent / "config.json", weights), None
    if kind == "eomt-anomaly":
        if file.name == WEIGHTS_NAME and (file.parent / DESCRIPTION_NAME).is_file():
            return read_description(file.parent)
        if text := read_metadata(file).get(METADATA_KEY):
            return parse_description(text, str(file))
    return None, None
