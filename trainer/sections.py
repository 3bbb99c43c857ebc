"""Sections of a run's configuration that the trainer owns, without what takes seconds to load."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from models.config import Precision
from shards.errors import InputError

Sharding = Literal["none", "fsdp2"]
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


EOMT_BATCH = 16
WARMUPS = {"eomt": (500, 1000), "eomt-dinov3": (2000, 3000)}
"""Preset -> steps of `EOMT_BATCH` images in which heads, and then the backbone, warm up; whatever the run's
length.

Source: `warmup_steps` of https://github.com/tue-mps/eomt, configs/dinov2 and configs/dinov3."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning-rate and mask-annealing schedules, as fractions of the run."""

    preset: Literal["", "eomt", "eomt-dinov3"] = ""
    """eomt: upstream's own numbers, whatever the run's length: heads warm up for 500 steps of 16 images, then
    the backbone for 1000 (of another global batch, for as many images), power 0.9, annealing eomt; for
    DINOv3, eomt-dinov3: 2000 and 3000 steps, annealing eomt-dinov3, and the optimiser's as upstream. The
    settings of the schedule it stands for keep their defaults then."""
    head_warmup: float = 0.025
    """Share of the run in which queries and heads warm up linearly, while the backbone stands still."""
    backbone_warmup: float = 0.05
    """Share of the run, after head_warmup, in which the backbone warms up linearly."""
    poly_power: float = 0.9
    """After its warm-up a rate falls to 0 as (1 - progress) ** poly_power."""
    masked_attention: Literal["annealed", "never"] = "annealed"
    """annealed: each joint block's queries are masked at first and unmasked one phase after the other, and
    validation sees them as they are then; never: none is masked, and only the final prediction is
    supervised."""
    annealing: Literal["equal", "eomt", "eomt-dinov3"] = "equal"
    """For annealed, when the queries of the joint blocks are unmasked. equal: one block after the other, in
    phases of 1 / (blocks + 2) of the run; eomt: each takes a sixth of it, the first from 1/6 on, the last
    from 4/6 on, the others evenly between, so that they overlap unless there are four (as upstream);
    eomt-dinov3: the same, but the first from the start on, for as long as backbone_warmup."""

    def __post_init__(self) -> None:
        for name in ("head_warmup", "backbone_warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"schedule.{name} must be in [0, 1), got {getattr(self, name)}")
        if self.head_warmup + self.backbone_warmup > 1:
            given = f"must be at most 1, got {self.head_warmup} + {self.backbone_warmup}"
            raise InputError(f"schedule.head_warmup + schedule.backbone_warmup {given}")
        if self.poly_power <= 0:
            raise InputError(f"schedule.poly_power must be above 0, got {self.poly_power}")
        fixed = ("head_warmup", "backbone_warmup", "poly_power", "annealing") if self.preset else ()
        for name in fixed:
            value = getattr(self, name)
            if value != type(self).__dataclass_fields__[name].default:
                fixed_by = f"schedule.preset {self.preset} fixes it; leave one out"
                raise InputError(f"schedule.{name}: got {value}, but {fixed_by}")

    def resolved(self, total_steps: int, global_batch: int) -> ScheduleConfig:
        """Turn a preset's numbers into fractions of a run, whose steps are `global_batch` images."""
        if not self.preset:
            return self
        head, backbone = (steps * EOMT_BATCH / global_batch for steps in WARMUPS[self.preset])
        if head + backbone > total_steps:
            takes = f"takes {head + backbone:g} steps of {global_batch} images to warm up"
            remedy = "without it, warm-ups are fractions of any run"
            raise InputError(f"schedule.preset: {self.preset} {takes}, loop.steps is {total_steps}; {remedy}")
        head, backbone = head / total_steps, backbone / total_steps
        return replace(self, preset="", annealing=self.preset, head_warmup=head, backbone_warmup=backbone)


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Averaged weights; where they are kept, validation, `best/`, jobs.evaluate and jobs.export read them."""

    decay: float = 0.0
    """Share of the average that stays at each step, such as 0.999: it looks back over about 1 / (1 - decay)
    steps. 0: no average. It takes 4 more bytes of memory per number that trains."""
    warmup: bool = True
    """Let the average look back less at first: after t steps the decay is at most (1 + t) / (10 + t)."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise InputError(f"ema.decay must be in [0, 1), got {self.decay}")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, how large, how often."""

    steps: int = 20000
    """Optimizer steps of the whole run; schedules follow it."""
    grad_accum: int = 1
    """Micro-batches per step and process; the global batch is data.batch_size * grad_accum * processes."""
    precision: Precision = "float32"
    """float32, or autocast to bf16 or fp16 (fp16 with loss scaling, GPU only)."""
    compile: bool = False
    """Run the model through torch.compile: the same results to rounding; minutes more at the start."""
    activation_checkpointing: bool = False
    """Keep nothing but the input of each block for the backward pass, which runs the block again: the same
    gradients in less memory, for one more forward pass of the blocks that train."""
    fit_memory: bool = False
    """Before the first step, try data.batch_size in the GPU's memory, and halve it while it does not fit;
    loop.grad_accum grows instead, so that the global batch stays. config.yaml keeps what fits."""
    profile: int = 0
    """Number of steps, after the first three, recorded as a trace in the run's profile/; 0: none."""
    sharding: Sharding = "none"
    """none: every process holds the whole model (DDP). fsdp2: weights, gradients and optimizer are cut over
    the processes, block by block, for models that one GPU does not hold with their optimizer; checkpoints
    stay the same, and a run may be resumed with the other."""
    max_grad_norm: float = 0.01
    """Gradients are clipped to this norm, as EoMT does; 0 switches clipping off."""
    log_every: int = 20
    """Steps between log lines and TensorBoard points."""
    eval_every: int = 0
    """Steps between validations (see `validation`); 0: never."""
    save_every: int = 1000
    """Steps between checkpoints; the last step always saves."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints that stay; 0 keeps all."""
    time_limit: str = ""
    """Save and leave with exit code 75 before this time is over: minutes, H:MM:SS or days-H:MM:SS since the
    program's start, or slurm for the end that Slurm has set. A step and a save, as measured, must still fit
    in. Empty: no limit."""
    hang_s: float = 300.0
    """Seconds after which a step hangs, or 2.5 times the median step if that is longer: the stacks of all
    processes go to the log, and the run leaves with 75. 0: never. The first step, compilation, validation
    and saves are not watched."""
    skip_bad_steps: int = 0
    """Number of steps of the whole run whose loss or gradient may be NaN or infinite: their samples are left
    out, weights, optimizer and schedule stay. One more ends the run with exit code 70."""

    def __post_init__(self) -> None:
        if self.sharding == "fsdp2" and (self.precision == "fp16" or self.compile):
            allowed = "loop.precision float32 or bf16 and without loop.compile"
            raise InputError(f"loop.sharding: fsdp2 goes with {allowed}")
        for name in ("steps", "grad_accum", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"loop.{name} must be at least 1, got {getattr(self, name)}")
        parse_limit("" if self.time_limit == "slurm" else self.time_limit)
        others = ("max_grad_norm", "skip_bad_steps", "hang_s")
        for name in ("eval_every", "keep_checkpoints", "profile", *others):
            if getattr(self, name) < 0:
                raise InputError(f"loop.{name} must be 0 or more, got {getattr(self, name)}")


def parse_limit(setting: str) -> float:
    """Read a time limit in minutes or as [days-]H:MM:SS, and return seconds; 0 for the empty text."""
    if not setting:
        return 0.0
    parts = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", setting)
    if parts:
        days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
        limit = float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    else:
        limit = 60 * float(setting) if re.fullmatch(r"\d+(\.\d+)?", setting) else 0.0
    if limit <= 0:
        allowed = "minutes above 0, H:MM:SS, days-H:MM:SS or slurm are allowed"
        raise InputError(f"loop.time_limit: got {setting!r}; {allowed}")
    return limit
