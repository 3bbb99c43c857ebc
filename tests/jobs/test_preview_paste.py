from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from jobs.preview_paste import (
    CAPTION_HEIGHT,
    GAP,
    OUTLINE_COLOR,
    PreviewOptions,
    draw_contact_sheet,
    draw_scene,
    label_colors,
    main,
)
from shards.cutout import Cutout
from shards.schema import OUTLIER_ID, VOID_ID, Sample
from shards.settings import split_arguments
from tests.support.refused import refused
from tests.support.tars import encode, write_cutouts, write_tar


def make_scene(side: int = 80) -> Sample:
    label = np.full((side, side), 10, np.uint8)
    label[side // 2 :] = 0
    label[20:40, 30:60] = OUTLIER_ID
    return Sample(key="scene", image=np.full((side, side, 3), 60, np.uint8), label=label)


@pytest.fixture
def config(tmp_path) -> Path:
    """Three scenes, one object, and the YAML of a run with both."""
    scene = make_scene(64)
    image, label = encode(scene.image), encode(np.zeros_like(scene.label))
    scenes = {f"s{i}.image.png": image for i in range(3)} | {f"s{i}.label.png": label for i in range(3)}
    write_tar(tmp_path / "s.tar", dict(sorted(scenes.items())))
    disc = Cutout("o", np.full((40, 40, 3), 255, np.uint8), np.full((40, 40), 255, np.uint8), "zebra", (9, 9))
    write_cutouts(tmp_path / "b.tar", [disc])
    path = tmp_path / "config.yaml"
    path.write_text(
        f"data: {{shards: [{tmp_path}/s.tar], crop: [64, 64], batch_size: 2, workers: 1}}\n"
        f"model: {{size: tiny, image_size: [64, 64]}}\n"
        f"paste: {{bank: {tmp_path}/b.tar, min_size: 0.4}}\n"
    )
    return path


def test_a_scene_is_drawn_with_outline_and_label_colours():
    scene = make_scene()
    tile = draw_scene(scene, 80)
    picture, labels = tile[CAPTION_HEIGHT : CAPTION_HEIGHT + 80], tile[CAPTION_HEIGHT + 80 :]
    outlined = (picture == OUTLINE_COLOR).all(axis=-1)
    expected = np.zeros((80, 80), bool)
    expected[20:40, 30:60] = True
    expected[21:39, 31:59] = False  # the outermost pixels of the object, and nothing else
    np.testing.assert_array_equal(outlined, expected)
    assert (scene.image == 60).all()
    assert labels[0, 0].tolist() == [70, 130, 180]  # sky
    assert labels[70, 0].tolist() == [128, 64, 128]  # road
    assert labels[30, 40].tolist() == [255, 255, 255]
    assert label_colors()[VOID_ID].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("count", "columns", "grid"), [(1, 4, (1, 1)), (5, 2, (3, 2)), (4, 4, (1, 4))])
def test_the_sheet_has_a_place_for_every_scene(count, columns, grid):
    sheet = draw_contact_sheet([make_scene()] * count, columns=columns, tile_width=100)
    tile_height = CAPTION_HEIGHT + 200
    assert sheet.shape == (grid[0] * (tile_height + GAP) + GAP, grid[1] * (100 + GAP) + GAP, 3)
    assert (sheet == 255).all(axis=-1).sum() >= count * 800  # the white of each scene's outlier


def test_arguments_are_parted():
    given = ["c.yaml", "--out", "a.png", "--data.shards", "x", "y", "--tile-width=9", "--seed", "3"]
    own, of_run = split_arguments(given, PreviewOptions)
    assert own == ["--out", "a.png", "--tile-width=9"]
    assert of_run == ["c.yaml", "--data.shards", "x", "y", "--seed", "3"]


def test_the_program_writes_a_sheet_in_which_every_scene_has_an_object(config, tmp_path):
    out = tmp_path / "new" / "sheet.png"
    main([str(config), "--out", str(out), "--scenes", "3", "--columns", "3", "--tile_width", "64"])
    sheet = cv2.imread(str(out))
    for i in range(3):
        left = GAP + i * (64 + GAP)
        labels = sheet[GAP + CAPTION_HEIGHT + 64 : GAP + CAPTION_HEIGHT + 128, left : left + 64]
        assert (labels == 255).all(axis=-1).sum() > 100


def test_settings_of_the_run_are_taken_from_the_command_line(config, tmp_path):
    options = [str(config), "--scenes", "2"]
    main([*options, "--out", str(tmp_path / "a.png")])
    main([*options, "--out", str(tmp_path / "b.png"), "--paste.placement", "road", "--seed", "1"])
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_an_existing_file_is_kept_unless_asked(config, tmp_path):
    out = tmp_path / "sheet.png"
    out.write_bytes(b"precious")
    with refused(r"--out .*sheet\.png: the file is already there; --overwrite True replaces"):
        main([str(config), "--out", str(out)])
    assert out.read_bytes() == b"precious"
    main([str(config), "--out", str(out), "--overwrite", "True", "--scenes", "1"])
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "a.jpg"], r"out: got a\.jpg; a name that ends in \.png"),
        (["--out", "a.png", "--scenes", "0"], "--scenes: got 0; at least 1"),
        (["--out", "a.png", "--paste.bank", ""], r"paste\.bank: is empty"),
    ],
)
def test_impossible_options_are_named(config, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with refused(message):
        main([str(config), *options])
