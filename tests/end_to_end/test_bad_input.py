"""Every program, every mistake: one clear line, exit code 2, and what was there stays as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.files import contents

ROOT = Path(__file__).resolve().parents[2]
Program = Callable[..., str]


@pytest.fixture(name="refuse")
def _refuse(end, tmp_path) -> Program:
    """Run a program that must refuse its input, and return the one line it says."""

    def run(job: str, *arguments: object) -> str:
        before = contents(tmp_path, ".index.json")  # which any reader may write beside shards
        code, lines = end(job, *arguments)
        assert (code, len(lines)) == (2, 1), lines
        assert contents(tmp_path, ".index.json") == before
        return lines[0]

    return run


def finetune(out: Path, shards: object) -> list[object]:
    return [
        "--out", out, "--data.shards", shards, "--data.crop", 32, 32,
        "--data.workers", 0, "--data.batch_size", 1,
        "--model.size", "tiny", "--model.image_size", 32, 32, "--loop.steps", 1,
    ]  # fmt: skip


def test_missing_folders(refuse, tmp_path):
    gone = tmp_path / "gone"
    for download in (("cityscapes", "--root", gone), ("coco", "--images", gone, "--annotations", gone)):
        assert "gone" in refuse("prepare", *download, "--out", tmp_path / "o")
    assert "gone" in refuse("finetune", *finetune(tmp_path, gone))
    assert "gone" in refuse("evaluate", "--checkpoint", gone, "--datasets", gone, "--out", tmp_path / "o")
    assert "gone.yaml: no such configuration file" in refuse("finetune", f"{gone}.yaml")


def test_an_empty_shard_list(refuse, tmp_path):
    line = refuse("finetune", "--out", tmp_path, "--model.size", "tiny")
    assert "data.shards: the list is empty" in line


@pytest.mark.parametrize("job", ["synthesize", "prepare", "finetune", "evaluate", "demo", "preview_paste"])
def test_unknown_options_and_wrong_types(refuse, job, tmp_path):
    command = {
        "prepare": ["cityscapes", "--root", tmp_path],
        "evaluate": ["--checkpoint", "c", "--datasets", "d"],
    }
    start = [*command.get(job, []), "--out", tmp_path / "new.png"]
    assert "unrecognized options: --sped" in refuse(job, *start, "--sped", "3")
    number = {"prepare": "--workers", "evaluate": "--limit", "preview_paste": "--scenes"}.get(job, "--seed")
    line = refuse(job, *start, number, "many")
    assert f"error parsing {number}: " in line
    assert "'many'" in line


def test_a_run_that_would_lie_below_a_file_or_in_a_folder_of_something_else(refuse, tmp_path, scene_shards):
    (tmp_path / "out/eomt").mkdir(parents=True)
    (tmp_path / "out/eomt/notes.txt").write_text("mine")
    assert "already holds files" in refuse("finetune", *finetune(tmp_path / "out", scene_shards))
    assert "notes.txt" in refuse("finetune", *finetune(tmp_path / "out/eomt/notes.txt", scene_shards))


def test_text_survives_a_terminal_without_utf8(tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    command = [sys.executable, "-m", "jobs.prepare", "cityscapes", "--help"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "--samples_per_shard" in result.stdout
