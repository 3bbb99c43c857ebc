"""Low-rank adapters in the backbone: added by peft, merged into plain weights by plain arithmetic.

An adapted layer computes W x + (alpha / rank) · B A x with W frozen, A (rank, in) and B (out, rank) trained.
B starts at 0, so an adapter changes nothing before its first step.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022; layers by peft.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import peft
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor

from models.eomt import EoMT
from models.lora_settings import LoraSettings
from shards.errors import InputError

ADAPTER = "default"
"""peft's name for the one adapter we use."""


def add_adapters(model: EoMT, settings: LoraSettings) -> None:
    """Put adapters into the model's blocks, in place; afterwards nothing but them trains.

    Raises:
        InputError: adapters for more blocks than there are.
    """
    depth = len(model.backbone.blocks)
    if settings.last_blocks > depth:
        raise InputError(
            f"adapt.lora.last_blocks: {settings.last_blocks} blocks were asked for, the model has {depth}"
        )
    first = depth - settings.last_blocks if settings.last_blocks else 0
    peft.inject_adapter_in_model(
        peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # an int by annotation, any number in use
            lora_dropout=settings.dropout,
            target_modules=[
                f"backbone.blocks.{block}.{target}"
                for block in range(first, depth)
                for target in settings.targets
            ],
        ),
        model,
        adapter_name=ADAPTER,
    )
    model.lora = settings


@contextlib.contextmanager
def merged(model: EoMT) -> Iterator[EoMT]:
    """Let a model run with its adapters inside its weights; afterwards these are what they were, to the bit.

    A model without adapters runs as it is.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    before = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    try:
        for layer in layers:
            layer.merge()
        yield model
    finally:
        for layer, weight in zip(layers, before, strict=True):
            layer.get_base_layer().weight.data.copy_(weight)
            layer.merged_adapters.clear()


def merge_weights(weights: Mapping[str, Tensor], scale: float, where: str) -> dict[str, Tensor]:
    """Turn the weights of an adapted model into those of a plain one.

    Args:
        weights: under the names of the adapted model (`….base_layer.weight`, `….lora_A.default.weight`, …).
        scale: alpha / rank.
        where: what the weights come from, for the message.

    Raises:
        InputError: an adapter without its base weight, or half of one.
    """
    plain = {
        name.replace(".base_layer.", "."): value for name, value in weights.items() if ".lora_" not in name
    }
    for name, down in weights.items():
        if ".lora_A." not in name:
            continue
        layer = name.partition(".lora_A.")[0]
        up, base = weights.get(name.replace(".lora_A.", ".lora_B.")), plain.get(f"{layer}.weight")
        if up is None or base is None:
            raise InputError(
                f"{where}: a LoRA adapter without its {'base' if base is None else 'B'}: {layer}"
            )
        plain[f"{layer}.weight"] = base + _delta(down, up, scale).to(base.dtype)
    return plain


def _delta(
    down: Float[Tensor, "rank inputs"], up: Float[Tensor, "outputs rank"], scale: float
) -> Float[Tensor, "outputs inputs"]:
    """Return what an adapter adds to its weight."""
    return (up.float() @ down.float()) * scale
