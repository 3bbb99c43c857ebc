"""Which kind of weights a file or folder holds, found out by looking, and their names translated to ours.

| kind | given as | recognised by |
|---|---|---|
| `eomt-anomaly` | checkpoint folder, or one exported `.safetensors` | `queries.weight` |
| `upstream` | tue-mps/eomt `.bin`, Lightning `.ckpt` | `q.weight` beside `encoder.backbone.` |
| `huggingface` | folder of transformers' EoMT, or its file | `query.weight` beside `layers.0.attention` |
| `backbone` | DINOv2 or timm ViT file | `blocks.0.attn.qkv.weight` |
| `erfnet` | ERFNet `.pth` | `encoder.initial_block.conv.weight` |

Prefixes that wrappers leave (`module.`, `_orig_mod.`, Lightning's `network.`) are taken off first.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from models.backbone import SIZES, count_blocks, find_size
from models.eomt import ModelConfig
from models.lora import merge_weights
from models.lora_settings import LoraSettings
from models.weights.description import DESCRIPTION_NAME, METADATA_KEY, parse_description, read_description
from models.weights.files import INDEX_SUFFIX, WEIGHT_SUFFIXES, read_metadata, read_weight_file
from models.weights.huggingface import from_huggingface, without_unit_scales
from shards.errors import InputError

Kind = Literal["eomt-anomaly", "upstream", "huggingface", "backbone", "erfnet"]
KIND_NAMES: dict[Kind, str] = {
    "eomt-anomaly": "EoMT of this suite",
    "upstream": "EoMT of tue-mps/eomt",
    "huggingface": "EoMT of Hugging Face transformers",
    "backbone": "ViT backbone (DINOv2 or timm)",
    "erfnet": "ERFNet",
}
WEIGHTS_NAME = "model.safetensors"
AVERAGE_NAME = "ema.safetensors"
"""In a checkpoint folder: averages of those weights that train, which stand for them."""
WRAPPERS = ("module.", "_orig_mod.", "network.")
NO_WEIGHTS = ("attn_mask_probs", "criterion.empty_weight", "encoder.pixel_mean", "encoder.pixel_std")
"""Buffers of the other implementations that are settings, not weights."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights in our names, and what can be said of the model they belong to."""

    path: Path
    """The weight file (or index of weight files) that was read."""
    kind: Kind
    weights: dict[str, Tensor]
    """Plain: adapters are merged."""
    config: ModelConfig | None
    """Sizes read off the weights or from the description beside them; None where the file holds no EoMT."""
    notes: tuple[str, ...] = ()
    """What was assumed or left aside, for the reader."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a weight file, or a folder that holds one, of any kind in this module's table.

    Args:
        path: a file; a checkpoint folder (`checkpoint.py` resolves run folders); a Hugging Face folder;
            a folder with exactly one weight file.

    Raises:
        InputError: nothing is there, nothing is readable, or it is of no kind we know.
    """
    file = find_weight_file(path)
    weights = _unwrap_all(read_weight_file(file), file)
    averages = _read_averages(path, weights)
    weights |= averages
    kind = _recognise(weights, file)
    if kind in ("backbone", "erfnet"):
        return Checkpoint(file, kind, weights, None)
    settings = {name: value for name, value in weights.items() if name in NO_WEIGHTS}
    weights = _to_our_names({n: v for n, v in weights.items() if n not in settings}, kind)
    mask_probs = settings.get("attn_mask_probs")
    if mask_probs is not None and mask_probs.ndim != 1:
        raise InputError(f"{file}: attn_mask_probs has {mask_probs.ndim} dimensions; one is needed")
    num_blocks = 0 if mask_probs is None else len(mask_probs)
    described, lora = _description(file, kind)
    if lora is not None or any(".lora_" in name for name in weights):
        if lora is None:
            raise InputError(f"{file}: LoRA adapters without the {DESCRIPTION_NAME} that says their strength")
        weights = merge_weights(weights, lora, str(file))
    config = described or read_config_off(weights, file, num_blocks=num_blocks)
    depth = SIZES[config.size].depth
    if config.num_blocks > depth:
        raise InputError(f"{file}: {config.num_blocks} joint blocks; size {config.size} has {depth} blocks")
    if config.size == "tiny":
        weights = without_unit_scales(weights)
    notes = [f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}, merged"] if lora else []
    if averages:
        notes.append(f"weights averaged over training, from {AVERAGE_NAME}")
    if described is None and not num_blocks:
        notes.append(f"joint blocks are not in the file: {config.num_blocks}, as the size has by default")
    if mask_probs is not None and bool((mask_probs > 0).any()):
        notes.append("its training was to keep masked attention; here inference never masks")
    if settings:
        notes.append(f"settings of the other implementation, no weights: {', '.join(sorted(settings))}")
    return Checkpoint(file, kind, weights, config, tuple(notes))


def _read_averages(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a checkpoint folder has in place of its latest weights; a file stands for itself."""
    file = path / AVERAGE_NAME
    if not path.is_dir() or not file.is_file():
        return {}
    averages = read_weight_file(file)
    for name, value in averages.items():
        if name not in weights or weights[name].shape != value.shape:
            raise InputError(f"{file}: averages {name}, of which {WEIGHTS_NAME} has none of this shape")
    return averages


def find_weight_file(path: Path) -> Path:
    """Return the weight file that `path` is, or the one that stands in the folder `path`.

    Raises:
        InputError: there is none, or there are several without one of the usual names.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"weights {path}: no such file or folder")
    for name in (WEIGHTS_NAME, f"model{INDEX_SUFFIX}", "pytorch_model.bin"):
        if (path / name).is_file():
            return path / name
    found = sorted(p for p in path.iterdir() if p.is_file() and p.suffix in WEIGHT_SUFFIXES)
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"weights {path}: the folder holds no weight file ({', '.join(WEIGHT_SUFFIXES)})")
    raise InputError(f"weights {path}: the folder holds {len(found)} weight files; name one of them")


def read_config_off(weights: Mapping[str, Tensor], where: Path, *, num_blocks: int = 0) -> ModelConfig:
    """Tell sizes from the shapes of an EoMT's weights (our names).

    The image size is the position grid times the patch size; the grid is taken to be square, as in every
    published checkpoint, because the weights do not say; nor do they say an entropic scale, which is taken to
    be the published 10; nor whether one of the classes is a trained outlier class, which is taken not to be.

    Args:
        num_blocks: joint blocks, which no shape tells; 0 takes the size's own.

    Raises:
        InputError: a weight that tells a size is missing, or no known size has these shapes.
    """
    isomax = "class_head.prototypes" in weights
    head = "class_head.prototypes" if isomax else "class_head.weight"
    needed = ("queries.weight", head, "backbone.patch_embed.proj.weight", "backbone.pos_embed")
    missing = [name for name in needed if name not in weights]
    if missing:
        raise InputError(f"{where}: an EoMT without {', '.join(missing)}; its sizes cannot be read")
    for name, dimensions in zip(needed, (2, 2, 4, 3), strict=True):
        if weights[name].ndim != dimensions or not weights[name].numel():
            shape = "x".join(map(str, weights[name].shape)) or "scalar"
            raise InputError(f"{where}: {name} is {shape}; {dimensions} dimensions are needed")
    num_queries, width = weights["queries.weight"].shape
    depth = count_blocks(weights, "backbone.blocks")
    patch_size = weights["backbone.patch_embed.proj.weight"].shape[-1]
    positions = weights["backbone.pos_embed"].shape[1]
    grid = math.isqrt(positions)
    if grid * grid != positions:
        raise InputError(f"{where}: {positions} positions are no square grid; the image size cannot be read")
    return ModelConfig(
        size=find_size(width, depth, str(where)),
        image_size=(grid * patch_size, grid * patch_size),
        patch_size=patch_size,
        num_queries=num_queries,
        num_blocks=num_blocks,
        num_classes=weights[head].shape[0] - 1,
        class_head="isomax" if isomax else "linear",
    ).completed()


def _unwrap_all(weights: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    for name, value in weights.items():
        if (bare := _unwrap(name)) in plain:
            raise InputError(
                f"{where}: holds {bare} twice, under other prefixes; which one counts is unknown"
            )
        plain[bare] = value
    return plain


def _unwrap(name: str) -> str:
    """Take off what DistributedDataParallel, torch.compile and Lightning put before or into a name."""
    name = name.replace("_orig_mod.", "")
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def _recognise(weights: Mapping[str, Tensor], where: Path) -> Kind:
    names = weights.keys()
    if "q.weight" in names and any(name.startswith("encoder.backbone.") for name in names):
        if not any(name.startswith("encoder.backbone.blocks.0.attn.") for name in names):
            raise InputError(
                f"{where}: an EoMT over DINOv3, published as differences to DINOv3's weights; "
                f"only EoMT over DINOv2 is supported"
            )
        return "upstream"
    if "queries.weight" in names:
        return "eomt-anomaly"
    if "query.weight" in names and any(name.startswith("layers.0.attention.") for name in names):
        return "huggingface"
    if "encoder.initial_block.conv.weight" in names:
        return "erfnet"
    if "blocks.0.attn.qkv.weight" in names and "patch_embed.proj.weight" in names:
        return "backbone"
    raise InputError(
        f"{where}: weights of no known kind (first names: {', '.join(list(names)[:3])}); known kinds: "
        f"{', '.join(KIND_NAMES.values())}"
    )


def _description(file: Path, kind: Kind) -> tuple[ModelConfig | None, LoraSettings | None]:
    """Read what stands beside the weights, or in their header, about the model."""
    if kind == "huggingface" and (file.parent / "config.json").is_file():
        return _read_huggingface_config(file.parent / "config.json"), None
    if kind == "eomt-anomaly":
        beside = file.parent / DESCRIPTION_NAME
        if file.name == WEIGHTS_NAME and beside.is_file():
            return read_description(file.parent)
        if text := read_metadata(file).get(METADATA_KEY):
            return parse_description(text, str(file))
    return None, None


def _read_huggingface_config(path: Path) -> ModelConfig:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        model_type = fields["model_type"]
        if model_type != "eomt":
            raise InputError(f"{path}: model_type {model_type!r} is not supported; eomt is")
        size = find_size(int(fields["hidden_size"]), int(fields["num_hidden_layers"]), str(path))
        sides = fields["image_size"]
        height, width = sides if isinstance(sides, list) else (sides, sides)
        numbers = {name: int(fields[name]) for name in ("patch_size", "num_queries", "num_blocks")}
        numbers["num_classes"] = len(fields["id2label"]) if "id2label" in fields else 2  # their own default
        for name, number in {**numbers, "image_size": min(int(height), int(width))}.items():
            if number < 1:
                raise InputError(f"{path}: {name} is {number}; at least 1 is needed")
        return ModelConfig(
            size=size,
            image_size=(int(height), int(width)),
            patch_size=numbers["patch_size"],
            num_queries=numbers["num_queries"],
            num_blocks=numbers["num_blocks"],
            num_classes=numbers["num_classes"],
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a configuration of Hugging Face's EoMT: {error!r}") from None


def _to_our_names(weights: dict[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    if kind == "huggingface":
        return from_huggingface(weights)
    if kind == "upstream":
        return {_from_upstream(name): value for name, value in weights.items()}
    return weights


def _from_upstream(name: str) -> str:
    if name.startswith("encoder.backbone."):
        return name.removeprefix("encoder.")
    return f"queries.{name.removeprefix('q.')}" if name.startswith("q.") else name


def differing_fields(ours: ModelConfig, theirs: ModelConfig) -> dict[str, tuple[object, object]]:
    """Name -> (ours, theirs) of the settings in which two models differ; `weights` is none of a model's."""
    return {
        field.name: (getattr(ours, field.name), getattr(theirs, field.name))
        for field in dataclasses.fields(ModelConfig)
        if field.name != "weights" and getattr(ours, field.name) != getattr(theirs, field.name)
    }
