"""Run of a program to its exit code: one line for what its user can mend, never raw control characters."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from tqdm.contrib.logging import logging_redirect_tqdm

from shards.cores import keep_memory, wait_asleep
from shards.errors import ReportedError, as_reported, printable

logger = logging.getLogger(__name__)


def run_program(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a program to its exit code.

    0 done; what a `ReportedError` says, after one line with its text, such as 2 for a user's mistake and 74
    for a fault of storage; 130 Ctrl-C; 141 nobody reads its output; 143 SIGTERM; what the program itself
    chose by `sys.exit`; 1 anything else. The codes of a fine-tuning are listed in docs/training.md.
    """

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)  # an ordinary exit: half-written folders are removed on the way out

    wait_asleep()
    keep_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?" for a dash
    signal.signal(signal.SIGTERM, leave)
    threading.excepthook = _report_thread
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        with logging_redirect_tqdm():
            main(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError):
            _close_output()
            sys.exit(128 + signal.SIGPIPE)
        reported = error if isinstance(error, ReportedError) else as_reported(error)
        if reported is None:
            raise
        _close_output()
        print(f"error: {printable(str(reported))}", file=sys.stderr)
        sys.exit(reported.exit_code)
    sys.exit(0)


class _PrintableFormatter(logging.Formatter):
    """Shows what a file's name would do to a terminal, but keeps the line breaks of messages."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def _report_thread(raised: threading.ExceptHookArgs) -> None:
    """Say a fault of storage in one line; whoever waits for the thread is told by its exception."""
    name = raised.thread.name if raised.thread else "a thread"
    reported = as_reported(raised.exc_value, name) if raised.exc_value else None
    if reported is None:
        threading.__excepthook__(raised)
    else:
        logger.warning("%s", reported)


def _close_output() -> None:
    """Write what can be written; the interpreter would complain of the rest when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
