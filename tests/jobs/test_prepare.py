"""`jobs.prepare`: downloads in, complete shards out, or nothing at all."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset

from jobs.prepare import main
from shards.cutout import decode_cutout
from shards.files import hold_lock
from shards.manifest import read_manifest
from shards.reader import ShardReader, open_shards
from shards.scene import decode_scene
from tests.support.downloads import make_cityscapes, write_png
from tests.support.files import contents
from tests.support.forked import join, start_program
from tests.support.refused import refused

REPOSITORY = Path(__file__).parents[2]


def make_coco(root: Path) -> Path:
    """Write three pictures with two objects each; the first picture also shows a person."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in (1, 2, 3):
        write_png(root / f"train2017/{image_id:012d}.jpg", rng.integers(0, 256, (500, 480, 3), np.uint8))
        images.append({"id": image_id, "file_name": f"{image_id:012d}.jpg", "height": 500, "width": 480})
        for left in (10, 200):
            polygon = [left, 50, left + 60, 50, left + 60, 120, left, 120]
            annotations.append({"id": len(annotations), "image_id": image_id, "category_id": 2})
            annotations[-1] |= {"segmentation": [polygon], "iscrowd": 0}
    annotations[0]["category_id"] = 1
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "bear"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir()
    (root / "annotations/instances_train2017.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def root(tmp_path) -> Path:
    return make_cityscapes(tmp_path / "R")


@pytest.fixture
def whole(root, tmp_path) -> dict[str, bytes]:
    """Contents of the folder that one process writes of `root`."""
    cityscapes(root, tmp_path / "whole")
    return contents(tmp_path / "whole")


@pytest.fixture
def coco_root(tmp_path) -> Path:
    return make_coco(tmp_path / "coco")


def cityscapes(root: Path, out: Path, *more: str) -> None:
    main(["cityscapes", "--root", str(root), "--out", str(out), *more])


def coco(root: Path, out: Path, *more: str) -> None:
    images = ["--images", f"{root}/train2017", "--annotations", f"{root}/annotations"]
    main(["coco", *images, "--out", str(out), *more])


def test_cityscapes_becomes_shards_that_the_manifest_describes(root, tmp_path):
    cityscapes(root, tmp_path / "S", "--samples_per_shard", "2")
    manifest = read_manifest(tmp_path / "S")
    assert (manifest.kind, manifest.label_encoding) == ("cityscapes", "cityscapes-train-id")
    assert (manifest.image_encoding, manifest.num_samples) == ("jpeg", 7)
    assert manifest.splits == ("train", "val")
    for split in manifest.splits:
        entries = manifest.select(split)
        reader = ShardReader([tmp_path / "S" / entry.name for entry in entries])
        assert list(reader.keys) == sorted(key for entry in entries for key in entry.keys)
        assert set(reader.suffixes(0)) == {"image.jpg" if split == "train" else "image.png", "label.png"}
    assert {path.name for path in (tmp_path / "S").iterdir()} == {
        "manifest.json",
        *(entry.name + ending for entry in manifest.shards for ending in ("", ".index.json")),
    }


@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # webdataset's, closed by gc.collect below
def test_plain_webdataset_reads_the_cutouts(coco_root, tmp_path):
    coco(coco_root, tmp_path / "S")
    urls = [str(tmp_path / "S" / entry.name) for entry in read_manifest(tmp_path / "S").shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    gc.collect()
    assert [sample["__key__"] for sample in samples] == [f"00000000000{i // 2 + 1}-{i}" for i in (2, 3, 4, 5)]
    for sample in samples:
        cutout = decode_cutout(sample["__key__"], {k: sample[k] for k in sample if not k.startswith("__")})
        assert (cutout.mask.shape, cutout.category, cutout.source_size) == ((70, 60), "bear", (500, 480))


def test_tasks_give_the_bytes_of_one_process_in_any_order(root, tmp_path):
    make_cityscapes(root, num_train=9)
    cityscapes(root, tmp_path / "whole", "--samples_per_shard", "2")
    for task in ("2/3", "0/3", "1/3"):
        assert not (tmp_path / "S").exists()
        cityscapes(root, tmp_path / "S", "--samples_per_shard", "2", "--task", task)
    assert contents(tmp_path / "S") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["R", "S", "whole"]


def test_a_task_that_starts_again_after_all_are_done_changes_nothing(root, tmp_path, caplog):
    cityscapes(root, tmp_path / "S", "--task", "0/1")
    before = contents(tmp_path / "S")
    with caplog.at_level(logging.INFO):
        cityscapes(root, tmp_path / "S", "--task", "0/1")
    assert "S: is complete already" in caplog.text
    with refused(r"--out .*S: the folder already holds files"):
        cityscapes(root, tmp_path / "S", "--task", "0/1", "--jpeg_quality", "80")
    assert contents(tmp_path / "S") == before


def test_coco_tasks_give_the_bytes_of_one_process(coco_root, tmp_path):
    coco(coco_root, tmp_path / "whole")
    for task in ("0/2", "1/2"):
        coco(coco_root, tmp_path / "S", "--task", task)
    coco(coco_root, tmp_path / "S", "--task", "1/2")  # once more is nothing
    assert contents(tmp_path / "S") == contents(tmp_path / "whole")


def test_more_tasks_than_shards_are_idle(root, whole, tmp_path):
    for i in range(11):
        cityscapes(root, tmp_path / "S", "--task", f"{i}/11")
        if (tmp_path / "S").exists():
            break
    assert i == 6  # 7 frames in 7 shards
    assert contents(tmp_path / "S") == whole


def test_an_interrupted_preparation_goes_on_where_it_stopped(root, whole, tmp_path):
    broken = root / "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png"
    content = broken.read_bytes()
    broken.write_bytes(b"broken")
    with refused("cannot be decoded as a picture"):
        cityscapes(root, tmp_path / "S", "--resume", "True", "--workers", "1")
    parts = tmp_path / ".S.parts"
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("cityscapes-train-*.tar")}
    assert len(before) == 5
    (parts / ".cityscapes-val-000000.tar.partial-1").write_bytes(b"left by a killed process")
    broken.write_bytes(content)
    cityscapes(root, tmp_path / "S", "--resume", "True", "--workers", "1")
    assert contents(tmp_path / "S") == whole
    assert {name: (tmp_path / "S" / name).stat().st_mtime_ns for name in before} == before
    assert not parts.exists()


def test_a_task_killed_while_it_completes_the_folder_is_finished_by_the_next(root, whole, tmp_path):
    cityscapes(root, tmp_path / "S", "--task", "1/2")
    cityscapes(root, tmp_path / "S", "--task", "0/2")
    parts = tmp_path / ".S.parts"
    (tmp_path / "S").rename(parts)  # the manifest is written, the entries are gone
    cityscapes(root, tmp_path / "S", "--task", "0/2")
    assert contents(tmp_path / "S") == whole


def test_tasks_with_other_options_are_refused(root, tmp_path):
    cityscapes(root, tmp_path / "S", "--task", "0/2")
    with refused(r"\.S\.parts: was begun with other options \(image_encoding: jpeg, now"):
        cityscapes(root, tmp_path / "S", "--task", "1/2", "--image_encoding", "png")
    make_cityscapes(tmp_path / "R", num_train=6)
    with refused(r"\.S\.parts: was begun with other files \(7 shards, now 8"):
        cityscapes(root, tmp_path / "S", "--task", "1/2")


@pytest.mark.slow
def test_two_tasks_at_once_complete_one_folder(root, whole, tmp_path):
    tasks, said = [], tmp_path / "said"
    words = ["cityscapes", "--root", str(root), "--out", str(tmp_path / "S"), "--task", "slurm"]
    for i in (1, 2):
        array = {"SLURM_ARRAY_TASK_ID": str(i), "SLURM_ARRAY_TASK_MIN": "1"}
        array |= {"SLURM_ARRAY_TASK_MAX": "2", "SLURM_ARRAY_TASK_COUNT": "2"}
        tasks.append(start_program(main, [*words, "--workers", "1"], said, said, array))
    assert join(tasks, 120) == [0, 0], said.read_text()
    assert contents(tmp_path / "S") == whole


@pytest.mark.slow
def test_three_with_the_same_share_at_once_leave_one_whole_folder(root, whole, tmp_path):
    words = ["cityscapes", "--root", str(root), "--out", str(tmp_path / "out/S"), "--resume", "True"]
    said = tmp_path / "said"
    programs = [start_program(main, [*words, "--workers", "1"], said, said) for _ in range(3)]
    assert join(programs, 120) == [0, 0, 0], said.read_text()
    assert contents(tmp_path / "out/S") == whole
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["S"]


def test_the_folder_is_completed_when_no_other_task_writes(root, whole, tmp_path):
    task = threading.Thread(target=cityscapes, args=(root, tmp_path / "S", "--task", "0/1"))
    with hold_lock(tmp_path / ".S.parts.lock", wait_s=0, owner="another task", shared=True):
        task.start()
        task.join(0.5)
        assert task.is_alive()
        assert not (tmp_path / "S").exists()
    task.join()
    assert contents(tmp_path / "S") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["R", "S", "whole"]


@pytest.mark.parametrize("encoding", ["png", "tiles", "jpeg"])
def test_every_encoding_keeps_what_it_promises(tmp_path, encoding):
    root = make_cityscapes(tmp_path / "R", size=(200, 300))
    cityscapes(root, tmp_path / "S", "--image_encoding", encoding, "--jpeg_quality", "100")
    manifest = read_manifest(tmp_path / "S")
    assert manifest.image_encoding == encoding
    assert ("jpeg_quality" in manifest.options) == (encoding == "jpeg")
    reader = open_shards([str(tmp_path / "S")], "train")
    for sample in (decode_scene(reader, index) for index in range(len(reader))):
        original = cv2.imread(str(next(root.glob(f"leftImg8bit/*/*/{sample.key}_*"))))[..., ::-1]
        difference = np.abs(sample.image.astype(int) - original)
        assert difference.max() <= (4 if encoding == "jpeg" else 0)  # JPEG's colour space rounds, even at 100


def test_the_log_says_what_was_kept_and_dropped(coco_root, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        coco(coco_root, tmp_path / "S", "--max_objects", "3")
    assert "images: 2 kept; 1 dropped: an excluded category is in the picture" in caplog.text
    assert "objects in these images: 3 kept; 1 dropped: not drawn (max_objects 3)" in caplog.text
    assert "3 samples in 2 shards" in caplog.text


def test_options_are_kept_in_the_manifest(coco_root, tmp_path):
    chosen = ["--excluded_categories", "person", "train", "--min_side", "300", "--crowd", "True"]
    root_file = coco_root / "annotations/instances_train2017.json"
    root_file.write_text(
        root_file.read_text().replace('"categories": [', '"categories": [{"id": 9, "name": "train"}, ')
    )
    coco(coco_root, tmp_path / "S", *chosen)
    options = read_manifest(tmp_path / "S").options
    assert options["excluded_categories"] == ["person", "train"]
    assert (options["min_side"], options["crowd"], options["min_area"]) == (300, True, 1024)
    assert str(tmp_path) not in json.dumps(options)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_failure_in_the_last_shard_leaves_nothing(root: Path, tmp_path: Path, workers: str) -> None:
    broken = root / "leftImg8bit/val/ulm/ulm_000001_000019_leftImg8bit.png"
    broken.write_bytes(b"broken")
    with refused(f"{broken}: cannot be decoded as a picture"):
        cityscapes(root, tmp_path / "out" / "S", "--workers", workers)
    assert list(tmp_path.glob("out*")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples_per_shard", "0"], "--samples_per_shard: got 0; at least 1"),
        (["--workers", "-1"], "--workers: got -1; at least 0"),
        (["--jpeg_quality", "0"], "jpeg_quality: is 0; 1 to 100 is needed"),
        (["--task", "3/3"], "--task: got '3/3'; I/N with I in 0..N-1 is needed"),
        (["--splits"], "splits: is empty; train, val or test is needed"),
        (["--splits", "trian"], "trian"),
        (["--image_encoding", "webp"], "webp"),
        (["--sample_per_shard", "8"], r"perhaps you meant --samples_per_shard"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path, arguments, message):
    with refused(message):
        cityscapes(tmp_path, tmp_path / "S", *arguments)


def test_an_unknown_kind_of_download_is_refused():
    with refused("^got 'kitti'; expected one of {cityscapes, coco, segments, folders}; --help lists"):
        main(["kitti"])


@pytest.fixture
def running(tmp_path) -> Iterator[subprocess.Popen[str]]:
    """Start the program with two threads on long work, and wait for the first shard to appear."""
    root = make_cityscapes(tmp_path / "R", num_train=1, size=(512, 1024))
    for path in [*root.glob("*/train/aachen/*")]:
        for copy in range(1, 480):
            path.with_name(path.name.replace("aachen_000", f"aachen_{copy:03d}")).symlink_to(path)
    command = [sys.executable, "-m", "jobs.prepare", "cityscapes", "--root", str(root)]
    command += ["--out", str(tmp_path / "out" / "S"), "--workers", "2", "--samples_per_shard", "2"]
    program = subprocess.Popen(
        command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob(".S.partial-*/*.tar")):
        assert program.poll() is None, program.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield program
    if program.poll() is None:
        os.killpg(program.pid, signal.SIGKILL)
    program.communicate()


@pytest.mark.slow
def test_ctrl_c_ends_quickly_in_one_line_and_leaves_nothing(
    running: subprocess.Popen[str], tmp_path: Path
) -> None:
    os.killpg(running.pid, signal.SIGINT)
    _, text = running.communicate(timeout=20)
    assert running.returncode == 130
    assert text.splitlines()[-1] == "interrupted"
    assert "Traceback" not in text
    assert list(tmp_path.glob("out*")) == []


@pytest.mark.slow
def test_a_killed_run_leaves_no_output_folder(running: subprocess.Popen[str], tmp_path: Path) -> None:
    running.kill()
    running.wait()
    assert not (tmp_path / "out" / "S").exists()
