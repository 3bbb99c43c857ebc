"""What must hold for the weights before they are saved: finite, and the same on every rank."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn

from shards.errors import ReportedError
from trainer.agreement import raise_together
from trainer.divergence import DivergenceError
from trainer.sharding import is_sharded, local

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class RanksDifferError(ReportedError, RuntimeError):
    """Two ranks hold different weights: they train two models, and only one of them would be saved."""

    exit_code = 70  # EX_SOFTWARE, as for a divergence: what is in memory is of no use


def require_sound_weights(accelerator: Accelerator, model: nn.Module, step: int) -> None:
    """Check that every parameter is finite and bit by bit the same on all ranks. All ranks call it.

    Ranks start from the same weights and add the same averaged gradients, so nothing makes them differ but a
    fault: memory, a driver, GPUs of two kinds, code that draws differently per rank.

    Args:
        model: without the wrapper of DistributedDataParallel; a parameter that is cut over the ranks exists
            once, and must be finite only.
        step: for the message.

    Raises:
        DivergenceError: a parameter is NaN or infinite on some rank.
        RanksDifferError: a parameter differs.
    """
    names = [name for name, _ in model.named_parameters()]
    sharded = [is_sharded(parameter) for parameter in model.parameters()]
    values = [local(parameter.detach()) for parameter in model.parameters()]
    bad = torch.stack([~torch.isfinite(value).all() for value in values]).long()
    sums = torch.stack([checksum(value) for value in values])
    largest = torch.stack([bad, sums, -sums])
    if accelerator.num_processes > 1:
        distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    broken = [name for name, is_bad in zip(names, largest[0].tolist(), strict=True) if is_bad]
    differing = (largest[1] != -largest[2]).tolist()
    different = [
        name for name, differs, cut in zip(names, differing, sharded, strict=True) if differs and not cut
    ]
    if broken:
        told = f"step {step}: {_name(broken)} NaN or infinite; not saved"
        raise_together(accelerator, DivergenceError(told))
    if different:
        ranks = f"all {accelerator.num_processes} processes"
        told = f"step {step}: {_name(different)} not the same on {ranks}; not saved"
        raise_together(accelerator, RanksDifferError(told))


def checksum(value: Tensor) -> Tensor:
    """Add up the bits of a tensor as whole numbers (modulo 2^64): exact, whatever the order of the sum."""
    return value.contiguous().view(BITS[value.element_size()]).sum(dtype=torch.int64)


def _name(names: list[str]) -> str:
    more = f" and {len(names) - 1} more parameters" if len(names) > 1 else ""
    return f"{names[0]}{more} {'are' if more else 'is'}"
