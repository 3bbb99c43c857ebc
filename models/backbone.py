"""The plain ViT that EoMT is built on: timm's, in four sizes, with DINOv2 weights where a file is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from models.weights import load_strictly, read_weight_file
from shards.errors import InputError


@dataclass(frozen=True)
class BackboneSize:
    """What a size name stands for."""

    timm_name: str
    """Architecture in timm; "" for the tiny one, which timm does not name."""
    num_joint_blocks: int
    """Blocks that see queries and patches together, as EoMT's released models have it."""


SIZES: dict[str, BackboneSize] = {
    "tiny": BackboneSize("", 2),
    "small": BackboneSize("vit_small_patch14_reg4_dinov2", 3),
    "base": BackboneSize("vit_base_patch14_reg4_dinov2", 3),
    "large": BackboneSize("vit_large_patch14_reg4_dinov2", 4),
}
TINY: dict[str, Any] = {"embed_dim": 128, "depth": 6, "num_heads": 4, "reg_tokens": 4, "no_embed_class": True}


def build_backbone(size: str, image_size: tuple[int, int], patch_size: int) -> VisionTransformer:
    """Build a ViT without classifier and with random weights.

    Args:
        size: key of `SIZES`. `tiny` (1.3 M parameters, 6 blocks of width 128, no LayerScale, so that it
            learns from scratch) is for tests and the demo; the others are DINOv2's with registers.
        image_size: (height, width) in pixels of what it will see; the position embedding has this shape.
        patch_size: side of a patch in pixels. DINOv2 was trained with 14; EoMT uses 16.

    Raises:
        InputError: unknown size, or an image side that is no multiple of the patch size.
    """
    if size not in SIZES:
        raise InputError(f"model.size: unknown size {size!r}; known sizes: {', '.join(SIZES)}")
    if any(side <= 0 or side % patch_size for side in image_size):
        raise InputError(
            f"model.image_size: {image_size[0]}x{image_size[1]} is not divisible by patch size {patch_size}"
        )
    if size == "tiny":
        return VisionTransformer(img_size=image_size, patch_size=patch_size, num_classes=0, **TINY)
    name = SIZES[size].timm_name
    backbone = timm.create_model(
        name, pretrained=False, img_size=image_size, patch_size=patch_size, num_classes=0
    )
    assert isinstance(backbone, VisionTransformer)
    return backbone


def load_backbone_weights(backbone: VisionTransformer, path: Path) -> None:
    """Fill a backbone from a DINOv2 or timm weight file, resampling patch and position embeddings.

    DINOv2's 14x14 patches become 16x16, and its position grid takes the model's shape, both as timm
    resamples them. Its classifier and mask token are left out. Everything else has to fit exactly.

    Raises:
        InputError: no such file, it is no plain weight file, or it does not hold this architecture.
    """
    weights = read_weight_file(path)
    state = checkpoint_filter_fn(dict(weights), backbone, interpolation="bicubic", antialias=True)
    state = {
        name: value
        for name, value in state.items()
        if not name.startswith(("head.", "mask_token", "fc_norm."))
    }
    load_strictly(backbone, state, f"model.weights {path}")
