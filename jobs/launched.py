"""Several processes of one evaluation, as `torchrun` or `accelerate launch` start them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import distributed

from eval.ranks import ALONE, Ranks
from shards.staging import staged_folder


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


@contextmanager
def shared_staged_folder(folder: Path, ranks: Ranks) -> Iterator[Path]:
    """Yield the temporary folder of `staged_folder` on every rank; the first one makes and renames it."""
    if ranks.count == 1:
        with staged_folder(folder) as staging:
            yield staging
        return
    if ranks.is_first:
        with staged_folder(folder) as staging:
            distributed.broadcast_object_list([str(staging)], src=0)
            yield staging
            ranks.wait()
    else:
        received: list[str] = [""]
        distributed.broadcast_object_list(received, src=0)
        yield Path(received[0])
        ranks.wait()


def device_of_rank() -> torch.device:
    """Return this rank's GPU of its machine, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local % torch.cuda.device_count())
