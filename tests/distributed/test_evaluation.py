"""Two real processes over gloo evaluate to the files of one, digit for digit."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.evaluate import main
from tests.support.evaluation import write_run, write_test_sets, write_val_shards
from tests.support.forked import run_ranks

pytestmark = pytest.mark.slow


def run(arguments: list[str], folder: Path, ranks: int) -> str:
    """Evaluate in that many processes, and return what they printed."""
    run_ranks(main, arguments, folder, ranks)
    return "".join(path.read_text() for path in sorted(folder.glob("printed-*.txt")))


def written_below(folder: Path) -> list[Path]:
    """List what an evaluation wrote; what it keeps to go on, archives with a date, apart."""
    paths = (path.relative_to(folder) for path in folder.rglob("*.*"))
    return sorted(path for path in paths if path.parts[0] != "cells")


def test_two_processes_write_the_results_of_one(tmp_path: Path) -> None:
    arguments = [
        "--checkpoint", str(write_run(tmp_path)), "--datasets", str(write_test_sets(tmp_path / "sets")),
        "--cityscapes", str(write_val_shards(tmp_path / "val")), "--device", "cpu", "--scores", "RbA",
        "--protocol", "native", "smiyc",
    ]  # fmt: skip
    printed = run([*arguments, "--out", str(tmp_path / "one")], tmp_path / "said" / "one", 1)
    shared = run([*arguments, "--out", str(tmp_path / "two")], tmp_path / "said" / "two", 2)
    assert "RoadAnomaly" not in printed
    assert shared == printed
    names, others = (written_below(tmp_path / folder) for folder in ("one", "two"))
    assert names == others
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert {path.name for path in tmp_path.iterdir()} == {"one", "rba_run", "said", "sets", "two", "val"}
