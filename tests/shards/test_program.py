"""A program ends with one line and a code for what its user can mend, and with a traceback for the rest."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
import errno, logging, os, sys, threading
from pathlib import Path
from shards.errors import InputError
from shards.files import write_atomically
from shards.program import run_program
"""


def run(body: str, *, stdout: str = "", limit: int | None = None) -> tuple[int, list[str]]:
    """Run a program whose `main` has this body; return its exit code and the lines it complains with."""
    script = f"{HEAD}\ndef main(arguments):\n    {body}\nrun_program(main)"

    def set_limit() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with Path(stdout or os.devnull).open("w") as output:
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            preexec_fn=set_limit,
        )
    return done.returncode, done.stderr.strip().splitlines()


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("raise InputError('a\\x1b[2J\\nerror: forged')", 2, r"error: a\x1b[2J\nerror: forged"),
        ("open('/proc/out', 'x')", 1, None),
        ("sys.exit(os.environ['OMP_WAIT_POLICY'] != 'passive' or 'torch' in sys.modules)", 0, ""),
        ("raise OSError(errno.EROFS, '', '/a')", 74, "error: /a: cannot be read or written: Read-only file "),
        ("os.stat('x' * 300)", 2, "error: xxx"),
        ("raise OSError(errno.ENOENT, '', '/a')", 1, None),
        ("logging.getLogger().warning('a%sb', '\\x1b')", 0, r"a\x1bb"),
        ("raise BrokenPipeError", 141, ""),
    ],
)
def test_one_line_and_a_code(body: str, code: int, line: str | None) -> None:
    left, lines = run(body)
    assert left == code, lines
    if line is None:
        assert lines[0] == "Traceback (most recent call last):"
    else:
        assert len(lines) == bool(line)
        assert "".join(lines).startswith(line)


def test_a_full_standard_output_is_one_line() -> None:
    code, lines = run("print('a' * 100_000)", stdout="/dev/full")
    assert (code, len(lines)) == (74, 1)
    assert lines[0].endswith("No space left on device")


def test_a_full_disk_names_the_file_and_leaves_no_half(tmp_path: Path) -> None:
    code, lines = run(f"write_atomically(Path({str(tmp_path / 'a')!r}), 'x' * 9999)", limit=1000)
    assert code == 74
    assert lines == [f"error: {tmp_path / 'a'}: cannot be read or written: File too large"]
    assert list(tmp_path.iterdir()) == []


def test_a_thread_that_meets_a_full_disk_says_it_in_one_line() -> None:
    write = "lambda: os.write(os.open('/dev/full', os.O_WRONLY), b'a')"
    body = f"t = threading.Thread(target={write}); t.start(); t.join()"
    code, lines = run(body)
    assert (code, len(lines)) == (0, 1)
    assert lines[0].endswith("No space left on device")
