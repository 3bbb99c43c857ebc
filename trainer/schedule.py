"""What changes with the step: learning rates, and how many queries still obey their masks.

Everything here is a function of (step, total steps), so that a resumed run needs no state from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from models.adapt import Thaw
from shards.errors import InputError

NEVER_FROZEN = Thaw(())


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning-rate and mask-annealing schedules, as fractions of the run."""

    head_warmup: float = 0.025
    """Share of the run in which queries and heads warm up linearly, while the backbone stands still."""
    backbone_warmup: float = 0.05
    """Share of the run, after head_warmup, in which the backbone warms up linearly."""
    poly_power: float = 0.9
    """After its warm-up a rate falls to 0 as (1 - progress) ** poly_power."""
    masked_attention: Literal["annealed", "always", "never"] = "annealed"
    """annealed: each joint block's queries obey their masks at first and are released one phase after the
    other; always; never: none does, and only the final prediction is supervised."""

    def __post_init__(self) -> None:
        for name in ("head_warmup", "backbone_warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"schedule.{name} must be in [0, 1), got {getattr(self, name)}")
        if self.head_warmup + self.backbone_warmup > 1:
            raise InputError(
                f"schedule.head_warmup + schedule.backbone_warmup must be at most 1, "
                f"got {self.head_warmup} + {self.backbone_warmup}"
            )
        if self.poly_power <= 0:
            raise InputError(f"schedule.poly_power must be above 0, got {self.poly_power}")


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
    optimizer: torch.optim.Optimizer, config: ScheduleConfig, total_steps: int, thaw: Thaw = NEVER_FROZEN
) -> LambdaLR:
    """Build the schedule of all groups; groups whose name starts with `backbone` wait for the heads.

    Step it once per optimizer step, and do not hand it to `accelerator.prepare`, which would step it once
    per process.

    Args:
        thaw: blocks that stand still at first; their rate is 0 until their step, then they warm up.
    """
    head_end = round(config.head_warmup * total_steps)
    warmup = round(config.backbone_warmup * total_steps)

    def factor_of(group_name: str) -> Callable[[int], float]:
        start, end = 0, head_end
        if group_name.startswith("backbone"):
            start = max(head_end, thaw_step(group_name, thaw))
            end = start + warmup
        return lambda step: lr_factor(step, total_steps, start, end, config.poly_power)

    return LambdaLR(optimizer, [factor_of(str(group["name"])) for group in optimizer.param_groups])


def thaw_step(group_name: str, thaw: Thaw) -> int:
    """Return the step from which a group of the optimizer trains (see `trainer.optim.group_parameters`)."""
    place, _, block = group_name.removeprefix("backbone.").partition(".")
    if place == "embed":
        return max(thaw.steps, default=0)
    index = int(block) if place == "blocks" else len(thaw.steps)
    return thaw.steps[index] if index < len(thaw.steps) else 0


def obey_probability(step: int, total_steps: int, block: int, num_blocks: int, power: float = 0.9) -> float:
    """Return the probability that a query of a joint block still obeys its mask at `step`.

    The run is cut into num_blocks + 2 equal phases. Block j obeys until phase j + 1 begins, is released
    during it as (1 − progress) ** power, and never obeys after it.

    Args:
        block: j in 0..num_blocks − 1, the first joint block first.

    Source: EoMT's mask annealing; equal phases as in LightlyTrain, which reproduces the step numbers of
    EoMT-L's Cityscapes configuration (3317, 6634, 9951, 13268, 16585 of 19900 steps).
    """
    phase = total_steps / (num_blocks + 2)
    progress = (step - (block + 1) * phase) / phase
    if progress <= 0:
        return 1.0
    return (1.0 - progress) ** power if progress < 1 else 0.0


def draw_released(
    config: ScheduleConfig,
    step: int,
    total_steps: int,
    num_blocks: int,
    num_queries: int,
    generators: Sequence[torch.Generator],
) -> Bool[Tensor, "L B Q"] | None:
    """Draw which queries ignore their mask in this step; None without masked attention.

    Args:
        generators: one per image, so that the draw does not depend on how a batch is cut.
    """
    if config.masked_attention == "never":
        return None
    device = generators[0].device
    if config.masked_attention == "always":
        obeys = [1.0] * num_blocks
    else:
        obeys = [obey_probability(step, total_steps, j, num_blocks) for j in range(num_blocks)]
    drawn = torch.stack(
        [torch.rand(num_blocks, num_queries, generator=g, device=device) for g in generators], dim=1
    )  # (L, B, Q)
    return drawn >= torch.tensor(obeys, device=device)[:, None, None]
