"""EoMT's plain ViT: timm's in five sizes, filled with DINOv2 weights where a file is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import timm
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from models.weights.fit import LoadReport, Shapes, compare_weights, is_under, load_strictly
from shards.errors import InputError


class BackboneSize(NamedTuple):
    """Architecture behind a size name."""

    timm_name: str
    """Name in timm; "" for the tiny one, which timm does not have."""
    width: int
    """Numbers per token."""
    depth: int
    """Number of blocks."""
    num_heads: int
    num_joint_blocks: int
    """Blocks that see queries and patches together, as in EoMT's released models."""


SIZES: dict[str, BackboneSize] = {
    "tiny": BackboneSize("", 128, 6, 4, 2),
    "small": BackboneSize("vit_small_patch14_reg4_dinov2", 384, 12, 6, 3),
    "base": BackboneSize("vit_base_patch14_reg4_dinov2", 768, 12, 12, 3),
    "large": BackboneSize("vit_large_patch14_reg4_dinov2", 1024, 24, 16, 4),
    "giant": BackboneSize("vit_giant_patch14_reg4_dinov2", 1536, 40, 24, 5),
}
TINY: dict[str, Any] = {"embed_dim": 128, "depth": 6, "num_heads": 4, "reg_tokens": 4, "no_embed_class": True}

REGISTERS = {"reg_token", "register_tokens"}
"""Name of the register tokens with timm, and with DINOv2."""
NOT_OURS = ("head", "mask_token", "fc_norm")
"""Parts of published backbones: classifier, mask token of the pretraining, pooling norm."""


def build_backbone(size: str, image_size: tuple[int, int], patch_size: int) -> VisionTransformer:
    """Build a ViT without classifier and with random weights.

    Args:
        size: key of `SIZES`. `tiny` (1.3 M parameters, 6 blocks of width 128, no LayerScale, so that it
            learns from scratch) is for tests and the demo; the others are DINOv2's with registers.
        image_size: (height, width) in pixels of what it will see; the position embedding has this shape.
        patch_size: side of a patch in pixels. DINOv2 was trained with 14; EoMT uses 16.
    """
    shape: dict[str, Any] = {"img_size": image_size, "patch_size": patch_size, "num_classes": 0}
    if size == "tiny":
        return VisionTransformer(**shape, **TINY)
    backbone = timm.create_model(SIZES[size].timm_name, pretrained=False, **shape)
    assert isinstance(backbone, VisionTransformer)
    return backbone


def find_size(width: int, depth: int, where: str) -> str:
    """Return the size whose backbone has this width and depth; an InputError if none has."""
    for name, size in SIZES.items():
        if (size.width, size.depth) == (width, depth):
            return name
    known = ", ".join(f"{name} {size.width}x{size.depth}" for name, size in SIZES.items())
    given = f"a backbone of width {width} and {depth} blocks"
    raise InputError(f"{where}: {given}; known (width x blocks): {known}")


def count_blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Count the blocks `prefix.0`, `prefix.1`, … that have weights."""
    start = len(prefix.split("."))
    numbers = [name.split(".")[start] for name in weights if name.startswith(f"{prefix}.")]
    return len({number for number in numbers if number.isdecimal()})


def find_backbone_size(weights: Mapping[str, Tensor], where: str) -> str:
    """Return the size of a backbone, read off its published weights; an InputError if it is no known one."""
    width = weights["patch_embed.proj.weight"].shape[0] if weights["patch_embed.proj.weight"].ndim else 0
    return find_size(width, count_blocks(weights, "blocks"), where)


def load_backbone_weights(
    backbone: VisionTransformer, weights: Mapping[str, Tensor], where: str
) -> LoadReport:
    """Fill a backbone with what `fit_backbone_weights` makes of `weights`; everything has to fit exactly."""
    fitted, report = fit_backbone_weights(backbone, weights, where)
    load_strictly(backbone, fitted, where)
    return report


def fit_backbone_weights(
    backbone: VisionTransformer, weights: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Tensor], LoadReport]:
    """Give DINOv2 or timm weights the names and shapes of a backbone, which may be on the meta device.

    DINOv2's 14x14 patches become 16x16, and its position grid takes the model's shape, both as timm
    resamples them. Its classifier and mask token are left out. The report says what does not fit.
    """
    for name, dimensions in (("patch_embed.proj.weight", 4), ("pos_embed", 3)):
        if name in weights and weights[name].ndim != dimensions:
            raise InputError(f"{where}: {name} has {weights[name].ndim} dimensions; {dimensions} are needed")
    if not REGISTERS & weights.keys():
        letter = find_backbone_size(weights, where)[0].replace("t", "s")
        wanted = f"such as DINOv2's dinov2_vit{letter}14_reg4_pretrain.pth"
        raise InputError(f"{where}: a ViT without register tokens; EoMT starts from one with four, {wanted}")
    try:
        state = checkpoint_filter_fn(dict(weights), backbone, interpolation="bicubic", antialias=True)
    except (RuntimeError, ValueError, KeyError, AssertionError) as error:  # of grids that are not square
        reason = " ".join(str(error).split())
        raise InputError(f"{where}: patches or positions cannot be resampled: {reason}") from None
    state = {name: value for name, value in state.items() if not is_under(name, NOT_OURS)}
    resized: dict[str, Shapes] = {
        name: (tuple(weights[name].shape), tuple(state[name].shape))
        for name in ("patch_embed.proj.weight", "pos_embed")
        if name in state and weights[name].shape != state[name].shape
    }
    report = compare_weights(backbone.state_dict(), state)
    return state, dataclasses.replace(report, resized=resized)
