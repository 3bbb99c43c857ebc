"""The exit codes of a fine-tuning stand in one table of the documents, and in `--help`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.finetune import STOPPED, main
from shards.errors import InputError, ReportedError, StorageError
from slurm import cell
from trainer.collective import DivergenceError, RanksDifferError

TRAINING = Path(__file__).resolve().parents[2] / "docs" / "training.md"
ERRORS: tuple[type[ReportedError], ...] = (InputError, StorageError, DivergenceError, RanksDifferError)
CODES = {0, 1, STOPPED, 143, 138, *(error.exit_code for error in ERRORS)}


def test_every_exit_code_is_in_the_table():
    rows = re.findall(r"^\| ([\d, ]+) \|", TRAINING.read_text(), re.MULTILINE)
    assert {int(code) for row in rows for code in row.split(",")} == {*CODES, 130}
    assert cell.STOPPED == STOPPED


def test_every_exit_code_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    codes = told.partition("Exit codes: ")[2].partition("More in")[0]
    assert {int(code) for code in re.findall(r"\d+", codes)} == CODES
