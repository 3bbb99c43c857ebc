"""A lock that only a living process can hold."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LockTaken(RuntimeError):
    """Somebody else holds the lock; the text says who."""


def this_process() -> str:
    """Name this process and its machine, as the owner of a lock."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def hold_lock(path: Path, *, wait_s: float, owner: str) -> Iterator[int]:
    """Hold the lock of file `path`, and yield its descriptor.

    The kernel frees the lock when the last process that has the descriptor open is gone, however it went.
    Give the descriptor to child processes that must not be doubled either. The file stays; only the lock
    counts.

    It is `flock`: on one machine it always holds; over NFS from version 4 on (or with lockd), which frees the
    locks of a machine that vanished after a lease of a minute or two, so wait that long; on Lustre with the
    mount option flock. Mounts with `local_lock` or `nolock` lock within one machine only.

    Args:
        wait_s: how long to try.
        owner: written into the file, for the message of who comes second.

    Raises:
        LockTaken: somebody else held it all the time.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + wait_s
        while not _try_lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                holder = path.read_text(encoding="utf-8", errors="replace").strip()
                raise LockTaken(f"{path} is held by {holder or 'another process'}")
            time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner.encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Say whether somebody holds the lock of file `path`."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
