from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.sets.examine import examine_datasets
from eval.sets.registry import TEST_SETS
from eval.submissions.bravo import SUBSETS
from jobs.doctor import main
from jobs.synthesize import main as synthesize
from tests.eval.sets.test_layouts import overlay_of, write_lost_and_found, write_png, write_static
from tests.support.refused import refused

Findings = dict[str, tuple[list[str], list[str], list[str]]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "world"
    sizes = ["--height", "64", "--train", "2", "--val", "1", "--coco", "2", "--coco_height", "96"]
    synthesize(["--out", str(out), *sizes, "--workers", "1", "--anomaly_images", "2"])
    return out


def examine(root: Path) -> Findings:
    return {f.name: (f.lines, f.differences, f.problems) for f in examine_datasets(root)}


def folder_of(world: Path, name: str) -> Path:
    return next(path.parent for path in sorted(world.rglob(name)))


def test_cityscapes_is_counted_and_compared(world: Path) -> None:
    lines, differences, problems = examine(folder_of(world, "leftImg8bit"))["Cityscapes"]
    assert not problems
    assert "train frames: 2" in lines
    assert "train frames: 2, known are 2975" in differences
    assert "train sizes: 128 x 64 (2), known are 2048 x 1024 (2)" in differences
    (shares,) = [line for line in lines if line.startswith("train shares: ")]
    parts = [float(part.rsplit(" ", 1)[1]) for part in shares.removeprefix("train shares: ").split(", ")]
    assert sum(parts) == pytest.approx(1, abs=0.002)


def test_coco_is_counted_and_compared(world: Path) -> None:
    ((name, (lines, differences, problems)),) = examine(folder_of(world, "train2017")).items()
    assert (name, problems) == ("COCO train2017", [])
    assert "photographs: 2" in lines
    assert "photographs: 2, known are 118287" in differences


def test_the_five_anomaly_sets_are_counted_and_compared(world: Path) -> None:
    found = examine(folder_of(world, "RoadAnomaly21"))
    assert [name.split(" ")[0] for name in found] == list(TEST_SETS)
    for lines, differences, problems in found.values():
        assert not problems
        assert "frames: 2" in lines
        assert any(line.startswith("frames: 2, known are") for line in differences)
        shares = [float(line.split(": ")[1]) for line in lines if "pixels" in line]
        assert 0 < shares[0] < shares[1] < sum(shares) <= 1.0001


def write_frame(root: Path, mask: np.ndarray) -> Path:
    """Write a mask, and an image that is broken."""
    for folder in ("images", "labels_masks"):
        (root / folder).mkdir(parents=True)
    (root / "images/0.jpg").write_bytes(b"junk")
    cv2.imwrite(str(root / "labels_masks/0.png"), mask)
    return root


def test_known_shares_are_compared(tmp_path: Path) -> None:
    """A set of the known size, whose masks hold exactly the known shares, differs in nothing."""
    mask = np.zeros((720, 1280), np.uint8)
    mask.reshape(-1)[: round(0.098 * mask.size)] = 2
    root = write_frame(tmp_path / "RoadAnomaly", mask)
    cv2.imwrite(str(root / "images/0.jpg"), np.zeros((720, 1280, 3), np.uint8))
    for i in range(1, 60):
        (root / f"images/{i}.jpg").symlink_to(root / "images/0.jpg")
        (root / f"labels_masks/{i}.png").symlink_to(root / "labels_masks/0.png")
    ((_, differences, problems),) = examine(tmp_path).values()
    assert differences == problems == []


def test_damage_is_named_and_is_an_error(tmp_path: Path) -> None:
    root = write_frame(tmp_path / "sets/fs_static", np.zeros((4, 4), np.uint8))
    with refused(r"sets: .*0\.jpg: cannot be decoded as a picture"):
        main(["dataset", str(tmp_path / "sets")])
    (root / "images/1.jpg").write_bytes(b"junk")
    assert "image without mask" in examine(tmp_path / "sets")["anomaly sets"][2][0]


def test_differences_are_an_error_only_if_asked(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(folder_of(world, "train2017"))
    main(["dataset", root, "--limit", "1"])
    assert "differs: photographs: 2, known are 118287" in capsys.readouterr().out
    with refused("photographs: 2, known are 118287"):
        main(["dataset", root, "--strict", "True"])


def test_a_missing_photograph_is_a_problem(world: Path, tmp_path: Path) -> None:
    shutil.copytree(folder_of(world, "train2017") / "annotations", tmp_path / "annotations")
    (tmp_path / "train2017").mkdir()
    assert "2 photographs are missing" in examine(tmp_path)["COCO train2017"][2][0]


def test_a_folder_with_nothing_known_is_refused(tmp_path: Path) -> None:
    with refused("neither Cityscapes .*, COCO .* nor an anomaly set"):
        main(["dataset", str(tmp_path)])


def test_official_downloads_are_counted_and_compared(tmp_path: Path) -> None:
    write_lost_and_found(tmp_path / "LostAndFound", *(f"02_Weg_000000_{i:06d}" for i in range(3)))
    write_static(tmp_path, overlay_of(1, 1, 1))
    for name in ("dataset_AnomalyTrack/images/zebra0000.jpg", *(f"bravo_{s}/fog/0.png" for s in SUBSETS)):
        write_png(tmp_path / name, np.zeros((44, 80, 3), np.uint8))
    found = examine(tmp_path)
    lines, differences, problems = found["lost_and_found_test (Lost & Found)"]
    assert not problems
    assert "frames: 3, known are 1043" in differences
    assert any(line.startswith("anomalous pixels: 0.") for line in lines)
    lines, _, problems = found["fs_static (FS Static)"]
    assert not problems
    assert "version: fs_val_v3, by the folder's name" in lines
    lines, _, problems = found["AnomalyTrack-all (smiyc, images to predict, without labels here)"]
    assert (lines, problems) == (["images: 1", "sizes: 80 x 44 (1)"], [])
    assert "images: 6, known are 3901" in found["BRAVO, all subsets"][1]


def test_the_version_of_a_zip_is_its_md5(tmp_path: Path) -> None:
    folder = write_static(tmp_path, overlay_of(1, 1, 1))
    shutil.make_archive(str(tmp_path / "fs_val_v1"), "zip", folder)
    shutil.rmtree(folder)
    lines, differences, problems = examine(tmp_path)["fs_static_v1 (FS Static v1)"]
    digest = hashlib.md5((tmp_path / "fs_val_v1.zip").read_bytes()).hexdigest()
    assert f"MD5 of fs_val_v1.zip: {digest}" in lines
    assert f"MD5 of fs_val_v1.zip: {digest}, known are 79fb134419c83f2f20b575955efa9d20" in differences
    assert not problems


def test_a_hidden_split_alone_is_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "dataset_ObstacleTrack/images"
    folder.mkdir(parents=True)
    (folder / "curvy-street_1.webp").write_bytes(b"no picture")
    ((name, (_, _, problems)),) = examine(tmp_path).items()
    assert name.startswith("ObstacleTrack-all (smiyc, images to predict")
    text = "cannot be decoded as a picture (10 bytes); PNG, JPEG and WebP are read"
    assert problems == [f"{folder}/curvy-street_1.webp: {text}"]
