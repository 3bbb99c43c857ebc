"""Two real processes over gloo evaluate to the files of one, digit for digit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.test_evaluate import write_run, write_test_sets, write_val_shards

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def run(*command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def written_below(folder: Path) -> list[Path]:
    """List what an evaluation wrote; what it keeps to go on, archives with a date, apart."""
    paths = (path.relative_to(folder) for path in folder.rglob("*.*"))
    return sorted(path for path in paths if path.parts[0] != "cells")


def test_two_processes_write_the_results_of_one(tmp_path: Path) -> None:
    arguments = [
        "--checkpoint", str(write_run(tmp_path)), "--datasets", str(write_test_sets(tmp_path / "sets")),
        "--cityscapes", str(write_val_shards(tmp_path / "val")), "--device", "cpu", "--scores", "MSP", "RbA",
        "--protocol", "native", "smiyc",
    ]  # fmt: skip
    printed = run("-m", "jobs.evaluate", *arguments, "--out", str(tmp_path / "one"))
    shared = run(*TORCHRUN, "-m", "jobs.evaluate", *arguments, "--out", str(tmp_path / "two"))
    assert "RoadAnomaly" not in printed
    assert shared == printed
    names, others = (written_below(tmp_path / folder) for folder in ("one", "two"))
    assert names == others
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "rba_run", "sets", "two", "val"]
