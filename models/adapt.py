"""Adaptation modes: which parameters of an EoMT train, and from which step on."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from models.adaptation import AdaptConfig
from models.config import OutlierHeadConfig
from models.eomt import EoMT
from models.lora import add_adapters
from models.outlier_head import DEFAULT_WIDTH
from shards.errors import InputError

PARTS = {
    "cls_token": "class token",
    "reg_token": "register tokens",
    "pos_embed": "position embedding",
    "patch_embed": "patch embedding",
    "norm": "final norm",
    "upscale": "upscaling",
    "class_head": "class head",
    "mask_head": "mask head",
    "outlier_head": "outlier head",
}
"""Parts of a model by the beginning of their parameters' names, as the log calls them."""


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of a model, or of a part of it."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = self.trainable / max(self.total, 1)
        return f"{self.trainable:,} of {self.total:,} parameters train ({share:.1%})"


def plan_unfreezing(config: AdaptConfig, model: EoMT, total_steps: int) -> tuple[int, ...]:
    """Return the step from which each block before the joint ones trains, never later than the one before it.

    Empty without gradual unfreezing. A block that is frozen is run without gradients: it keeps no
    activations, and no backward pass goes through it. Its parameters get gradients of exactly 0 (see
    `EoMT.forward`) at a learning rate of exactly 0, so AdamW leaves them as they are, weight decay included,
    and data-parallel training misses nothing. AdamW counts those steps, so its bias correction is over when
    the block starts to train; the block's own warm-up keeps its first updates, which are up to three times as
    large as corrected ones, small.
    """
    count = len(model.backbone.blocks) - model.num_blocks
    if config.mode != "gradual":
        return ()
    first, last = config.thaw
    shares = [first + (last - first) * (count - 1 - i) / max(count - 1, 1) for i in range(count)]
    return tuple(round(share * total_steps) for share in shares)


def count_frozen(unfreeze_steps: tuple[int, ...], step: int) -> int:
    """Return how many of the first blocks are frozen at `step`."""
    return sum(start > step for start in unfreeze_steps)


def apply_adaptation(model: EoMT, config: AdaptConfig) -> ParameterCount:
    """Freeze everything but what `config.mode` names; for `lora`, put the adapters in.

    A frozen run of blocks at the start keeps no activations, because nothing before it needs a gradient. An
    outlier head is attached where `outlier_head` finds none; other modes take it off, since it is of no use
    over other weights than those it has read.
    """
    reads = config.mode == "outlier_head"
    if reads != bool(model.config.outlier_head.width) or model.config.outlier_head.bank:
        model.set_outlier_head(OutlierHeadConfig(width=DEFAULT_WIDTH if reads else 0))
    if config.mode == "lora":
        add_adapters(model, config.lora)
    else:
        model.requires_grad_(config.mode in ("full", "gradual"))
    for module in _trainable_modules(model, config.mode):
        module.requires_grad_(True)
    return count_parameters(model)


def count_parameters(module: nn.Module) -> ParameterCount:
    """Count a module's numbers, and those of them that train."""
    return count_numbers(module.parameters())


def count_numbers(parameters: Iterable[nn.Parameter]) -> ParameterCount:
    """Count the numbers of parameters, and those of them that train."""
    sizes = [(p.numel(), p.requires_grad) for p in parameters]
    return ParameterCount(trainable=sum(n for n, trains in sizes if trains), total=sum(n for n, _ in sizes))


def explain_parameters(model: EoMT) -> list[str]:
    """Say, part by part, how many numbers train, so that the parts add up; like blocks share a line."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        *above, leaf = re.sub(r"^backbone\.", "", name).split(".")
        is_block = above[:1] == ["blocks"]
        part = f"block {above[1]}" if is_block else PARTS.get((above or [leaf])[0], (above or [leaf])[0])
        parts.setdefault(part, []).append(parameter)
    counts = [(name, count_numbers(parameters)) for name, parameters in parts.items()]
    alike = itertools.groupby(counts, lambda item: (item[0].rstrip(string.digits), item[1]))
    lines = []
    for (word, count), group in alike:
        names = [name for name, _ in group]
        last = f"-{names[-1].removeprefix(word)} each" if len(names) > 1 else ""
        lines.append(f"{names[0] + last:<19} {count}")
    return lines


def _trainable_modules(model: EoMT, mode: str) -> list[nn.Module]:
    heads: list[nn.Module] = [model.class_head, model.mask_head]
    if mode.startswith("last-"):
        wanted, depth = int(mode.removeprefix("last-")), len(model.backbone.blocks)
        if wanted > depth:
            raise InputError(f"adapt.mode: {mode} asks for {wanted} blocks, the model has {depth}")
        blocks = model.backbone.blocks[depth - wanted :]
        return [*blocks, model.backbone.norm, model.upscale, model.queries, *heads]
    queries: list[nn.Module] = [model.queries]
    by_mode = {"heads": heads, "queries": queries, "queries+heads": queries + heads, "lora": queries + heads}
    by_mode["outlier_head"] = [] if model.outlier_head is None else [model.outlier_head]
    return by_mode.get(mode, [])  # full and gradual have freed everything
