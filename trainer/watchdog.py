"""A watchdog over the steps of a run: one that does not end is told, with all stacks, and left with 75."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import psutil

from trainer.config import STOPPED

FACTOR = 2.5
"""A step hangs after this many times the median of those before it."""
FEWEST, MOST = 3, 101
"""Steps that a median is made of; before the fewest none hangs."""
GRACE_S = 2.0
"""Time for the watchdogs of the other ranks to tell theirs: a rank that leaves takes them along."""
COMPILING = ("_dynamo/convert_frame.py", "_inductor/graph.py", "_inductor/async_compile.py")
"""Files of torch that a thread is in while it compiles, which may also be in the middle of a run."""


class Watchdog:
    """Watches the steps of this rank while it is entered.

    Its thread starts behind the first step: loader workers are forked before.

    Each rank has its own, and no talk is needed: where one hangs, all wait for it, so all tell their stacks.
    The file system may be what hangs, so standard error comes first. Time in which the process itself stood
    still, as when Slurm suspends its job, does not count.
    """

    def __init__(self, patience_s: float = 0.0, name: str = "", log: Path | None = None) -> None:
        """Take the least time that counts as hanging, 0: never; a name for this rank; a file to append to."""
        self._patience_s, self._name, self._log = patience_s, name, log
        self._since: float | None = None  # None: nothing is watched
        self._steps: deque[float] = deque(maxlen=MOST)
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self) -> None:
        """Note that a step has ended; the first one is not watched."""
        with self._lock:
            now = time.monotonic()
            if self._since is not None:
                self._steps.append(now - self._since)
            self._since = now
            if self._patience_s and self._thread.ident is None and not self._ended.is_set():
                self._thread.start()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Watch nothing within a block, and begin anew behind it."""
        with self._lock:
            watched, self._since = self._since is not None, None
        yield
        with self._lock:
            self._since = time.monotonic() if watched else None

    def _watch(self) -> None:
        tick = min(1.0, self._patience_s / 20)
        before = time.monotonic()
        while not self._ended.wait(tick):
            now = time.monotonic()
            with self._lock:
                if self._since is not None and now - before > 2 * tick + 0.5:
                    self._since += now - before - tick
                before = now
                waited = now - self._since if self._since is not None else 0.0
                median = statistics.median(self._steps) if len(self._steps) >= FEWEST else None
            if median is not None and waited > max(self._patience_s, FACTOR * median) and not _is_compiling():
                self._leave(f"no step ended for {waited:.1f} s, and the median step takes {median:.2f} s")

    def _leave(self, reason: str) -> NoReturn:
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            stacks = file.read().decode(errors="replace")
        told = f"error: {self._name}: {reason}; it leaves with 75, --resume continues; its stacks:\n{stacks}"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, told.encode())
        writer = threading.Thread(target=self._append, args=(told,), daemon=True)
        writer.start()
        time.sleep(GRACE_S)  # and no longer for a log that cannot be written
        for child in psutil.Process().children(recursive=True):  # loader workers, stopped ones too
            with contextlib.suppress(psutil.Error):
                child.kill()
        os._exit(STOPPED)

    def _append(self, told: str) -> None:
        with contextlib.suppress(OSError):
            if self._log is not None:
                descriptor = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.write(descriptor, told.encode())


def _is_compiling() -> bool:
    for frame in sys._current_frames().values():
        caller = frame
        while caller is not None:
            if caller.f_code.co_filename.endswith(COMPILING):
                return True
            caller = caller.f_back  # type: ignore[assignment]
    return False
