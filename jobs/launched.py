"""Several processes of one evaluation, as `torchrun` or `accelerate launch` start them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from torch import distributed

from eval.ranks import ALONE, Ranks

Shared = TypeVar("Shared")


@contextmanager
def launched_ranks() -> Iterator[Ranks]:
    """Join the other processes that the launcher announced, over gloo; without a launcher, be alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return

    def wait() -> None:
        distributed.barrier()

    distributed.init_process_group("gloo")
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), wait)
    finally:
        distributed.destroy_process_group()


def share_object(make: Callable[[], Shared], ranks: Ranks) -> Shared:
    """Return on every rank what `make` returns on the first one, which alone calls it."""
    if ranks.count == 1:
        return make()
    boxed = [make() if ranks.is_first else None]
    distributed.broadcast_object_list(boxed, src=0)
    return cast(Shared, boxed[0])


def device_of_rank() -> torch.device:
    """Return this rank's GPU of its machine, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local % torch.cuda.device_count())
