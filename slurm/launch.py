"""Processes of one command: one srun, or every rank started here."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence

GRACE_S = 60.0
"""How long the other ranks may go on after one has failed."""


class Launch:
    """A command that runs, as one process or as several ranks.

    Args:
        command: the words of one rank.
        launcher: words that start all ranks, such as srun and its options; empty: they are started here.
        num_ranks: how many to start here.
        keep_open: descriptor that every process inherits.
    """

    def __init__(
        self, command: Sequence[str], launcher: Sequence[str], num_ranks: int, *, keep_open: int
    ) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        environments = [dict(os.environ)]
        if not launcher and num_ranks > 1:
            port = find_free_port()
            environments = [{**os.environ, **rank_variables(i, num_ranks, port)} for i in range(num_ranks)]
        for environment in environments:
            process = subprocess.Popen(
                [*launcher, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=(keep_open,),
                start_new_session=not launcher,  # Ctrl-C is ours to pass on
            )
            self._processes.append(process)

    def ask_to_stop(self, number: int) -> None:
        """Send a signal to every process that still runs."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def wait(self) -> int:
        """Wait for all; return 0, or the first exit code that is not (128 + n after signal n).

        A rank that fails leaves the others waiting for it, so they are ended after a minute.
        """
        failed, deadline = 0, 0.0
        while True:
            codes = [process.poll() for process in self._processes]
            failed = failed or next((code for code in codes if code), 0)
            if None not in codes:
                return failed if failed >= 0 else 128 - failed
            if failed and not deadline:
                deadline = time.monotonic() + GRACE_S
            if deadline and time.monotonic() > deadline:
                self.ask_to_stop(signal.SIGKILL)
            time.sleep(0.05)


def rank_variables(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """Return what tells one of several processes of this machine who it is, as torchrun does."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def find_free_port() -> int:
    """Return a port of this machine that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
