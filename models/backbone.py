"""Trunks of an EoMT: timm's plain ViTs, with learned positions (DINOv2) or rotary ones (DINOv3)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import timm
from timm.layers import LayerNorm, resample_abs_pos_embed, resample_patch_embed
from timm.layers.mlp import GluMlp
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.trunk import HEAD_WIDTH, SIZES, Trunk
from models.weights.fit import LoadReport, Shapes, compare_weights
from shards.errors import InputError

TIMM_OF_DINOV3 = "1.0.20"
"""First release that has it."""


def build_backbone(trunk: Trunk, image_size: tuple[int, int], patch_size: int) -> VisionTransformer | Eva:
    """Build a ViT without classifier and with random weights.

    Args:
        image_size: (height, width) in pixels of what it will see, whose grid of patches positions are of.
        patch_size: side of a patch in pixels. DINOv2 was trained with 14; EoMT and DINOv3 use 16.
    """
    ratio = trunk.hidden / trunk.width
    shared = {"img_size": image_size, "patch_size": patch_size, **_settings_of(trunk)}
    if not trunk.rotary:
        gate: dict[str, Any] = {"mlp_layer": partial(GluMlp, gate_last=False), "act_layer": nn.SiLU}
        return VisionTransformer(
            **shared,
            **(gate if trunk.gated else {}),
            mlp_ratio=2 * ratio if trunk.gated else ratio,
            reg_tokens=trunk.registers,
            pre_norm=trunk.pre_norm,
        )
    if "rope_type" not in inspect.signature(Eva).parameters:
        needed = f"DINOv3 needs timm {TIMM_OF_DINOV3} or newer, this is {timm.__version__}"
        raise InputError(f"model.trunk: {needed}; pip install -U timm")
    backbone = Eva(
        **shared,
        mlp_ratio=ratio,
        swiglu_mlp=trunk.gated,
        num_reg_tokens=trunk.registers,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_temperature=100.0,
        rope_rotate_half=True,
        use_fc_norm=False,
        use_pre_transformer_norm=trunk.pre_norm,
    )
    for block in backbone.blocks:
        # else the layer is not called, and no adapter on it either
        cast(Any, block).attn.qkv_bias_separate = True
    return backbone


def _settings_of(trunk: Trunk) -> dict[str, Any]:
    """Return what both of timm's classes call the same."""
    return {
        "num_classes": 0,
        "embed_dim": trunk.width,
        "depth": trunk.depth,
        "num_heads": trunk.num_heads,
        "class_token": trunk.class_token,
        "global_pool": "token" if trunk.class_token else "",
        "no_embed_class": True,  # a position of the class token is added to the token itself
        "init_values": 1e-5 if trunk.layer_scale else None,
        "norm_layer": partial(LayerNorm, eps=trunk.norm_eps),
    }


def count_blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Count the blocks `prefix.0`, `prefix.1`, … that have weights."""
    start = len(prefix.split("."))
    numbers = [name.split(".")[start] for name in weights if name.startswith(f"{prefix}.")]
    return len({number for number in numbers if number.isdecimal()})


def trunk_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an EoMT's backbone under the names that they have by itself."""
    prefix = "backbone."
    return {name.removeprefix(prefix): v for name, v in weights.items() if name.startswith(prefix)}


def read_trunk(weights: Mapping[str, Tensor], where: str, num_heads: int = 0) -> Trunk:
    """Read an architecture off a backbone's weights, in our names.

    Heads are in no weight: where `num_heads` does not say, a known trunk's of this width and depth, else one
    for 64 numbers. Norms add 1e-6, behind rotary positions or before the first block 1e-5, as published.
    """
    needed = {"patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2, "blocks.0.mlp.fc2.weight": 2}
    for name, dimensions in needed.items():
        if name not in weights or weights[name].ndim != dimensions or not weights[name].numel():
            wrong = f"is of shape {tuple(weights[name].shape)}" if name in weights else "is missing"
            raise InputError(f"{where}: {name} {wrong}; {dimensions} dimensions are needed")
    width, depth = weights["patch_embed.proj.weight"].shape[0], count_blocks(weights, "blocks")
    hidden = weights["blocks.0.mlp.fc2.weight"].shape[-1]
    rotary, registers = "blocks.0.attn.q_bias" in weights, weights.get("reg_token")
    alike = {t.num_heads for t in SIZES.values() if (t.width, t.depth, t.rotary) == (width, depth, rotary)}
    usual = width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 0
    if not (num_heads := num_heads or max(alike, default=usual)) or width % num_heads:
        raise InputError(f"{where}: a trunk of width {width}, in no file's heads of {HEAD_WIDTH}; {KNOWN}")
    return Trunk(
        width=width,
        depth=depth,
        num_heads=num_heads,
        hidden=hidden,
        registers=0 if registers is None or registers.ndim != 3 else registers.shape[1],
        class_token="cls_token" in weights,
        gated=weights["blocks.0.mlp.fc1.weight"].shape[0] == 2 * hidden,
        layer_scale="blocks.0.ls1.gamma" in weights or "blocks.0.gamma_1" in weights,
        pre_norm="norm_pre.weight" in weights,
        rotary=rotary,
        norm_eps=1e-5 if rotary or "norm_pre.weight" in weights else 1e-6,
    )


KNOWN = (
    "what can be read are plain ViTs, such as DINOv3's dinov3_vitb16_pretrain_lvd1689m, DINOv2's "
    "dinov2_vitb14_pretrain.pth or timm's vit_base_patch16_224"
)


def fit_backbone_weights(
    backbone: VisionTransformer | Eva, weights: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Tensor], LoadReport]:
    """Give weights in our names the shapes of a backbone, which may be on the meta device.

    Patches of 14x14 become 16x16, and a learned grid of positions takes the model's shape, both as timm
    resamples them. The report says what does not fit.
    """
    if "pos_embed" in weights and weights["pos_embed"].ndim != 3:
        raise InputError(f"{where}: pos_embed has {weights['pos_embed'].ndim} dimensions; 3 are needed")
    state, resized = dict(weights), dict[str, Shapes]()
    sides, grid = backbone.patch_embed.patch_size, backbone.patch_embed.grid_size
    try:
        if state["patch_embed.proj.weight"].shape[-2:] != sides:
            patches = state["patch_embed.proj.weight"].float()
            state["patch_embed.proj.weight"] = resample_patch_embed(patches, list(sides))
        if backbone.pos_embed is not None and not _is_grid(state["pos_embed"].shape[1], grid):
            positions = state["pos_embed"].float()
            state["pos_embed"] = resample_abs_pos_embed(positions, list(grid), num_prefix_tokens=0)
    except (RuntimeError, ValueError, KeyError, IndexError, AssertionError) as error:  # such as no square
        reason = " ".join(str(error).split())
        raise InputError(f"{where}: patches or positions cannot be resampled: {reason}") from None
    for name in ("patch_embed.proj.weight", "pos_embed"):
        if name in state and weights[name].shape != state[name].shape:
            resized[name] = tuple(weights[name].shape), tuple(state[name].shape)
    report = compare_weights(backbone.state_dict(), state)
    return state, replace(report, resized=resized, remedy=KNOWN)


def _is_grid(positions: int, grid: tuple[int, int]) -> bool:
    """Say whether so many positions are taken to be of a grid; those of a square number are of a square."""
    side = math.isqrt(positions)
    return grid == (side, side) if side * side == positions else grid[0] * grid[1] == positions
