"""The whole chain through the real programs, in miniature."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from jobs.chain import IN_DEMO

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_demo_goes_from_nothing_to_tables_and_pictures(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "jobs.demo", "--out", str(out), "--smoke", "True"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    for name in ("baseline", *IN_DEMO):
        run = out / "runs" / name
        records = json.loads((run / "eval" / "results.json").read_text())
        assert {record["model"] for record in records} == {name}
        assert len(records) == 5 * (6 if name == "isomax_plus" else 5)  # MinDistance needs prototypes
        assert all(0 <= record["ap"] <= 1 and 0 <= record["fpr95"] <= 1 for record in records)
        assert all(0 <= record["miou"] <= 1 for record in records)
        assert list((run / "tensorboard").glob("events*"))
    assert (out / "results.md").read_text() in result.stdout
    assert "python -m jobs.finetune" in result.stderr
    picture = cv2.imread(str(out / "picture.png"))
    assert picture is not None
    assert picture.std() > 10
