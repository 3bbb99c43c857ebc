"""Every program, every mistake: one clear line, exit code 2, and what was there stays as it was."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.program import run_program

ROOT = Path(__file__).resolve().parents[2]
Program = Callable[..., str]


@pytest.fixture(name="refuse")
def _refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Program:
    """Run a program that must refuse its input, and return the one line it says."""

    def run(job: str, *arguments: object) -> str:
        before, on_sigterm = snapshot(tmp_path), signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys, "argv", [job, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            run_program(importlib.import_module(f"jobs.{job}").main)
        signal.signal(signal.SIGTERM, on_sigterm)
        lines = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 2, lines
        assert len(lines) == 1, lines
        assert snapshot(tmp_path) == before
        return lines[0]

    return run


def snapshot(folder: Path) -> dict[str, bytes]:
    """Read everything below a folder but the index files, which any reader may write beside shards."""
    paths = [path for path in folder.rglob("*") if not path.name.endswith(".index.json")]
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in paths}


@pytest.fixture(name="raw")
def _raw(tmp_path: Path) -> Path:
    """Two Cityscapes frames of 32x64 in the official layout."""
    root = tmp_path / "raw"
    for part in ("leftImg8bit", "gtFine"):
        (root / part / "train" / "aachen").mkdir(parents=True)
    for key in ("aachen_000000_000019", "aachen_000001_000019"):
        image = root / f"leftImg8bit/train/aachen/{key}_leftImg8bit.png"
        cv2.imwrite(str(image), np.full((32, 64, 3), 90, np.uint8))
        label = root / f"gtFine/train/aachen/{key}_gtFine_labelIds.png"
        cv2.imwrite(str(label), np.full((32, 64), 7, np.uint8))
    return root


def label_of(raw: Path) -> Path:
    return raw / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"


def prepare(raw: Path) -> list[object]:
    return ["cityscapes", "--root", raw, "--out", raw.parent / "out", "--splits", "train"]


def finetune(out: Path, shards: object) -> list[object]:
    return [
        "--out", out, "--data.shards", shards, "--data.crop", 32, 32,
        "--data.workers", 0, "--data.batch_size", 1,
        "--model.size", "tiny", "--model.image_size", 32, 32, "--loop.steps", 1,
    ]  # fmt: skip


def test_missing_folders(refuse: Program, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert "gone" in refuse("prepare", *prepare(gone))
    coco = ("coco", "--images", gone, "--annotations", gone)
    assert "gone" in refuse("prepare", *coco, "--out", tmp_path / "o")
    assert "gone" in refuse("finetune", *finetune(tmp_path, gone))
    assert "gone" in refuse("evaluate", "--checkpoint", gone, "--datasets", gone, "--out", tmp_path / "o")
    assert "gone.yaml: no such configuration file" in refuse("finetune", f"{gone}.yaml")


def test_a_label_without_its_image(refuse: Program, raw: Path) -> None:
    (raw / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png").unlink()
    assert "aachen_000000_000019" in refuse("prepare", *prepare(raw))


def test_a_label_of_another_size(refuse: Program, raw: Path) -> None:
    cv2.imwrite(str(label_of(raw)), np.full((16, 64), 7, np.uint8))
    line = refuse("prepare", *prepare(raw))
    assert all(word in line for word in ("labelIds.png", "16", "32"))


def test_an_unknown_label_value(refuse: Program, raw: Path) -> None:
    cv2.imwrite(str(label_of(raw)), np.full((32, 64), 77, np.uint8))
    line = refuse("prepare", *prepare(raw))
    assert all(word in line for word in ("77", "aachen_000000_000019_gtFine_labelIds.png"))


def test_an_empty_shard_list(refuse: Program, tmp_path: Path) -> None:
    line = refuse("finetune", "--out", tmp_path, "--model.size", "tiny")
    assert "data.shards: the list is empty" in line


@pytest.mark.parametrize("job", ["synthesize", "prepare", "finetune", "evaluate", "demo", "preview_paste"])
def test_unknown_options_and_wrong_types(refuse: Program, job: str, tmp_path: Path) -> None:
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


def test_a_truncated_shard(refuse: Program, tmp_path: Path, scene_shards: str) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(Path(scene_shards).parent, folder)
    shard = folder / "scenes-000003.tar"
    shard.write_bytes(shard.read_bytes()[:-12000])
    line = refuse("finetune", *finetune(tmp_path, folder / "scenes-*.tar"))
    assert all(word in line for word in ("scenes-000003.tar", "truncated"))


def test_output_folders_that_hold_something(
    refuse: Program, raw: Path, tmp_path: Path, scene_shards: str
) -> None:
    out = tmp_path / "out"
    (out / "eomt").mkdir(parents=True)
    (out / "eomt" / "notes.txt").write_text("mine")
    assert "already holds files" in refuse("synthesize", "--out", out)
    assert "already holds files" in refuse("prepare", *prepare(raw))
    assert "already holds files" in refuse("finetune", *finetune(out, scene_shards))
    assert "already holds files" in refuse("evaluate", "--checkpoint", raw, "--datasets", raw, "--out", out)
    assert "already holds files" in refuse("demo", "--out", out)


@pytest.mark.parametrize("job", ["synthesize", "prepare", "finetune", "evaluate", "demo", "preview_paste"])
def test_an_output_below_a_file(
    refuse: Program, raw: Path, tmp_path: Path, scene_shards: str, cutout_shard: str, job: str
) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "sub.png"
    start: dict[str, list[object]] = {
        "prepare": ["cityscapes", "--root", raw, "--splits", "train"],
        "finetune": finetune(out, scene_shards)[2:],
        "evaluate": ["--checkpoint", raw, "--datasets", raw],
        "preview_paste": ["--data.shards", scene_shards, "--paste.bank", cutout_shard],
    }
    assert "file" in refuse(job, *start.get(job, []), "--out", out)


def test_text_survives_a_terminal_without_utf8(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    command = [sys.executable, "-m", "jobs.prepare", "cityscapes", "--help"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "--samples_per_shard" in result.stdout
