"""Settings of adaptation: which parameters of an EoMT train, and its low-rank adapters."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from shards.errors import InputError

LORA_TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
MODES = ("full", "heads", "queries", "queries+heads", "last-N", "gradual", "lora", "outlier_head")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters; used by `adapt.mode lora`."""

    targets: tuple[str, ...] = ("attn.qkv", "attn.proj")
    """Layers of a block: attn.qkv, attn.proj, mlp.fc1, mlp.fc2."""
    rank: int = 8
    """Inner width of an adapter."""
    alpha: float = 16.0
    """An adapter's output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """On an adapter's input, while training."""
    last_blocks: int = 0
    """Only the N last blocks get adapters, and the others keep no activations; 0: all blocks."""

    def __post_init__(self) -> None:
        known = ", ".join(LORA_TARGETS)
        if unknown := [target for target in self.targets if target not in LORA_TARGETS]:
            raise InputError(f"adapt.lora.targets: unknown layer {unknown[0]!r}; known: {known}")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise InputError(f"adapt.lora.targets: at least one of {known}, each once")
        if self.rank < 1:
            raise InputError(f"adapt.lora.rank must be at least 1, got {self.rank}")
        if self.alpha <= 0:
            raise InputError(f"adapt.lora.alpha must be above 0, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"adapt.lora.dropout must be in [0, 1), got {self.dropout}")
        if self.last_blocks < 0:
            raise InputError(f"adapt.lora.last_blocks must be 0 (all) or more, got {self.last_blocks}")

    @property
    def scale(self) -> float:
        """Factor of an adapter's output."""
        return self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Adaptation: the parameters that train."""

    mode: str = "full"
    """full: everything; heads: class head and mask head; queries: the queries alone; queries+heads: both;
    last-N (last-1, last-2, ...): the N last blocks, the final norm, the upscaling, queries and heads;
    gradual: at first the joint blocks and what comes after, then one block after the other (see thaw);
    lora: low-rank adapters in the blocks (see lora), queries and heads; outlier_head: a head of its own that
    reads the others, all of which stand still (see model.outlier_head)."""
    thaw: tuple[float, float] = (0.1, 0.6)
    """For gradual: shares of the run at which the last of the blocks before the joint ones starts to train,
    and the first, with the embedding; the others evenly between. Each warms up by itself."""
    lora: LoraSettings = field(default_factory=LoraSettings)

    def __post_init__(self) -> None:
        named = self.mode in MODES and self.mode != "last-N"
        if not named and not re.fullmatch(r"last-[1-9]\d*", self.mode):
            raise InputError(f"adapt.mode: unknown mode {self.mode!r}; known modes: {', '.join(MODES)}")
        if not 0 <= self.thaw[0] < self.thaw[1] <= 1:
            first, last = self.thaw
            raise InputError(f"adapt.thaw: got {first} and {last}; two shares, 0 <= first < second <= 1")
