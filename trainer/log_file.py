"""The log file of a run."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.collective import explain_failure

logger = logging.getLogger(__name__)


@contextmanager
def log_file(path: Path | None) -> Iterator[None]:
    """Also write log lines to `path`, appending; None writes nothing (ranks other than the main one).

    A log that cannot be written is warned of once, and the run goes on without.
    """
    try:
        handler = None if path is None else LogFile(path)
    except OSError as error:
        logger.warning("%s: cannot be written; the run goes on without: %s", path, explain_failure(error))
        handler = None
    if handler is None:
        yield
        return
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        handler.stop()


class LogFile(logging.FileHandler):
    """A log file that ends with its first failure instead of printing a traceback for every line."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))

    def handleError(self, record: logging.LogRecord) -> None:
        """Warn of a failed line, and write no more."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.stop()
        logger.warning(
            "%s: cannot be written; the run goes on without: %s", self.baseFilename, explain_failure(error)
        )

    def stop(self) -> None:
        """Close the file, whatever of it is lost, and take no more lines."""
        logging.getLogger().removeHandler(self)
        with contextlib.suppress(OSError):  # what could not be written before cannot be now
            self.close()
