"""One run folder, one writer."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from accelerate import Accelerator

from shards.errors import InputError
from slurm.lock import LockTaken, hold_lock, this_process
from trainer.agreement import writing

logger = logging.getLogger(__name__)

LOCK_NAME = "lock"
WAIT_S = 10.0
"""Loader workers outlive a training that was killed by some five seconds, and hold its lock meanwhile."""
LOCKS_NOTHING = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class RunLock:
    """The right to write into a run's folder, held by the main rank until it is gone, however it goes.

    Use as a context manager; it takes nothing before `take`.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self._folder, self._accelerator = folder, accelerator
        self._held = contextlib.ExitStack()
        self._taken = False

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def take(self, check: Callable[[], None]) -> None:
        """Take the lock of a folder that exists; nothing happens if it is held already. All ranks call it.

        Args:
            check: run by the main rank once it has the lock: raises if the folder is not what it was when
                the run was planned.

        Raises:
            InputError: another run holds it, or `check` says so.
            StorageError: the lock file cannot be written.
        """
        if self._taken:
            return
        with writing(self._accelerator, f"{self._folder}: cannot be written"):
            if self._accelerator.is_main_process:
                self._lock()
                check()
        self._taken = True

    def _lock(self) -> None:
        path = self._folder / LOCK_NAME
        try:
            self._held.enter_context(hold_lock(path, wait_s=WAIT_S, owner=this_process()))
        except LockTaken as error:
            raise InputError(
                f"{self._folder}: another run is writing there: {error}; wait for its end, or --name "
                f"starts another"
            ) from None
        except OSError as error:
            if error.errno not in LOCKS_NOTHING:
                raise
            logger.warning(
                "%s: this file system has no locks; see that no second run is started there", self._folder
            )


def is_barely_begun(folder: Path) -> bool:
    """Say whether a run was killed there before it had written anything whole.

    That leaves its lock, and what `write_atomically` had not given its name yet.
    """
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return LOCK_NAME in names and all(name == LOCK_NAME or name.startswith(".config.") for name in names)
