"""AdamW over parameter groups whose learning rate falls with the depth of the backbone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from models.eomt import EoMT
from shards.errors import InputError

LARGEST_RATE = 100.0
"""Of learning and of weight decay. Larger ones, whose squares float32 may not hold, are slips of the pen."""
LR_RULES: dict[str, Callable[[float], float]] = {
    "none": lambda ratio: 1.0,
    "linear": lambda ratio: ratio,
    "sqrt": math.sqrt,
}
"""Global batch over the batch that `lr` is meant for -> factor on the learning rate."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW."""

    lr: float = 1e-4
    """Peak learning rate of queries, heads, adapters, upscaling and final norm; block i of n gets
    lr * layer_decay ** (n - 1 - i), and the patch and position embeddings what block 0 gets."""
    layer_decay: float = 0.8
    """In (0, 1]; 1 gives every block the same rate."""
    trunk_factor: float = 1.0
    """In (0, 1]: factor on the rates of patch and position embeddings and the blocks before the joint ones.
    With schedule.preset eomt-dinov3, lr, layer_decay and this are 2e-4, 1 and 0.1 where they are not set."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """Rule by which lr follows the global batch (data.batch_size * loop.grad_accum * processes): not at all,
    with its ratio to lr_batch, as for SGD, or with the ratio's square root, as for Adam."""
    lr_batch: int = 16
    """The global batch at which lr holds as it is; EoMT's. Read where lr_scaling is not none."""
    weight_decay: float = 0.05
    """Weight decay of every parameter, norms and biases included, as EoMT does."""

    def __post_init__(self) -> None:
        if not 0 < self.lr <= LARGEST_RATE:
            raise InputError(f"optim.lr must be above 0 and at most {LARGEST_RATE:g}, got {self.lr}")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"optim.layer_decay must be in (0, 1], got {self.layer_decay}")
        if not 0 < self.trunk_factor <= 1:
            raise InputError(f"optim.trunk_factor must be in (0, 1], got {self.trunk_factor}")
        if not 0 <= self.weight_decay <= LARGEST_RATE:
            raise InputError(f"optim.weight_decay must be in [0, {LARGEST_RATE:g}], got {self.weight_decay}")
        if self.lr_batch < 1:
            raise InputError(f"optim.lr_batch must be at least 1, got {self.lr_batch}")

    def resolved(self, preset: str) -> OptimConfig:
        """Return the settings with the numbers of a preset of the schedule where they have their defaults.

        Source: configs/dinov3/ade20k of https://github.com/tue-mps/eomt: lr, llrd and lr_mult. Its code of
        2026 never comes to lr_mult, so that the trunk gets the whole rate; we take what the setting says.
        """
        if preset != "eomt-dinov3":
            return self
        theirs: dict[str, Any] = {"lr": 2e-4, "layer_decay": 1.0, "trunk_factor": 0.1}
        left = {n: v for n, v in theirs.items() if getattr(self, n) == self.__dataclass_fields__[n].default}
        return replace(self, **left)

    def scaled(self, global_batch: int) -> OptimConfig:
        """Return the settings with the learning rate that holds for `global_batch` images per step.

        Source: linear, Goyal et al., "Accurate, Large Minibatch SGD", 2017; sqrt, for adaptive methods,
        Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", NeurIPS 2022.
        """
        factor = LR_RULES[self.lr_scaling](global_batch / self.lr_batch)
        return replace(self, lr=self.lr * factor, lr_scaling="none")


def group_parameters(model: EoMT, config: OptimConfig) -> list[dict[str, object]]:
    """Sort the trainable parameters into groups of one learning rate each: `params`, `lr` and `name`.

    Names are `heads` (queries, heads, upscaling), `lora`, `backbone.norm`, `backbone.blocks.i` and
    `backbone.embed`. What starts with `backbone` warms up late (see `trainer.schedule`). Adapters do not:
    they change nothing at first, and the weights that a rate falling with depth would protect are frozen.
    """
    depth = len(model.backbone.blocks)
    groups: dict[str, tuple[float, list[nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group, lr = _place(name, depth, model.num_blocks, config)
            groups.setdefault(group, (lr, []))[1].append(parameter)
    return [{"params": parameters, "lr": lr, "name": name} for name, (lr, parameters) in groups.items()]


def build_optimizer(model: EoMT, config: OptimConfig, *, fused: bool = False) -> torch.optim.AdamW:
    """Build AdamW over what trains; `fused` updates with a few kernels in place of some per group, on a GPU.

    Not with a `GradScaler`, which would leave it to the kernels to skip a step, and could not tell it was.
    """
    groups = group_parameters(model, config)
    if not groups:
        raise InputError("adapt.mode: nothing trains; choose a mode that leaves parameters free")
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=fused or None)


def explain_rates(optimizer: torch.optim.Optimizer, config: OptimConfig, global_batch: int) -> str:
    """Say in a line which peak rates the groups have: the highest and the lowest of the backbone's."""
    peaks = {g["name"]: float(g.get("initial_lr", g["lr"])) for g in optimizer.param_groups}
    blocks = sorted((rate, name) for name, rate in peaks.items() if name.startswith("backbone."))
    ends = {name: rate for rate, name in (blocks[-1:] + blocks[:1])}
    others = {name: rate for name, rate in peaks.items() if not name.startswith("backbone.")}
    listed = ", ".join(f"{name} {rate:.3g}" for name, rate in (others | ends).items())
    rule = f"{config.lr_scaling} from {config.lr_batch}" if config.lr_scaling != "none" else "none"
    return f"peak learning rates: {listed}; global batch {global_batch}, scaling {rule}"


def _place(name: str, depth: int, num_joint: int, config: OptimConfig) -> tuple[str, float]:
    if ".lora_" in name:
        return "lora", config.lr
    if not name.startswith("backbone."):
        return "heads", config.lr
    if name.startswith("backbone.norm."):
        return "backbone.norm", config.lr
    is_block = name.startswith("backbone.blocks.")
    block = int(name.split(".")[2]) if is_block else 0
    group = f"backbone.blocks.{block:02d}" if is_block else "backbone.embed"
    factor = config.trunk_factor if block < depth - num_joint or not is_block else 1.0
    return group, config.lr * factor * config.layer_decay ** (depth - 1 - block)
