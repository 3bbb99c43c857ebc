"""Texts of errors are one printable line of bounded length."""

from __future__ import annotations

import subprocess
import sys

import pytest

from shards.errors import MOST_CHARACTERS, InputError, StorageError, shorten


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("straße, 中: ok", "straße, 中: ok"),
        ("a\nerror: forged", r"a\nerror: forged"),
        ("\x1b[31mred\r\t", r"\x1b[31mred\r\t"),
        ("\u202egpj.exe \udcff", r"\u202egpj.exe \udcff"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert str(InputError(text)) == str(StorageError(text)) == shown


def test_a_long_text_is_cut() -> None:
    assert len(str(InputError("x" * 10**6))) == MOST_CHARACTERS + 4
    assert len(shorten([["x" * 10**6] * 10] * 10**5)) < 10_000


def test_a_program_prints_one_line_whatever_its_arguments_hold() -> None:
    command = [sys.executable, "-m", "jobs.doctor", "shards", "/gone\nerror: forged\x1b[2J"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.rstrip("\n").isprintable()
