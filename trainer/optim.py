"""AdamW over parameter groups whose learning rate falls with the depth of the backbone."""

from __future__ import annotations

import torch
from torch import nn

from models.eomt import EoMT
from shards.errors import InputError
from trainer.sections import OptimConfig


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
    """Build AdamW over what trains; `fused` updates with a few kernels in place of some per group.

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
