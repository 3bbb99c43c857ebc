"""Steps whose loss or gradient is no number: found by all ranks alike, named, skipped if asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from shards.errors import ReportedError
from trainer.agreement import raise_together


class DivergenceError(ReportedError, FloatingPointError):
    """The loss, a gradient or a weight is NaN or infinite."""

    exit_code = 70  # EX_SOFTWARE


@dataclass(frozen=True)
class BadStep:
    """What of a step is not finite; the same on every rank."""

    terms: tuple[str, ...]
    """Loss terms that are NaN or infinite on some rank."""
    grad_norm: float
    values: Mapping[str, float]
    """Every term's value over all ranks."""

    def describe(self) -> str:
        """Say what is not finite, and what the other terms were."""
        shown = ", ".join(f"{name} {value:.4g}" for name, value in self.values.items())
        blamed = f"loss terms not finite: {', '.join(self.terms)}" if self.terms else "all loss terms finite"
        return f"gradient norm is {self.grad_norm}; {blamed}; {shown}"


def find_bad_step(accelerator: Accelerator, sums: Mapping[str, Tensor], grad_norm: float) -> BadStep | None:
    """Say what of a step is NaN or infinite on any rank; None for a good step. All ranks call it.

    A gradient that overflowed in fp16 passes: the scaler leaves out the update by itself, and halves its
    scale. Not so a term, which is not scaled, nor a gradient at a scale of 1 or less, which scaling cannot
    have spoilt.

    Args:
        sums: this rank's loss terms.
        grad_norm: before clipping, over all ranks.
    """
    bad = torch.stack([~torch.isfinite(value) for value in sums.values()]).float()
    bad = accelerator.reduce(bad.to(accelerator.device), reduction="sum")
    terms = tuple(name for name, count in zip(sums, bad.tolist(), strict=True) if count)
    scaler = accelerator.scaler
    overflow = scaler is not None and scaler.get_scale() > 1
    if not terms and (math.isfinite(grad_norm) or overflow):
        return None
    totals = accelerator.reduce(dict(sums), reduction="sum")
    return BadStep(terms, grad_norm, {name: float(value) for name, value in totals.items()})


def drop_step(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    bad: BadStep,
    step: int,
    keys: Sequence[str],
    *,
    may: bool,
) -> str:
    """Throw a bad step's gradients away and return what to say of it; weights and optimizer stay.

    All ranks call it.

    Args:
        step: optimizer step, counted from 0, that was about to be taken.
        keys: of this rank's samples.
        may: False where no more bad steps may be skipped.

    Raises:
        DivergenceError: `may` is False.
    """
    everyone = gather_object(list(keys))
    told = f"step {step}: {bad.describe()}; samples {', '.join(everyone)}"
    if not may:
        raise_together(accelerator, DivergenceError(told))
    if accelerator.scaler is not None:
        accelerator.scaler.update()  # it has looked at these gradients, and waits for the end of their step
    optimizer.zero_grad()
    return told
