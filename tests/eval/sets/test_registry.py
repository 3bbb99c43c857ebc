"""The course's folders are found and read, and what is wrong with them is said in one line."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.sets.benchmarks import read_own_sets
from eval.sets.registry import (
    Convention,
    check_masks,
    find_test_sets,
    read_image,
    read_target,
    require_same_size,
)
from tests.support.refused import refused


def write_set(root: Path, folder: str, masks: dict[str, np.ndarray], suffix: str = ".png") -> Path:
    for name in ("images", "labels_masks"):
        (root / folder / name).mkdir(parents=True)
    for i, (stem, mask) in enumerate(masks.items()):
        image = np.full((*mask.shape, 3), (10 * i, 20, 200), dtype=np.uint8)  # BGR
        cv2.imwrite(str(root / folder / "images" / f"{stem}{suffix}"), image)
        cv2.imwrite(str(root / folder / "labels_masks" / f"{stem}.png"), mask)
    return root


def mask_of(*values: int) -> np.ndarray:
    return np.array([values, values], dtype=np.uint8)


def test_sets_come_in_table_order_and_only_those_present(tmp_path):
    folders = ("fs_static", "RoadAnomaly", "FS_LostFound_full", "RoadObsticle21", "RoadAnomaly21")
    for folder in folders:
        write_set(tmp_path, folder, {"0": mask_of(0, 2)})
    (tmp_path / "unrelated").mkdir()
    names = ["SMIYC RA-21", "SMIYC RO-21", "FS L&F", "FS Static", "Road Anomaly"]
    assert [found.name for found in find_test_sets(tmp_path)] == names
    (tmp_path / "RoadAnomaly").rename(tmp_path / "elsewhere")  # RoadAnomaly21 is another one
    assert [found.name for found in find_test_sets(tmp_path)] == names[:-1]


def test_frames_are_in_numeric_order(tmp_path):
    write_set(tmp_path, "fs_static", {stem: mask_of(0, 1) for stem in ("10", "2", "0", "scene_1")})
    (found,) = find_test_sets(tmp_path)
    assert [frame.stem for frame in found.frames] == ["scene_1", "0", "2", "10"]
    assert len(find_test_sets(tmp_path, limit=2)[0]) == 2


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_images_of_every_format_are_read_as_rgb(tmp_path, suffix):
    write_set(tmp_path, "RoadObsticle21", {"0": mask_of(*[0] * 16)}, suffix)
    frame = find_test_sets(tmp_path)[0].frames[0]
    np.testing.assert_allclose(read_image(frame)[0, 0].astype(int), (200, 20, 0), atol=4)  # JPEG is lossy


def test_the_two_of_road_anomaly_is_one_void_stays_void_and_grey_saved_as_rgb_is_read(tmp_path):
    write_set(tmp_path, "fs_static", {"0": mask_of(0, 1, 255)})
    write_set(tmp_path, "RoadAnomaly", {"0": mask_of(0, 2, 0)})
    static, road = find_test_sets(tmp_path)
    cv2.imwrite(str(static.frames[0].mask), np.repeat(mask_of(0, 1, 255)[..., None], 3, axis=2))
    for found, expected in ((static, [0, 1, 255]), (road, [0, 1, 0])):
        np.testing.assert_array_equal(read_target(found.frames[0], found.convention)[0], expected)


MASKS = ("labels_masks/0.png", "labels_masks/1.png")
ONE_CLASS = "fs_static: no {} pixel in any of 2 masks"
REMEDY = ".* to --sets with values: {0: normal, 255: anomaly}"
FAULTS = [
    ("RoadAnomaly21", MASKS[:1], mask_of(0, 2), "0.png: label value 2; allowed in RoadAnomaly21: 0, 1, 255"),
    ("RoadAnomaly", MASKS[:1], mask_of(0, 1), "masks/0.png: label value 1; allowed in RoadAnomaly: 0, 2"),
    (
        "fs_static",
        MASKS[:1],
        np.eye(3, dtype=np.uint8)[None],
        "a mask in colour, or transparent; expected one",
    ),
    ("fs_static", MASKS[1:], None, "images/1.png: image without mask; expected .*labels_masks/1.png"),
    ("fs_static", ["images/0.png"], None, "labels_masks/0.png: mask without image; expected .*images/0 with"),
    ("fs_static", ["images/0.jpg"], b"", "0.png: two files for one frame; the other is 0.jpg"),
    ("fs_static", ["images/0.png"], b"no image", "images/0.png: cannot be decoded as a picture"),
    ("fs_static", MASKS[:1], b"no image", "labels_masks/0.png: is no PNG file"),
    ("fs_static", MASKS[:1], mask_of(0, 1, 1, 1), "images/0.png: image is 2 x 2, its mask 4 x 2"),
    ("fs_static", MASKS, mask_of(0, 255), ONE_CLASS.format("anomalous") + REMEDY),
    ("fs_static", MASKS, mask_of(0, 0), ONE_CLASS.format("anomalous") + REMEDY),
    ("fs_static", MASKS, mask_of(1, 255), ONE_CLASS.format("normal") + "$"),
]


@pytest.mark.parametrize(("folder", "names", "content", "text"), FAULTS)
def test_a_fault_of_a_set_is_named(tmp_path, folder, names, content, text):
    """None removes the files that are named."""
    write_set(tmp_path, folder, dict.fromkeys("01", mask_of(0, 2 if folder == "RoadAnomaly" else 1)))
    for path in (tmp_path / folder / name for name in names):
        if isinstance(content, np.ndarray):
            cv2.imwrite(str(path), content)
        elif content is None:
            path.unlink()
        else:
            path.write_bytes(content)
    with refused(text):
        (found,) = find_test_sets(tmp_path)
        for frame in found.frames:
            require_same_size(frame, read_image(frame), read_target(frame, found.convention))
        check_masks(found)


def test_no_set_at_all_lists_the_expected_names(tmp_path):
    text = r"no test set in it; expected one or more of RoadAnomaly21, .*, LostAndFound$"
    with refused(text):
        find_test_sets(tmp_path)
    (tmp_path / "fs_static").mkdir()
    with refused("give the folder above it"):
        find_test_sets(tmp_path / "fs_static")
    with refused(r"--datasets .*nowhere: no such folder"):
        find_test_sets(tmp_path / "nowhere")
    with refused("--limit: got 0; at least 1"):
        find_test_sets(tmp_path, limit=0)


def test_an_empty_set_and_a_set_without_folders_are_refused(tmp_path):
    write_set(tmp_path, "fs_static", {})
    with refused("fs_static: the test set is empty"):
        find_test_sets(tmp_path)
    (tmp_path / "fs_static/images").rmdir()
    with refused("images: no such folder; a test set holds images/ and labels_masks/"):
        find_test_sets(tmp_path)


def test_three_lines_describe_a_set_of_ones_own_that_is_then_read(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("night:\n  values: {3: normal, 7: anomaly, 9: void}\n  use: validation\n")
    write_set(tmp_path, "night", {"a": mask_of(3, 7, 9)})
    own = read_own_sets(path)
    assert own == (Convention("night", "night", {3: 0, 7: 1, 9: 255}, is_benchmark=False),)
    (found,) = find_test_sets(tmp_path, own=own)
    np.testing.assert_array_equal(read_target(found.frames[0], found.convention)[0], [0, 1, 255])


def test_values_and_use_of_a_set_of_ones_own_may_be_left_out(tmp_path):
    (tmp_path / "own.yaml").write_text("day: {name: Day drives}\nnight:\n")
    day, night = read_own_sets(tmp_path / "own.yaml")
    assert (day.name, night.name, day.is_benchmark) == ("Day drives", "night", True)
    assert day.values == {0: 0, 1: 1, 255: 255}
    with refused("no folder day, which --sets describes"):
        find_test_sets(tmp_path, own=(day,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {valeus: 3}", r"a: got valeus; allowed keys are name, values, use"),
        ("a: {use: training}", r"a: use: got 'training'; allowed are benchmark, validation"),
        ("a: {values: {0: normal}}", r"a: values: got .*; expected 0..255 to normal, anomaly, void"),
        ("a: {values: {0: normal, 300: anomaly}}", "a: values: got"),
        ("RoadAnomaly: {}", "RoadAnomaly: RoadAnomaly is the name of a known test set"),
        ("roadanomaly_21: {}", "roadanomaly_21: roadanomaly_21 is the name of a known test set"),
        ("dataset_AnomalyTrack: {}", "is the name of the download of a known test set"),
        ("pastedval: {}", "is the name of a known test set"),
        ("cityscapes: {}", "cityscapes is the name of Cityscapes val"),
        ("a: {name: SMIYC RA-21}", "a: SMIYC RA-21 is the name of a known test set"),
        ("a: {name: miou}", "miou is the name of a column"),
        ("a: {name: Night}\nb: {name: night}", "b: night is the name of set a of this file"),
        ("night:\nnight.:", "got 'night.'|ends neither in .npz nor in a dot"),
        ("a.npz:", "ends neither in .npz nor in a dot"),
        ("/abs/RA:", "got '/abs/RA'; 120 letters"),
        ("../small/RA:", "got '../small/RA'; 120 letters"),
        ("..:", r"got '\.\.'; 120 letters"),
        ("RA/:", "got 'RA/'; 120 letters"),
        ('"a\\nb":', "120 letters"),
        ("a: {name: [1]}", r"a: name: got \[1\]; one line of 1 to 120 printable characters is needed"),
        ('a: {name: "b\\nc"}', "name: got 'b.nc'; one line"),
        ("a: {values: {0: [normal]}}", "a: values: got"),
        ("a: {use: [validation]}", "a: use: got"),
        ("a: 3", "a: got 3; allowed keys"),
        ("- a", r"expected folders and what is known of each, got \['a'\]"),
        ("a: [", "not a YAML file"),
    ],
)
def test_a_mistake_in_a_set_of_ones_own_is_named(tmp_path, text, message):
    (tmp_path / "own.yaml").write_text(text)
    with refused(message):
        read_own_sets(tmp_path / "own.yaml")
