"""The meeting of the processes of one program: what their launcher says of them, torch's process group."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta

from torch import distributed

from shards.errors import InputError
from shards.files import this_process

MEETING = timedelta(minutes=5)
"""Time in which all processes must have come. Torch's own half hour kept those waiting whose launcher had
been killed while they started."""
NUMBERS = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")


def read_launch(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return rank and number of processes as torchrun's variables say them; 0 and 1 without any.

    An InputError names the variable that is no number, or that contradicts another.
    """
    numbers = {}
    for name in NUMBERS:
        text = environment.get(name, "0")
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise InputError(f"{name}: got {text!r}; a whole number is needed, as launchers set it")
        numbers[name] = int(text)
    rank, count = numbers["RANK"], numbers["WORLD_SIZE"]
    if "WORLD_SIZE" in environment and not count:
        raise InputError("WORLD_SIZE: got 0; there is at least one process")
    count = max(count, 1)
    here = numbers["LOCAL_WORLD_SIZE"] or count
    for name, limit, of in (("RANK", count, "WORLD_SIZE"), ("LOCAL_RANK", here, "LOCAL_WORLD_SIZE")):
        if numbers[name] >= limit:
            raise InputError(f"{name} is {numbers[name]} and {of} {limit}; ranks are 0..{limit - 1}")
    if here > count:
        raise InputError(f"LOCAL_WORLD_SIZE is {here}, more than WORLD_SIZE, {count}")
    if numbers["MASTER_PORT"] > 65535:
        raise InputError(f"MASTER_PORT: got {numbers['MASTER_PORT']}; ports are 1..65535")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if count > 1 and missing:
        remedy = "torchrun, accelerate launch and jobs.submit set it"
        raise InputError(f"launch of {count} processes: {missing[0]} is not set; {remedy}")
    return rank, count


def meet(backend: str) -> None:
    """Wait for the other processes of this launch, and join torch's process group with them, once.

    An InputError says that the port is in use, that two processes have one rank, or that not all came.
    """
    if distributed.is_initialized():
        return
    (rank, count), port = read_launch(), os.environ["MASTER_PORT"]
    try:
        store, *_ = next(distributed.rendezvous("env://", timeout=MEETING))
        first = store.compare_set(f"process {rank}", "", this_process()).decode()
        if first != this_process():
            raise InputError(f"RANK {rank} is that of {first} and of {this_process()}; each needs its own")
        store.wait([f"process {other}" for other in range(count)], MEETING)
    except distributed.DistError as error:
        if "EADDRINUSE" in str(error):
            used = f"MASTER_PORT {port} is in use on this machine, perhaps by another training"
            raise InputError(f"{used}; take another, such as torchrun --master_port") from None
        reason = " ".join(str(error).split())[:200]
        place = f"{os.environ['MASTER_ADDR']}:{port} within {MEETING.total_seconds() / 60:.0f} minutes"
        raise InputError(f"launch of {count} processes: not all met at {place}: {reason}") from None
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count)
