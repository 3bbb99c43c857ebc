"""Cores and GPUs of this machine: how many are ours, how threads wait for each other, and freed memory."""

from __future__ import annotations

import ctypes
import os

THREADS = "OMP_NUM_THREADS"
"""Variable by which a user says how many threads a process computes with."""
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""Of glibc's mallopt."""


def count_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_gpus() -> int:
    """Return the number of GPUs that this process may use; loads torch."""
    from torch.cuda import device_count

    return device_count()


def share_cores(processes: int) -> dict[str, str]:
    """Return the variable that gives each process its part of the cores, if several; the user's own wins."""
    if processes == 1 or THREADS in os.environ:
        return {}
    return {THREADS: str(max(1, count_cores() // processes))}


def wait_asleep() -> None:
    """Let OpenMP's threads sleep while they wait, unless the user wants otherwise; before torch is loaded.

    By default they spin for milliseconds: on a machine with other work they burn the share of time in which
    the thread that they wait for would have run.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def keep_memory() -> None:
    """Let glibc keep what tensors and pictures free for the next ones, unless the user tunes it.

    By default each of some size is new memory, which the kernel has to clear page by page: a tenth of a small
    training step, and as much as a resize. What is kept is never more than what was in use at once.
    """
    is_tuned = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if not is_tuned and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, 32 * 2**20)  # the largest that it takes
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
