"""Lines of a long job in a log, and its bar on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time

import pytest

from shards.progress import Progress

PROGRAM = """
import logging
from shards.progress import Progress
from shards.program import run_program

def main(arguments):
    for i in Progress(range(6), desc="RA-21", unit="image", every_s=0):
        if i == 2:
            logging.info("a line in between")

run_program(main)
"""


def test_a_log_gets_a_line_with_done_rate_and_time_to_go(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for _ in Progress(range(5), desc="frames", unit="frame", every_s=0.03):
        time.sleep(0.02)
    assert 2 <= len(caplog.messages) <= 6  # a busy machine takes longer than 0.02 s
    assert re.match(r"frames: \d of 5, \S+ frame/s, 00:00 gone, 00:00 to go", caplog.messages[0])
    assert caplog.messages[-1].startswith("frames: 5 of 5, ")


def test_a_short_job_and_a_process_that_says_nothing_write_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert list(Progress(range(5), desc="frames", unit="frame")) == [0, 1, 2, 3, 4]
    assert sum(1 for _ in Progress(range(5), desc="frames", unit="frame", every_s=0, disable=True)) == 5
    assert caplog.messages == []


def test_time_to_go_follows_the_steps_of_this_start_alone() -> None:
    with Progress(total=3000, initial=2000, desc="steps", unit="step") as progress:
        assert progress.rest() == "?"
        time.sleep(0.05)
        progress.update(10)  # at most 200 a second: 990 take at least 5 s
        minutes, seconds = map(int, progress.rest().split(":"))
    assert 4 <= 60 * minutes + seconds <= 60
    with Progress(total=30, unit="step", disable=True) as hidden:
        hidden.update(10)
        assert hidden.rest() == "?"


def test_a_terminal_gets_a_bar_that_log_lines_do_not_break() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    subprocess.run([sys.executable, "-c", PROGRAM], stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "RA-21: 100%|" in shown
    assert "\ra line in between\r\n" in shown
    assert "to go" not in shown
