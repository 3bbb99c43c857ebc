"""Weight names and settings of Hugging Face's EoMT, to and from ours.

The two hold the same numbers, but query, key and value stand in one matrix with us (timm) and in three
with transformers, and the position embedding has a batch dimension with us.

Source: `transformers/models/eomt/modeling_eomt.py`, transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.backbone import SIZES, count_blocks
from models.eomt import IMAGENET_MEAN, IMAGENET_STD, ModelConfig

OUTSIDE_BLOCKS = {
    "backbone.cls_token": "embeddings.cls_token",
    "backbone.reg_token": "embeddings.register_tokens",
    "backbone.pos_embed": "embeddings.position_embeddings.weight",
    "backbone.patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "backbone.patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "backbone.norm.weight": "layernorm.weight",
    "backbone.norm.bias": "layernorm.bias",
    "queries.weight": "query.weight",
    "class_head.weight": "class_predictor.weight",
    "class_head.bias": "class_predictor.bias",
    "mask_head.0.weight": "mask_head.fc1.weight",
    "mask_head.0.bias": "mask_head.fc1.bias",
    "mask_head.2.weight": "mask_head.fc2.weight",
    "mask_head.2.bias": "mask_head.fc2.bias",
    "mask_head.4.weight": "mask_head.fc3.weight",
    "mask_head.4.bias": "mask_head.fc3.bias",
}
IN_BLOCK = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attn.proj.weight": "attention.out_proj.weight",
    "attn.proj.bias": "attention.out_proj.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "ls2.gamma": "layer_scale2.lambda1",
}
GATED_OUT = "mlp.down_proj"
GATED_IN = ("mlp.gate_proj", "mlp.up_proj")
"""The giant's gated MLP: two matrices in transformers 5, one with us, gate first."""
IN_UPSCALE = {
    "conv1.weight": "conv1.weight",
    "conv1.bias": "conv1.bias",
    "conv2.weight": "conv2.weight",
    "norm.weight": "layernorm2d.weight",
    "norm.bias": "layernorm2d.bias",
}
QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")


def huggingface_config(config: ModelConfig, class_names: Sequence[str]) -> dict[str, Any]:
    """Return what stands in `config.json`.

    Args:
        config: completed; class head linear.
        class_names: by train id.
    """
    size = SIZES[config.size]
    height, width = config.image_size
    return {
        "architectures": ["EomtForUniversalSegmentation"],
        "model_type": "eomt",
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.num_heads,
        "use_swiglu_ffn": config.size == "giant",
        "mlp_ratio": 4,
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "num_blocks": config.num_blocks,
        "num_queries": config.num_queries,
        "num_register_tokens": 4,
        "num_upscale_blocks": max(1, config.patch_size.bit_length() - 3),
        "id2label": {str(i): name for i, name in enumerate(class_names)},
        "label2id": {name: i for i, name in enumerate(class_names)},
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


def to_huggingface(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of our EoMT (linear class head, no adapter) to those of transformers.

    A backbone without LayerScale gets scales of 1, which transformers always has.

    Raises:
        KeyError: a name that no EoMT of ours has.
    """
    theirs: dict[str, Tensor] = {}
    depth = count_blocks(weights, "backbone.blocks")
    names, joined = _name_table(depth), _joined_names(depth, gated=_is_gated(weights))
    for name, value in weights.items():
        if name in joined:
            for part, chunk in zip(joined[name], value.chunk(len(joined[name])), strict=True):
                theirs[part] = chunk.contiguous()
        elif _is_gated(weights) and ".mlp.fc2." in name:
            theirs[names[name].replace("mlp.fc2", GATED_OUT)] = value
        else:
            theirs[names[name]] = value[0] if name == "backbone.pos_embed" else value
    width = weights["queries.weight"].shape[1]
    for block in range(depth):
        for scale in ("layer_scale1.lambda1", "layer_scale2.lambda1"):
            theirs.setdefault(f"layers.{block}.{scale}", torch.ones(width))
    return theirs


def from_huggingface(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of transformers' EoMT to ours; names it does not know stay as they are."""
    depth = count_blocks(weights, "layers")
    names = {theirs: ours for ours, theirs in _name_table(depth).items()}
    ours = {names.get(name.replace(GATED_OUT, "mlp.fc2"), name): value for name, value in weights.items()}
    if "backbone.pos_embed" in ours and ours["backbone.pos_embed"].ndim == 2:
        ours["backbone.pos_embed"] = ours["backbone.pos_embed"][None]
    for name, parts in _joined_names(depth, gated=_is_gated(weights)).items():
        if all(part in ours for part in parts):
            ours[name] = torch.cat([ours.pop(part) for part in parts])
    return ours


def without_unit_scales(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out LayerScales if all of them are 1, as the tiny backbone, which has none, is exported."""
    scales = [name for name in weights if name.endswith((".ls1.gamma", ".ls2.gamma"))]
    if not all(bool((weights[name] == 1).all()) for name in scales):
        return dict(weights)
    return {name: value for name, value in weights.items() if name not in scales}


def _name_table(depth: int) -> dict[str, str]:
    """Our name -> theirs, where one of ours is one of theirs."""
    names = dict(OUTSIDE_BLOCKS)
    for block in range(depth):
        for ours, theirs in IN_BLOCK.items():
            names[f"backbone.blocks.{block}.{ours}"] = f"layers.{block}.{theirs}"
    for step in range(4):  # patch sizes up to 64
        for ours, theirs in IN_UPSCALE.items():
            names[f"upscale.{step}.{ours}"] = f"upscale_block.block.{step}.{theirs}"
    return names


def _joined_names(depth: int, *, gated: bool) -> dict[str, tuple[str, ...]]:
    """Our name -> theirs, where one matrix of ours is several of theirs, row below row."""
    joined = {"attn.qkv": QKV} | ({"mlp.fc1": GATED_IN} if gated else {})
    return {
        f"backbone.blocks.{block}.{ours}.{kind}": tuple(f"layers.{block}.{part}.{kind}" for part in parts)
        for block in range(depth)
        for ours, parts in joined.items()
        for kind in ("weight", "bias")
    }


def _is_gated(weights: Mapping[str, Tensor]) -> bool:
    if f"layers.0.{GATED_OUT}.weight" in weights:
        return True
    first = weights.get("backbone.blocks.0.mlp.fc1.weight")
    second = weights.get("backbone.blocks.0.mlp.fc2.weight")
    return first is not None and second is not None and first.shape[0] == 2 * second.shape[1]
