"""Adaptation of an EoMT: which parameters train, from which step on, and low-rank adapters in the backbone.

An adapted layer computes W x + (alpha / rank) · B A x with W frozen, A (rank, in) and B (out, rank) trained.
B starts at 0, so an adapter changes nothing before its first step. Adapters are added by peft, and merged by
plain arithmetic.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022; layers by peft, which is
imported where adapters are asked for: it loads transformers, a quarter of a program's start.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.adaptation import AdaptConfig, LoraSettings
from models.backbone import count_blocks
from models.config import OutlierHeadConfig
from models.eomt import EoMT
from models.heads import DEFAULT_WIDTH
from shards.errors import InputError

ADAPTER = "default"
"""peft's name for the one adapter we use."""
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
    return count_parameters(model.parameters())


def count_parameters(parameters: Iterable[nn.Parameter]) -> ParameterCount:
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
    counts = [(name, count_parameters(parameters)) for name, parameters in parts.items()]
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


def add_adapters(model: EoMT, settings: LoraSettings) -> None:
    """Put adapters into the model's blocks, in place; afterwards nothing but them trains."""
    import peft

    depth = len(model.backbone.blocks)
    if (asked := settings.last_blocks) > depth:
        raise InputError(f"adapt.lora.last_blocks: {asked} blocks were asked for, the model has {depth}")
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # an int by annotation, any number in use
        lora_dropout=settings.dropout,
        target_modules=_adapted_layers(settings, depth),
    )
    peft.inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    model.lora = settings


def _adapted_layers(settings: LoraSettings, depth: int) -> list[str]:
    """Name the layers of a model with `depth` blocks that carry an adapter."""
    blocks = range(depth - (settings.last_blocks or depth), depth)
    return [f"backbone.blocks.{block}.{target}" for block in blocks for target in settings.targets]


@contextlib.contextmanager
def merged(model: EoMT) -> Iterator[EoMT]:
    """Let a model run with its adapters inside its weights; afterwards these are what they were, to the bit.

    A model without adapters runs as it is.
    """
    layers = [layer for _, layer in _adapted(model)]
    before = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    try:
        for layer in layers:
            layer.merge()
        yield model
    finally:
        for layer, weight in zip(layers, before, strict=True):
            layer.get_base_layer().weight.data.copy_(weight)
            layer.merged_adapters.clear()


@torch.no_grad()
def adapter_norms(model: EoMT) -> dict[str, float]:
    """Return, by layer, the Frobenius norm of what its adapter adds to its weight; {} without adapters.

    ‖s·B·A‖² = s² · Σ (BᵀB ∘ A·Aᵀ), two products of rank × rank instead of one of the weight's size.
    """
    norms: dict[str, Tensor] = {}
    for name, layer in _adapted(model):
        halves = [half.get_parameter(f"{ADAPTER}.weight") for half in (layer.lora_A, layer.lora_B)]
        down, up = (getattr(half, "full_tensor", half.detach)().float() for half in halves)  # FSDP's too
        square = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0)
        norms[name.removeprefix("backbone.")] = square.sqrt() * abs(layer.scaling[ADAPTER])
    return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True)) if norms else {}


def merge_weights(weights: Mapping[str, Tensor], settings: LoraSettings, where: str) -> dict[str, Tensor]:
    """Turn the weights of an adapted model into those of a plain one.

    They have the adapted model's names (`….base_layer.weight`, `….lora_A.default.weight`, …). The adapters
    must be complete and on exactly the layers of `settings`; `where` opens messages.
    """
    plain = {n.replace(".base_layer.", "."): value for n, value in weights.items() if ".lora_" not in n}
    found = {name.partition(".lora_")[0] for name in weights if ".lora_" in name}
    expected = set(_adapted_layers(settings, count_blocks(plain, "backbone.blocks")))
    for layer in sorted(expected | found):
        halves = [weights.get(f"{layer}.lora_{half}.{ADAPTER}.weight") for half in "AB"]
        down, up, base = *halves, plain.get(f"{layer}.weight")
        if base is None:
            raise InputError(f"{where}: a LoRA adapter without its base: {layer}")
        if down is None or up is None:
            raise InputError(f"{where}: a LoRA adapter without its {'A' if down is None else 'B'}: {layer}")
        if layer not in expected:
            lacking = "which the model's description does not name"
            raise InputError(f"{where}: a LoRA adapter on {layer}, {lacking}")
        rank = settings.rank
        if (down.shape, up.shape) != ((rank, base.shape[-1]), (base.shape[0], rank)):
            shapes = f"shapes {tuple(down.shape)} and {tuple(up.shape)}"
            described = f"rank {rank} over {tuple(base.shape)} was described"
            raise InputError(f"{where}: the LoRA adapter of {layer} has {shapes}; {described}")
        plain[f"{layer}.weight"] = base + (settings.scale * (up.float() @ down.float())).to(base.dtype)
    return plain


def _adapted(model: EoMT) -> list[tuple[str, Any]]:
    """List the layers that carry our adapter, peft's `LoraLayer`s, with their names."""
    if model.lora is None:
        return []
    from peft.tuners.lora import LoraLayer

    modules = model.named_modules()
    return [(n, layer) for n, layer in modules if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A]
