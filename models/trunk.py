"""Architectures of trunks in numbers, and those with a name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from shards.errors import InputError

HEAD_WIDTH = 64
"""Numbers per attention head of published ViTs, where no table and no file says otherwise."""
LARGEST_TRUNK = {"width": 2**14, "depth": 256, "num_heads": 1024, "hidden": 2**16, "registers": 1024}


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """Architecture of a ViT; with a width of 0, that of `model.size`, or of the weights."""

    width: int = 0
    """Numbers per token."""
    depth: int = 0
    """Number of blocks."""
    num_heads: int = 0
    """Attention heads of a block."""
    hidden: int = 0
    """Numbers per token inside a block's MLP."""
    registers: int = 4
    """Register tokens, which DINOv3 calls storage tokens."""
    class_token: bool = True
    """Whether there is a class token beside them."""
    gated: bool = False
    """SwiGLU instead of GELU in the MLPs."""
    layer_scale: bool = True
    """A learned scale behind attention and MLP."""
    pre_norm: bool = False
    """A norm before the first block, as in CLIP's ViTs, whose patch embedding has no bias."""
    rotary: bool = False
    """DINOv3: patches turn in attention by where they lie (RoPE) instead of a learned position embedding, so
    that every image size is seen as it is; keys have no bias."""
    norm_eps: float = 1e-6
    """Added to variances in the norms."""

    def __post_init__(self) -> None:
        for name, most in LARGEST_TRUNK.items():
            if not 0 <= (number := getattr(self, name)) <= most:
                raise InputError(f"model.trunk.{name}: got {number}; 0 to {most} are allowed")
        if not self.width:
            return
        if not (self.depth and self.num_heads and self.hidden):
            raise InputError("model.trunk: with width, the numbers depth, num_heads and hidden are needed")
        if self.width % self.num_heads or (self.rotary and self.width // self.num_heads % 4):
            wrong = f"a width of {self.width} in {self.num_heads} heads"
            rule = "a multiple of 4 per head, for rotary positions" if self.rotary else "a multiple"
            raise InputError(f"model.trunk.num_heads: {wrong}; {rule} is needed")

    @property
    def num_joint_blocks(self) -> int:
        """Blocks that see queries and patches together, in EoMT's released models of this depth."""
        return 2 if self.depth < 12 else 3 if self.depth < 24 else 4 if self.depth < 32 else 5

    @property
    def name(self) -> str:
        """Key of `SIZES`, or the width and depth of a trunk that is not there."""
        named = (name for name, trunk in SIZES.items() if trunk == self)
        return next(named, f"{self.width}x{self.depth}")

    def __str__(self) -> str:
        kind = "rotary positions" if self.rotary else "learned positions"
        extras = [f"{self.registers} registers"] + ["gated MLP"] * self.gated + ["pre-norm"] * self.pre_norm
        extras += [] if self.class_token else ["no class token"]
        shape = f"width {self.width}, {self.depth} blocks, {self.num_heads} heads"
        return f"{self.name} ({shape}, {kind}, {', '.join(extras)})"


_TINY = Trunk(width=128, depth=6, num_heads=4, hidden=512, layer_scale=False)
_SMALL = Trunk(width=384, depth=12, num_heads=6, hidden=1536)
_BASE = Trunk(width=768, depth=12, num_heads=12, hidden=3072)
_LARGE = Trunk(width=1024, depth=24, num_heads=16, hidden=4096)
_ROTARY: dict[str, Any] = {"rotary": True, "norm_eps": 1e-5}
SIZES: dict[str, Trunk] = {
    "tiny": _TINY,
    "small": _SMALL,
    "base": _BASE,
    "large": _LARGE,
    "giant": Trunk(width=1536, depth=40, num_heads=24, hidden=4096, gated=True),
    "dinov3-tiny": replace(_TINY, **_ROTARY),
    "dinov3-small": replace(_SMALL, **_ROTARY),
    "dinov3-small-plus": replace(_SMALL, gated=True, **_ROTARY),
    "dinov3-base": replace(_BASE, **_ROTARY),
    "dinov3-large": replace(_LARGE, **_ROTARY),
    "dinov3-huge-plus": Trunk(width=1280, depth=32, num_heads=20, hidden=5120, gated=True, **_ROTARY),
    "dinov3-7b": Trunk(width=4096, depth=40, num_heads=32, hidden=8192, gated=True, **_ROTARY),
}
"""Trunks by name: DINOv2's with registers, and DINOv3's. The tiny ones (1.3 M parameters, no LayerScale, so
that they learn from scratch) are for tests and the demo."""
