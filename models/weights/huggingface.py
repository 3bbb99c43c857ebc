"""Weight names and settings of Hugging Face's EoMTs over DINOv2 and DINOv3, to and from ours.

The two hold the same numbers, but query, key and value stand in one matrix with us (timm) and in three
with transformers, and the position embedding has a batch dimension with us.

Source: `transformers/models/{eomt,eomt_dinov3}/modeling_*.py`, transformers 5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.backbone import count_blocks, read_trunk, trunk_weights
from models.config import ModelConfig
from models.eomt import IMAGENET_MEAN, IMAGENET_STD
from shards.errors import InputError
from shards.files import from_json, read_json

OUTSIDE_BLOCKS = {
    "backbone.cls_token": "embeddings.cls_token",
    "backbone.reg_token": "embeddings.register_tokens",
    "backbone.pos_embed": "embeddings.position_embeddings.weight",
    "backbone.patch_embed.proj": "embeddings.patch_embeddings.projection",
    "backbone.norm": "layernorm",
    "queries": "query",
    "class_head": "class_predictor",
    "mask_head.0": "mask_head.fc1",
    "mask_head.2": "mask_head.fc2",
    "mask_head.4": "mask_head.fc3",
}
IN_BLOCK = {
    "norm1": "norm1",
    "attn.qkv": "attention.q_proj attention.k_proj attention.v_proj",
    "attn.proj": "attention.out_proj",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "ls2.gamma": "layer_scale2.lambda1",
}
"""Our name -> theirs; several, row below row, where they split a matrix of ours."""
GATED = {"mlp.fc1": "mlp.gate_proj mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
"""A gated MLP: two matrices in transformers 5, one with us, gate first."""
ROTARY = {
    "attn.q_bias": "attention.q_proj.bias",
    "attn.v_bias": "attention.v_proj.bias",
    "attn.proj": "attention.o_proj",
    "gamma_1": "layer_scale1.lambda1",
    "gamma_2": "layer_scale2.lambda1",
    "mlp.fc1": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
}
"""What is called otherwise over DINOv3."""
SHARED_ACTIVATION = (
    "over DINOv3's gated MLPs transformers' EoMT has another activation in heads and upscaling"
)
ROTARY_PATCHES = "embeddings.patch_embeddings"
IN_UPSCALE = {"conv1": "conv1", "conv2": "conv2", "norm": "layernorm2d"}


def huggingface_config(config: ModelConfig, class_names: Sequence[str]) -> dict[str, Any]:
    """Return what stands in `config.json`, for a completed config, linear class head, names by train id."""
    trunk = config.trunk
    height, width = config.image_size
    kind: dict[str, Any] = {
        "architectures": ["EomtForUniversalSegmentation"],
        "model_type": "eomt",
        "use_swiglu_ffn": trunk.gated,
        "mlp_ratio": trunk.hidden * (3 if trunk.gated else 2) // (2 * trunk.width),
    }
    if trunk.rotary:
        kind = {
            "architectures": ["EomtDinov3ForUniversalSegmentation"],
            "model_type": "eomt_dinov3",
            "intermediate_size": trunk.hidden,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        }
    own = {"classes": config.classes, "trained_on": config.trained_on}
    return kind | {
        **{name: value for name, value in own.items() if value},
        "hidden_size": trunk.width,
        "num_hidden_layers": trunk.depth,
        "num_attention_heads": trunk.num_heads,
        "layer_norm_eps": trunk.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "num_blocks": config.num_blocks,
        "num_queries": config.num_queries,
        "num_register_tokens": trunk.registers,
        "num_upscale_blocks": max(1, config.patch_size.bit_length() - 3),
        "id2label": {str(i): name for i, name in enumerate(class_names)},
        "label2id": {name: i for i, name in enumerate(class_names)},
        "origin": config.origin,
    }


def huggingface_preprocessor(config: ModelConfig) -> dict[str, Any]:
    """Return what stands in `preprocessor_config.json`: sliding windows, as for semantic segmentation."""
    return {
        "image_processor_type": "EomtImageProcessor",
        "do_resize": True,
        "do_split_image": True,
        "do_pad": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "resample": 2,
        "size": {"shortest_edge": config.image_size[0], "longest_edge": None},
        "ignore_index": 255,
    }


def read_huggingface_config(path: Path, weights: Mapping[str, Tensor]) -> ModelConfig:
    """Read the sizes in the `config.json` of transformers' EoMT; its weights, in our names, say the rest."""
    fields = read_json(dict[str, Any], path)
    if (kind := fields.get("model_type")) not in ("eomt", "eomt_dinov3"):
        raise InputError(f"{path}: model_type {kind!r} is not supported; eomt and eomt_dinov3 are")
    trunk_names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    names = (*trunk_names, "patch_size", "num_queries", "num_blocks")
    numbers: dict[str, Any] = from_json(dict[str, int], {name: fields.get(name) for name in names}, str(path))
    side = fields.get("image_size")
    sides = from_json(tuple[int, int], side if isinstance(side, list) else [side] * 2, f"{path}: image_size")
    for name, number in {**numbers, "image_size": min(sides)}.items():
        if number < 1:
            raise InputError(f"{path}: {name} is {number}; at least 1 is needed")
    labels = from_json(dict[str, Any], fields.get("id2label", {"0": "", "1": ""}), f"{path}: id2label")
    width, depth, num_heads = (numbers.pop(name) for name in trunk_names)
    found = read_trunk(trunk_weights(weights), str(path), num_heads)
    if found.rotary and found.gated:
        raise InputError(f"{path}: {SHARED_ACTIVATION}; small, base and large are read")
    if (found.width, found.depth) != (width, depth):
        beside = f"the weights beside it have a width of {found.width} and {found.depth} blocks"
        raise InputError(f"{path}: says a width of {width} and {depth} blocks; {beside}")
    eps = from_json(float, fields.get("layer_norm_eps", found.norm_eps), f"{path}: layer_norm_eps")
    trunk = asdict(replace(found, norm_eps=eps))
    settings = {"trunk": trunk, "image_size": sides, "num_classes": len(labels), **numbers}
    own = {name: fields[name] for name in ("origin", "classes", "trained_on") if name in fields}
    return from_json(ModelConfig, settings | own, str(path)).completed()


def to_huggingface(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of our EoMT (linear class head, no adapter) to those of transformers.

    A backbone without LayerScale gets scales of 1, which transformers always has.
    """
    theirs: dict[str, Tensor] = {}
    depth = count_blocks(weights, "backbone.blocks")
    first, second = (weights[f"backbone.blocks.0.mlp.{layer}.weight"] for layer in ("fc1", "fc2"))
    rotary = "backbone.blocks.0.attn.q_bias" in weights
    names = _name_table(depth, gated=first.shape[0] == 2 * second.shape[1], rotary=rotary)
    for name, value in weights.items():
        whole = value[0] if name == "backbone.pos_embed" else value
        for part, chunk in zip(names[name], whole.chunk(len(names[name])), strict=True):
            theirs[part] = chunk.contiguous()
    width = weights["queries.weight"].shape[1]
    for block in range(depth):
        for scale in ("layer_scale1.lambda1", "layer_scale2.lambda1"):
            theirs.setdefault(f"layers.{block}.{scale}", torch.ones(width))
    return theirs


def from_huggingface(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of transformers' EoMT to ours; names it does not know stay as they are."""
    gated, rotary = "layers.0.mlp.gate_proj.weight" in weights, f"{ROTARY_PATCHES}.weight" in weights
    names = _name_table(count_blocks(weights, "layers"), gated=gated, rotary=rotary)
    complete = {n: parts for n, parts in names.items() if _fit_together([weights.get(p) for p in parts])}
    ours_of = {part: name for name, parts in complete.items() for part in parts}
    ours: dict[str, Tensor] = {}
    for part, value in weights.items():
        name = ours_of.get(part, part)
        parts = complete.get(name, ())
        if len(parts) < 2:
            ours[name] = value
        elif name not in ours:
            ours[name] = torch.cat([weights[p] for p in parts])
    if "backbone.pos_embed" in ours and ours["backbone.pos_embed"].ndim == 2:
        ours["backbone.pos_embed"] = ours["backbone.pos_embed"][None]
    return ours


def _fit_together(parts: Sequence[Tensor | None]) -> bool:
    """Say whether all parts are there, and can stand row below row."""
    found = [part for part in parts if part is not None]
    if len(found) < len(parts) or len(parts) < 2:
        return len(found) == len(parts)
    return all(part.ndim and part.shape[1:] == found[0].shape[1:] for part in found)


def without_unit_scales(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out LayerScales if all of them are 1, as a tiny backbone, which has none, is exported."""
    scales = [name for name in weights if re.search(r"\.(ls[12]\.gamma|gamma_[12])$", name)]
    if not all(bool((weights[name] == 1).all()) for name in scales):
        return dict(weights)
    return {name: value for name, value in weights.items() if name not in scales}


def _name_table(depth: int, *, gated: bool, rotary: bool) -> dict[str, tuple[str, ...]]:
    """Our name -> theirs; several where one matrix of ours is several of theirs, row below row."""
    table: dict[str, tuple[str, ...]] = {ours: (theirs,) for ours, theirs in OUTSIDE_BLOCKS.items()}
    in_block = IN_BLOCK | (ROTARY if rotary else {}) | (GATED if gated else {})
    if rotary:
        table["backbone.patch_embed.proj"] = (ROTARY_PATCHES,)
        in_block = {ours: theirs for ours, theirs in in_block.items() if not ours.startswith("ls")}
    folders = [(f"backbone.blocks.{i}", f"layers.{i}", in_block) for i in range(depth)]
    folders += [(f"upscale.{i}", f"upscale_block.block.{i}", IN_UPSCALE) for i in range(4)]  # patches to 64
    for our_folder, their_folder, names in folders:
        for ours, theirs in names.items():
            table[f"{our_folder}.{ours}"] = tuple(f"{their_folder}.{part}" for part in theirs.split())
    return {
        ours + end: tuple(part + end for part in parts)
        for ours, parts in table.items()
        for end in ("", ".weight", ".bias")
    }
