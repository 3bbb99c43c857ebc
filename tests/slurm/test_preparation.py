"""On a real Slurm: shards written by an array are those of one process, byte for byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from jobs.prepare import main
from slurm.tasks import read_state

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def write_frames(root: Path) -> Path:
    """Six Cityscapes frames in the official layout."""
    for part in ("leftImg8bit", "gtFine"):
        (root / part / "train" / "aachen").mkdir(parents=True)
    for index in range(6):
        image = np.random.default_rng(index).integers(0, 256, (32, 64, 3)).astype(np.uint8)
        stem = f"train/aachen/aachen_{index:06d}_000019"
        cv2.imwrite(str(root / "leftImg8bit" / f"{stem}_leftImg8bit.png"), image)
        cv2.imwrite(str(root / "gtFine" / f"{stem}_gtFine_labelIds.png"), np.full((32, 64), 7, np.uint8))
    return root


def test_an_array_writes_the_shards_of_one_process(cluster, tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "raw")
    words = ["cityscapes", "--root", str(frames), "--splits", "train", "--workers", "1"]
    main([*words, "--out", str(tmp_path / "alone")])
    sweep = {
        "name": "prepare",
        "out": str(tmp_path / "sweeps"),
        "preparation": {"arguments": [*words, "--out", str(tmp_path / "shared")], "tasks": 2},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    command = [sys.executable, "-m", "jobs.submit", str(tmp_path / "sweep.yaml")]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert answer.returncode == 0, answer.stderr
    cluster.until(lambda: not cluster.run("squeue", "-h"), 200, "the end of all tasks")
    control = tmp_path / "sweeps" / "prepare" / "cells"
    assert [read_state(control / f"task-{i}", "prepare").state for i in (0, 1)] == ["done", "done"]
    alone, shared = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("alone", "shared")
    )
    assert shared == alone
