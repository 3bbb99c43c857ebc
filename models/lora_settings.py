"""What an adapted model has to remember of its adapters: which layers, how wide, how strong."""

from __future__ import annotations

from dataclasses import dataclass

from shards.errors import InputError

TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters; used by `adapt.mode lora`."""

    targets: tuple[str, ...] = ("attn.qkv", "attn.proj")
    """Which layers of a block: attn.qkv, attn.proj, mlp.fc1, mlp.fc2."""
    rank: int = 8
    """Inner width of an adapter."""
    alpha: float = 16.0
    """An adapter's output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """On an adapter's input, while training."""
    last_blocks: int = 0
    """Only the N last blocks get adapters, and the others keep no activations; 0: all blocks."""

    def __post_init__(self) -> None:
        unknown = [target for target in self.targets if target not in TARGETS]
        if unknown:
            raise InputError(f"adapt.lora.targets: unknown layer {unknown[0]!r}; known: {', '.join(TARGETS)}")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise InputError(f"adapt.lora.targets: at least one of {', '.join(TARGETS)}, each once")
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
        """What an adapter's output is multiplied by."""
        return self.alpha / self.rank
