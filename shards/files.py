"""Files and folders that are complete or absent, and a lock that only a living process can hold."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import InputError


def require_free(folder: Path, setting: str = "--out") -> None:
    """Check that `folder` does not exist or is an empty folder.

    Raises:
        InputError: something is already there; nothing existing is overwritten.
    """
    try:
        is_folder = folder.is_dir()
    except OSError as error:  # such as a name that is too long
        raise InputError(f"{setting} {folder}: {error.strerror or error}") from None
    if is_folder:
        if any(folder.iterdir()):
            raise InputError(
                f"{setting} {folder}: the folder already holds files; choose another or empty it"
            )
    elif folder.exists():
        raise InputError(f"{setting} {folder}: is a file; a new or empty folder is needed")


def make_folder(folder: Path, setting: str = "--out") -> None:
    """Create `folder` and its parents where they are missing.

    Raises:
        InputError: it cannot be created: a file is in the way, it is read-only, or a name is too long.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{setting} {folder}: cannot be created: {error.strerror or error}") from None


@contextmanager
def staged_folder(folder: Path, setting: str = "--out") -> Iterator[Path]:
    """Yield a temporary folder beside `folder` that becomes `folder` when the block ends well.

    On any exception, Ctrl-C included, the temporary folder is removed and `folder` stays as it was. A
    process killed outright leaves `.NAME.partial-*` beside it, which nothing reads and anybody may delete.

    Raises:
        InputError: `folder` already holds files.
    """
    folder = folder.absolute()
    require_free(folder, setting)
    make_folder(folder.parent, setting)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        yield staging
        staging.chmod(0o755)
        if folder.is_dir():
            folder.rmdir()  # empty, or this fails and nothing is lost
        staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `path` through a temporary name in the same folder, replacing what is there."""
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


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
