"""TensorBoard files that cannot be written: warned of once, and never the end of a run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator

from trainer.agreement import explain_failure

logger = logging.getLogger(__name__)

WRITER_THREAD = "_AsyncWriterThread"
"""TensorBoard's thread that writes; the main thread gets its exception with the next event."""


class ForgivingEventFile:
    """Hands events on to a TensorBoard event file until that fails; drops them from then on."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._failed = False

    def add_event(self, event: Any) -> None:
        """Write an event."""
        self._attempt(lambda: self._file.add_event(event))

    def flush(self) -> None:
        """Bring what is waiting to the disk."""
        self._attempt(self._file.flush)

    def close(self) -> None:
        """Flush and close."""
        self._attempt(self._file.close)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _attempt(self, action: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            action()
        except OSError as error:
            self._failed = True
            logger.warning(
                "%s: cannot be written; the run goes on without TensorBoard: %s",
                self._file.get_logdir(),
                explain_failure(error),
            )


def forgive_write_failures(accelerator: Accelerator) -> None:
    """Let a full disk end TensorBoard's files, not the run. Checkpoints say by themselves if they fail."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            writer = tracker.writer.file_writer
            writer.event_writer = ForgivingEventFile(writer.event_writer)
            threading.excepthook = _without_traceback(threading.excepthook)


def _without_traceback(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def handle(failure: Any) -> None:
        if not (type(failure.thread).__name__ == WRITER_THREAD and isinstance(failure.exc_value, OSError)):
            hook(failure)

    return handle
