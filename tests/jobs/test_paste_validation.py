"""`jobs.paste_validation`: what is chosen on was never trained on, and the evaluation reads it."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.sets.registry import check_masks, find_test_sets, read_image, read_target
from jobs.paste_validation import main
from outlier_paste.bank import open_bank, photo_of
from outlier_paste.validation_set import FOLDER, RECORD_NAME, mask_of
from shards.cutout import Cutout
from tests.conftest import NUM_SCENES
from tests.support.files import contents
from tests.support.refused import refused
from tests.support.tars import write_cutouts


def write_bank(path: Path, photos: range) -> str:
    """One disc per photograph, whose red tells the number of the photograph."""
    rows, columns = np.mgrid[:30, :30] - 14.5
    mask = np.where(rows**2 + columns**2 < 200, 255, 0).astype(np.uint8)
    images = {photo: np.full((30, 30, 3), (5 * photo, 255, 0), np.uint8) for photo in photos}
    return write_cutouts(
        path, [Cutout(f"{photo:012d}-1", image, mask, "disc", (480, 640)) for photo, image in images.items()]
    )


@pytest.fixture(name="bank")
def _bank(tmp_path) -> str:
    return write_bank(tmp_path / "bank.tar", range(50))


@pytest.fixture(name="run")
def _run(tmp_path, scene_shards, bank) -> list[str]:
    paste = ["--paste.bank", bank, "--paste.held_out", "0.3", "--paste.min_size", "0.4"]
    return ["--validation.shards", scene_shards, *paste, "--paste.blend", "hard", "--paste.max_objects", "1"]


def test_the_evaluation_reads_it_and_only_held_out_objects_are_in_it(run, bank, tmp_path):
    main(["--out", str(tmp_path / "val"), *run])
    (found,) = find_test_sets(tmp_path / "val")
    assert found.name == "Pasted val"
    assert len(found) == NUM_SCENES
    check_masks(found)
    kept = {int(photo_of(key)) for key in open_bank(bank, held_out=0.3, take_held_out=True).keys}
    trained = {int(photo_of(key)) for key in open_bank(bank, held_out=0.3).keys}
    assert not kept & trained
    for frame in found.frames:
        image, target = read_image(frame), read_target(frame, found.convention)
        assert (target == 255)[-3:].sum() + (target == 1)[-3:].sum() == target[-3:].size  # void stays void
        red = image[target == 1][:, 0]
        assert round(float(np.median(red)) / 5) in kept


def test_equal_arguments_give_equal_files_whatever_the_seed_of_the_run(run, tmp_path):
    for name, more in (("a", []), ("b", ["--seed", "5"]), ("c", ["--variant", "1"])):
        main(["--out", str(tmp_path / name), *run, *more])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_the_record_says_how_it_was_made(run, bank, tmp_path):
    main(["--out", str(tmp_path / "val"), "--frames", "3", *run])
    record = json.loads((tmp_path / "val" / RECORD_NAME).read_text())
    assert record["frames"] == ["scene0", "scene4", "scene7"]
    assert (record["bank"], record["held_out"], record["variant"]) == (bank, 0.3, 0)
    assert record["paste"]["blend"] == "hard"
    assert {p.stem for p in (tmp_path / "val" / FOLDER / "images").iterdir()} == set(record["frames"])


def test_a_bank_of_its_own_must_be_disjoint(run, tmp_path):
    other = write_bank(tmp_path / "other.tar", range(40, 60))
    with refused(r"--bank .*other\.tar: shares \d+ photographs with the training"):
        main(["--out", str(tmp_path / "val"), "--bank", other, *run])
    assert not (tmp_path / "val").exists()
    disjoint = write_bank(tmp_path / "disjoint.tar", range(50, 60))
    main(["--out", str(tmp_path / "val"), "--bank", disjoint, *run, "--paste.held_out", "0"])
    assert find_test_sets(tmp_path / "val")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frames", "-1"], "--frames: got -1; at least 0"),
        (["--variant", "-1"], "--variant: got -1; at least 0"),
        (["--paste.max_hidden", "0"], "none of 8 frames has a place for an object"),
        (["--paste.held_out", "0"], r"paste\.held_out: is 0, so training pastes every object"),
        (["--paste.bank", ""], r"paste\.bank: is empty; a folder of cut-outs is needed"),
    ],
)
def test_what_gives_no_set_is_refused(run, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with refused(message):
        main(["--out", "val", *run, *options])
    assert not Path("val").exists()


def test_masks_have_the_evaluations_values():
    label = np.array([[0, 18, 254, 255]], np.uint8)
    assert mask_of(label).tolist() == [[0, 0, 1, 255]]
    assert cv2.imencode(".png", mask_of(label))[0]
