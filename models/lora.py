"""Low-rank adapters in the backbone: added by peft, merged by plain arithmetic.

An adapted layer computes W x + (alpha / rank) · B A x with W frozen, A (rank, in) and B (out, rank) trained.
B starts at 0, so an adapter changes nothing before its first step.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022; layers by peft, which is
imported where adapters are asked for: it loads transformers, a quarter of a program's start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from models.adaptation import LoraSettings
from models.backbone import count_blocks
from models.eomt import EoMT
from shards.errors import InputError

ADAPTER = "default"
"""peft's name for the one adapter we use."""


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
