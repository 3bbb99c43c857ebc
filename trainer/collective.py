"""Collective checks: if one rank fails, all exit with its code; finite steps, equal weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor, distributed, nn

from shards.errors import InputError, ReportedError, StorageError
from trainer.sharding import is_sharded, local

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
"""What a full disk is to Python, to torch and to safetensors."""


def raise_together(accelerator: Accelerator, error: ReportedError | None) -> None:
    """Wait for all ranks, and leave on every one of them if any has an error.

    A rank that left alone would have the others wait for it in their next exchange. The first rank with an
    error raises it; the others leave with its exit code and without a word, so that it is said once.
    """
    own = [0 if error is None else error.exit_code]
    codes: list[int] = gather_object(own) if accelerator.num_processes > 1 else own
    first = next((rank for rank, code in enumerate(codes) if code), None)
    if error is not None and first == accelerator.process_index:
        raise error
    if first is not None:
        raise SystemExit(codes[first])


def require_agreement(accelerator: Accelerator, what: str, value: str) -> None:
    """Check that all ranks see the same, which they do not where their machines do not share a folder."""
    values: list[str] = gather_object([value]) if accelerator.num_processes > 1 else [value]
    for rank, seen in enumerate(values):
        if seen != values[0]:
            message = f"{what}: process 0 sees {values[0]}, process {rank} sees {seen}; all must share it"
            raise_together(accelerator, InputError(message))


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """Run a block, then wait for all ranks; if a ReportedError ended it on any, all leave."""
    error: ReportedError | None = None
    try:
        yield
    except ReportedError as reported:
        error = reported
    raise_together(accelerator, error)


@contextmanager
def writing(accelerator: Accelerator, what: str) -> Iterator[None]:
    """Run a block that writes files as `together` does.

    One of `WRITE_ERRORS` becomes a StorageError: `what`, and the reason.
    """
    with together(accelerator):
        try:
            yield
        except ReportedError:
            raise
        except WRITE_ERRORS as error:
            raise StorageError(f"{what}: {explain_failure(error)}") from error


def explain_failure(error: Exception) -> str:
    """Say in one line why something could not be written."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class DivergenceError(ReportedError, FloatingPointError):
    """The loss, a gradient or a weight is NaN or infinite."""

    exit_code = 70  # EX_SOFTWARE


class RanksDifferError(ReportedError, RuntimeError):
    """Two ranks hold different weights: they train two models, and only one of them would be saved."""

    exit_code = 70  # EX_SOFTWARE, as for a divergence: what is in memory is of no use


def find_bad_step(accelerator: Accelerator, sums: Mapping[str, Tensor], grad_norm: float) -> str:
    """Say what of a step is NaN or infinite on any rank; empty for a good step. All ranks call it.

    A gradient that overflowed in fp16 passes: the scaler leaves out the update by itself, and halves its
    scale. Not so a term, which is not scaled, nor a gradient at a scale of 1 or less, which scaling cannot
    have spoilt. `sums` are this rank's terms, `grad_norm` is that before clipping, over all ranks.
    """
    bad = torch.stack([~torch.isfinite(value) for value in sums.values()]).float()
    bad = accelerator.reduce(bad.to(accelerator.device), reduction="sum")
    terms = [name for name, count in zip(sums, bad.tolist(), strict=True) if count]
    scaler = accelerator.scaler
    overflow = scaler is not None and scaler.get_scale() > 1
    if not terms and (math.isfinite(grad_norm) or overflow):
        return ""
    totals = accelerator.reduce(dict(sums), reduction="sum")
    shown = ", ".join(f"{name} {float(value):.4g}" for name, value in totals.items())
    blamed = f"loss terms not finite: {', '.join(terms)}" if terms else "all loss terms finite"
    return f"gradient norm is {grad_norm}; {blamed}; {shown}"


def drop_step(accelerator: Accelerator, optimizer: torch.optim.Optimizer, message: str, *, may: bool) -> None:
    """Throw a bad step's gradients away; weights and optimizer stay. All ranks call it.

    Where no more bad steps `may` be skipped, end in a DivergenceError with `message`.
    """
    if not may:
        raise_together(accelerator, DivergenceError(message))
    if accelerator.scaler is not None:
        accelerator.scaler.update()  # it has looked at these gradients, and waits for the end of their step
    optimizer.zero_grad()


def require_sound_weights(accelerator: Accelerator, model: nn.Module, step: int) -> None:
    """Check that every parameter is finite and bit by bit the same on all ranks. All ranks call it.

    Ranks start from the same weights and add the same averaged gradients, so nothing makes them differ but a
    fault: memory, a driver, GPUs of two kinds, code that draws differently per rank. A parameter that is cut
    over the ranks exists once, and must be finite only. Take the model out of DistributedDataParallel before.
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
    differs = (largest[1] != -largest[2]).tolist()
    different = [name for name, d, cut in zip(names, differs, sharded, strict=True) if d and not cut]
    error: ReportedError | None = None
    if broken:
        error = DivergenceError(f"step {step}: {_name(broken)} NaN or infinite; not saved")
    elif different:
        ranks = f"all {accelerator.num_processes} processes"
        error = RanksDifferError(f"step {step}: {_name(different)} not the same on {ranks}; not saved")
    raise_together(accelerator, error)


def checksum(value: Tensor) -> Tensor:
    """Add up the bits of a tensor as whole numbers (modulo 2^64): exact, whatever the order of the sum."""
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return value.contiguous().view(bits[value.element_size()]).sum(dtype=torch.int64)


def _name(names: list[str]) -> str:
    more = f" and {len(names) - 1} more parameters" if len(names) > 1 else ""
    return f"{names[0]}{more} {'are' if more else 'is'}"
