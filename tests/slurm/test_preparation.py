"""On a real Slurm: shards written by an array are those of one process, byte for byte."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
import yaml

from jobs import submit
from jobs.prepare import main
from shards.manifest import read_manifest
from slurm.tasks import read_state
from tests.support.downloads import make_cityscapes
from tests.support.files import contents

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def test_an_array_writes_the_shards_of_one_process(
    cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = make_cityscapes(tmp_path / "raw", num_train=6)
    words = ["cityscapes", "--root", str(frames), "--splits", "train", "--workers", "1"]
    main([*words, "--out", str(tmp_path / "alone")])
    sweep = {
        "name": "prepare",
        "out": str(tmp_path / "sweeps"),
        "preparation": {"arguments": [*words, "--out", str(tmp_path / "shared")], "tasks": 2},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    monkeypatch.chdir(ROOT)
    submit.main([str(tmp_path / "sweep.yaml")])
    cluster.until(lambda: not cluster.run("squeue", "-h"), 200, "the end of all tasks")
    control = tmp_path / "sweeps" / "prepare" / "cells"
    assert [read_state(control / f"task-{i}", "prepare").state for i in (0, 1)] == ["done", "done"]
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_an_array_of_any_ids_shares_the_work(cluster, tmp_path: Path) -> None:
    frames = make_cityscapes(tmp_path / "raw", num_train=6)
    words = ["cityscapes", "--root", str(frames), "--splits", "train", "--workers", "1", "--task", "slurm"]
    command = shlex.join([sys.executable, "-m", "jobs.prepare", *words, "--out", str(tmp_path / "S")])
    options = ["--array=3,20-30:10", f"--output={tmp_path}/log-%a", f"--chdir={ROOT}"]
    job = cluster.run("sbatch", "--parsable", *options, f"--wrap={command}")
    assert cluster.until_ended(job) == dict.fromkeys(("3", "20", "30"), "COMPLETED")
    written = sum(path.read_text().count("has written its share") for path in tmp_path.glob("log-*"))
    assert written == 2  # and the last one completed the folder
    assert len(read_manifest(tmp_path / "S").shards) == 6
