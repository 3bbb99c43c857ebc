"""Every program that writes, every place that it cannot have: one line, a code, and nothing left behind."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.predict.predictions import CachedSet, CacheInfo, PredictionRecorder, write_frame, write_index
from eval.report.record import render_json
from shards.files import to_json
from shards.output import claimed
from tests.support.downloads import make_cityscapes
from tests.support.evaluation import write_run, write_test_sets
from tests.support.records import make_record

Ended = tuple[int, list[str]]
COMMANDS: dict[str, str] = {
    "temperature": "--cache {root}/cache --scores MSP --grid 1 --out {out}",
    "export": "--checkpoint {root}/rba_run --to safetensors --out {out}",
    "collect": "{root}/results.json --out {out}",
    "paste_validation": "{pasting} --frames 1 --out {out}",
    "preview_paste": "{pasting} --scenes 1 --out {out}",
    "synthesize": "--height 64 --train 2 --val 1 --coco 2 --coco_height 64 --anomaly_images 1 "
    "--workers 1 --out {out}",
    "evaluate": "--checkpoint {root}/rba_run --datasets {root}/sets --device cpu --pictures 0 "
    "--scores MSP --components False --out {out}",
    "prepare": "cityscapes --root {root}/raw --splits train --workers 1 --out {out}",
    "demo": "--smoke True --out {out}",
    "experiments": "--smoke True --out {out}",
}
"""Arguments of each program, good but for `out`."""
CLAIMING = [job for job in COMMANDS if job != "prepare"]
"""Those of them whose lock lies beside `out`."""


@pytest.fixture(name="root", scope="module")
def _root(tmp_path_factory) -> Path:
    """What the programs read."""
    root = tmp_path_factory.mktemp("inputs")
    write_run(root)
    write_test_sets(root / "sets")
    (root / "results.json").write_text(render_json([make_record()]))
    target = np.zeros((8, 16), np.uint8)
    target[2:4] = 1
    recorder = PredictionRecorder(num_classes=4)
    recorder.add(torch.randn(1, 4, 8, 16))
    write_frame(root / "cache/s", 0, target, recorder.take())
    write_index(
        root / "cache", CachedSet(folder="s", name="S", is_benchmark=True, window=(8, 16), stems=("0",))
    )
    (root / "cache/cache.json").write_text(to_json(CacheInfo(model="m", checkpoint="c")))
    make_cityscapes(root / "raw", num_train=1)
    return root


@pytest.fixture(name="end_at")
def _end_at(root, scene_shards, cutout_shard, end) -> Callable[[str, object], Ended]:
    """Run a program with an `out`; return its exit code and its last lines on standard error."""
    pasting = f"--data.shards {scene_shards} --data.crop 32 32 --validation.shards {scene_shards} "
    pasting += f"--paste.bank {cutout_shard} --paste.held_out 0.5 --paste.min_size 0.1"

    def run(job: str, out: object) -> Ended:
        words = COMMANDS[job].replace("{pasting}", pasting).split()
        code, lines = end(job, *(word.format(root=root, out=out) for word in words))
        return code, [line for line in lines if line.startswith(("error: ", "Traceback"))]

    return run


@pytest.mark.parametrize("job", COMMANDS)
@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("/sys/out.png", 74),
        ("nul\0.png", 2),
        (f"{'x' * 300}.png", 2),
        ("dangling.png", 2),
        ("loop.png", 2),
        ("file.png/out.png", 2),
        ("folder.png", 2),
    ],
    ids=["unwritable", "NUL", "long", "dangling", "loop", "below a file", "of something else"],
)
def test_a_place_that_cannot_be(end_at, tmp_path, job, place, code):
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone" / "deep")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "file.png").write_text("mine")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png/notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    found, lines = end_at(job, tmp_path / place)
    assert (found, len(lines)) == (code, 1), lines
    assert sorted(tmp_path.rglob("*")) == before
    if place == "folder.png":
        assert ("is a folder" if job == "preview_paste" else "already holds files") in lines[0]


@pytest.mark.parametrize("job", CLAIMING)
def test_a_second_writer_is_told_of_the_first(end_at, tmp_path, job):
    with claimed(tmp_path / "out.png"):
        code, lines = end_at(job, tmp_path / "out.png")
    assert (code, len(lines)) == (2, 1), lines
    assert "another program is writing there: " in lines[0]
    assert list(tmp_path.iterdir()) == []


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow beyond 64 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("job", [job for job in COMMANDS if job not in ("demo", "experiments")])
def test_a_full_disk(end_at, tmp_path, job):
    with full_disk():
        code, lines = end_at(job, tmp_path / "out.png")
    assert (code, len(lines)) == (74, 1), lines
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == []


@pytest.mark.parametrize("job", [job for job in COMMANDS if job not in ("demo", "experiments")])
def test_the_arguments_are_good_but_for_the_place(end_at, tmp_path, job):
    assert end_at(job, tmp_path / "out.png") == (0, [])
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
