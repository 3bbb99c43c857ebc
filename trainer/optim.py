"""AdamW over parameter groups whose rate falls with the depth of the backbone; schedules and draws of a step.

A schedule is a function of (step, total steps), and random numbers belong to a sample, not to a process, so
that a resumed run needs no state of either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from models.eomt import EoMT
from shards.errors import InputError
from trainer.sections import OptimConfig, ScheduleConfig


def group_parameters(model: EoMT, config: OptimConfig) -> list[dict[str, object]]:
    """Sort the trainable parameters into groups of one learning rate each: `params`, `lr` and `name`.

    Names are `heads` (queries, heads, upscaling), `lora`, `backbone.norm`, `backbone.blocks.i` and
    `backbone.embed`. What starts with `backbone` warms up late (see `build_lr_schedule`). Adapters do not:
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


def lr_factor(step: int, total_steps: int, warmup_start: int, warmup_end: int, power: float) -> float:
    """Return the factor on a group's peak rate at `step`.

    0 before `warmup_start`, rising linearly to 1 at `warmup_end`, then (1 − progress) ** power.

    Source: EoMT's two-stage warm-up with polynomial decay, https://github.com/tue-mps/eomt.
    """
    if step < warmup_start:
        return 0.0
    if step < warmup_end:
        return max(0.0, (step - warmup_start) / max(1, warmup_end - warmup_start))
    progress = (step - warmup_end) / max(1, total_steps - warmup_end)
    return max(0.0, 1.0 - progress) ** power


def build_lr_schedule(
    optimizer: torch.optim.Optimizer,
    config: ScheduleConfig,
    total_steps: int,
    unfreeze_steps: tuple[int, ...] = (),
) -> LambdaLR:
    """Build the schedule of all groups; groups whose name starts with `backbone` wait for the heads.

    Step it once per optimizer step, and do not hand it to `accelerator.prepare`, which would step it once per
    process. Before its step of `unfreeze_steps` each of the first blocks has a rate of 0; then it warms up.
    """
    head_end, warmup = (round(s * total_steps) for s in (config.head_warmup, config.backbone_warmup))

    def factor_of(group_name: str) -> Callable[[int], float]:
        start, end = 0, head_end
        if group_name.startswith("backbone"):
            start = max(head_end, _unfreeze_step(group_name, unfreeze_steps))
            end = start + warmup
        return lambda step: lr_factor(step, total_steps, start, end, config.poly_power)

    return LambdaLR(optimizer, [factor_of(str(group["name"])) for group in optimizer.param_groups])


def _unfreeze_step(group_name: str, unfreeze_steps: tuple[int, ...]) -> int:
    """Return the step from which a group of the optimizer trains (see `group_parameters`)."""
    place, _, block = group_name.removeprefix("backbone.").partition(".")
    if place == "embed":
        return max(unfreeze_steps, default=0)
    index = int(block) if place == "blocks" else len(unfreeze_steps)
    return unfreeze_steps[index] if index < len(unfreeze_steps) else 0


def unmasking_phase(
    total_steps: int, block: int, num_blocks: int, rule: str = "equal", first_release: float = 0.0
) -> tuple[float, float]:
    """Return the steps between which a joint block's queries are unmasked.

    Args:
        block: j in 0..num_blocks − 1, the first joint block first.
        rule: `equal` cuts the run into num_blocks + 2 phases, block j's being phase j + 1. `eomt` starts
            block j at (1 + 3 j / (num_blocks − 1)) / 6 of the run and takes a sixth of it; `eomt-dinov3` is
            the same but for the first block, which is unmasked in the first steps.
        first_release: how many those are.

    Source: for `equal` LightlyTrain, https://github.com/lightly-ai/lightly-train. The others are read off the
    step numbers of all configurations of https://github.com/tue-mps/eomt, of 3, 4 and 5 blocks, whose runs
    are 6 / 5 of the last number; for 4 blocks, as of EoMT-L, `equal` and `eomt` are one.
    """
    if rule == "eomt-dinov3" and block == 0:
        return 0.0, first_release
    if rule == "equal":
        phase = total_steps / (num_blocks + 2)
        return (block + 1) * phase, (block + 2) * phase
    start = (1 + 3 * block / max(num_blocks - 1, 1)) / 6 * total_steps
    return start, start + total_steps / 6


def mask_probability(
    step: int,
    total_steps: int,
    block: int,
    num_blocks: int,
    power: float = 0.9,
    rule: str = "equal",
    first_release: float = 0.0,
) -> float:
    """Return the probability that a query of a joint block is still masked at `step`.

    1 until the block's phase begins (see `unmasking_phase`), (1 − progress) ** power during it, then 0.

    Source: EoMT's mask annealing.
    """
    start, end = unmasking_phase(total_steps, block, num_blocks, rule, first_release)
    if step >= end:
        return 0.0
    progress = (step - start) / (end - start)
    if progress <= 0:
        return 1.0
    return (1.0 - progress) ** power


def draw_unmasked(
    config: ScheduleConfig,
    step: int,
    total_steps: int,
    num_blocks: int,
    num_queries: int,
    generators: Sequence[torch.Generator],
) -> Bool[Tensor, "L B Q"] | None:
    """Draw which queries are unmasked in this step; None without masked attention.

    Each image has its own generator, so that the draw does not depend on how a batch is cut.
    """
    if config.masked_attention == "never":
        return None
    device = generators[0].device
    rule = {"rule": config.annealing, "first_release": config.backbone_warmup * total_steps}
    masked = [mask_probability(step, total_steps, j, num_blocks, **rule) for j in range(num_blocks)]  # type: ignore[arg-type]
    drawn = [torch.rand(num_blocks, num_queries, generator=g, device=device) for g in generators]
    return torch.stack(drawn, dim=1) >= torch.tensor(masked, device=device)[:, None, None]


def draw_for_validation(
    config: ScheduleConfig, step: int, total_steps: int, num_blocks: int, num_queries: int
) -> Bool[Tensor, "L 1 Q"] | None:
    """Draw which queries of every image are unmasked in a validation at `step`; None: all of them are.

    As upstream, which evaluates a network in the state of its schedule. The draw depends on the step alone.
    """
    generator = torch.Generator().manual_seed(step)
    drawn = draw_unmasked(config, step, total_steps, num_blocks, num_queries, [generator])
    return None if drawn is None or drawn.all() else drawn


def sample_generators(
    seed: int, step: int, keys: Sequence[str], device: torch.device | str
) -> list[torch.Generator]:
    """Make one generator per sample, a function of (seed, step, key) alone.

    Whatever training draws for a sample (points, unmasked queries) comes from its own generator. So one
    process with a batch of four draws what two processes with batches of two draw, and a resumed run
    draws what it would have drawn.
    """
    return [torch.Generator(device=device).manual_seed(_mix(f"{seed}/{step}/{key}")) for key in keys]


def seed_dropout(seed: int, step: int, keys: Sequence[str]) -> None:
    """Seed the global generator, which dropout draws from, as a function of (seed, step, keys of the batch).

    So ranks do not drop the same elements, and a resumed run needs no state. Dropout belongs to a micro-batch
    as a whole, not to a sample: cut another way, a step drops other elements.
    """
    torch.manual_seed(_mix(f"dropout/{seed}/{step}/{'/'.join(keys)}"))


def _mix(text: str) -> int:
    """Return a number in [0, 2^63) that any change of the text changes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
