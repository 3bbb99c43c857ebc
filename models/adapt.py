"""What trains: which parameters of an EoMT are free, by the name of a mode."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from models.eomt import EoMT
from shards.errors import InputError

MODES = ("full", "heads", "queries", "queries+heads", "last-N")


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """What trains."""

    mode: str = "full"
    """full: everything; heads: class head and mask head; queries: the queries alone; queries+heads: both;
    last-N (last-1, last-2, ...): the N last blocks, the final norm, the upscaling, queries and heads."""

    def __post_init__(self) -> None:
        if self.mode not in MODES and not re.fullmatch(r"last-[1-9]\d*", self.mode):
            raise InputError(f"adapt.mode: unknown mode {self.mode!r}; known modes: {', '.join(MODES)}")


@dataclass(frozen=True)
class ParameterCount:
    """How many numbers a model has."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = self.trainable / max(self.total, 1)
        return f"{self.trainable:,} of {self.total:,} parameters train ({share:.1%})"


def apply_adaptation(model: EoMT, config: AdaptConfig) -> ParameterCount:
    """Freeze everything but what `config.mode` names.

    A frozen run of blocks at the start keeps no activations, because nothing before it needs a gradient.

    Raises:
        InputError: `last-N` with more blocks than the model has.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(config.mode == "full")
    for module in _trainable_modules(model, config.mode):
        module.requires_grad_(True)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return ParameterCount(trainable=sum(n for n, trains in sizes if trains), total=sum(n for n, _ in sizes))


def _trainable_modules(model: EoMT, mode: str) -> list[nn.Module]:
    heads: list[nn.Module] = [model.class_head, model.mask_head]
    queries: list[nn.Module] = [model.queries]
    if mode.startswith("last-"):
        wanted, depth = int(mode.removeprefix("last-")), len(model.backbone.blocks)
        if wanted > depth:
            raise InputError(f"adapt.mode: {mode} asks for {wanted} blocks, the model has {depth}")
        blocks = list(model.backbone.blocks[depth - wanted :])
        return [*blocks, model.backbone.norm, model.upscale, *queries, *heads]
    return {"full": [], "heads": heads, "queries": queries, "queries+heads": [*queries, *heads]}[mode]
