"""Test sets are read as their authors publish them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.sets import layouts as official_layouts
from eval.sets.registry import check_masks, find_test_sets, read_image, read_target
from tests.support.refused import refused

FRAME = "frankfurt_000000_000294"


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


def write_files(root: Path, *names: str) -> None:
    for name in names:
        write_png(root / name, np.array([[0, 1, 255]] * 2, dtype=np.uint8))


def write_static(root: Path, overlay: np.ndarray, name: str = "fs_val_v3") -> Path:
    """Write one frame: an image of B 10, G 20, R 200, labels 0 1 255, and the overlay."""
    image = np.full((2, 3, 3), (10, 20, 200), dtype=np.uint8)
    write_png(root / "cityscapes/leftImg8bit/val/frankfurt" / f"{FRAME}_leftImg8bit.png", image)
    write_files(root, f"{name}/0000_{FRAME}_labels.png")
    np.savez_compressed(root / name / f"0000_{FRAME}_rgb.npz", rgb=overlay)
    return root / name


def leave_traces(root: Path) -> None:
    """Leave what macOS, a Synology and Windows leave beside every file."""
    for path in sorted(root.rglob("*")):
        if path.is_file():
            (path.parent / f"._{path.name}").write_bytes(b"\0\5\26\7")
            (path.parent / "@eaDir" / path.name).mkdir(parents=True, exist_ok=True)
            (path.parent / "Thumbs.db").write_bytes(b"x")
            (path.parent / ".DS_Store").write_bytes(b"x")


def overlay_of(*rgb: int) -> np.ndarray:
    overlay = np.zeros((2, 3, 3), dtype=np.int16)
    overlay[:, 1] = rgb
    return overlay


def test_an_overlay_is_added_in_rgb_and_clipped(tmp_path: Path) -> None:
    write_static(tmp_path, overlay_of(100, -30, 5))
    (found,) = find_test_sets(tmp_path)
    assert found.name == "FS Static"
    (frame,) = found.frames
    np.testing.assert_array_equal(read_image(frame)[0], [[200, 20, 10], [255, 0, 15], [200, 20, 10]])
    np.testing.assert_array_equal(read_target(frame, found.convention)[0], [0, 1, 255])


@pytest.mark.parametrize("top", ["", "fs_val_v3/"])
def test_the_zip_is_read_as_it_came(tmp_path: Path, top: str) -> None:
    folder = write_static(tmp_path, overlay_of(9, 9, 9))
    unpacked = read_image(find_test_sets(tmp_path)[0].frames[0])
    with zipfile.ZipFile(tmp_path / "fs_val_v3.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"{top}{path.name}")
            path.unlink()
    folder.rmdir()
    (found,) = find_test_sets(tmp_path)
    check_masks(found)
    np.testing.assert_array_equal(read_image(found.frames[0]), unpacked)


def test_every_version_is_a_set_of_its_own(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        write_static(tmp_path, overlay_of(1, 1, 1), f"fs_val_v{version}")
    assert [found.name for found in find_test_sets(tmp_path)] == ["FS Static", "FS Static v1", "FS Static v2"]


def test_what_is_wrong_with_an_overlay_is_named(tmp_path: Path) -> None:
    folder = write_static(tmp_path, overlay_of(1, 1, 1)[:1])
    path = folder / f"0000_{FRAME}_rgb.npz"
    (frame,) = find_test_sets(tmp_path)[0].frames
    with refused(r"_rgb.npz: shape \(1, 3, 3\) of rgb; its image .* is \(2, 3, 3\)"):
        read_image(frame)
    np.savez_compressed(path, other=np.zeros(3))
    other = path.read_bytes()
    np.savez_compressed(path, rgb=overlay_of(1, 1, 1))
    damaged, locked = bytearray(path.read_bytes()), bytearray(path.read_bytes())
    damaged[30 + sum(np.frombuffer(damaged[26:30], np.uint16))] = 0xFF  # no kind of a compressed block
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        locked[locked.find(header) + flags] |= 1  # says that it is encrypted
    for content in (other, b"no zip", damaged, locked):
        path.write_bytes(content)
        with refused(r"_rgb.npz: cannot be read as an overlay, an npz file with rgb"):
            read_image(frame)
    path.unlink()
    with refused(r"_labels.png: mask without overlay; expected .*_rgb.npz beside it"):
        find_test_sets(tmp_path)


def test_an_overlay_that_promises_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_static(tmp_path, overlay_of(1, 1, 1))
    monkeypatch.setattr("eval.sets.frames.MAX_PIXELS", 5)  # of 24 bytes; the array has 36 and a header
    (frame,) = find_test_sets(tmp_path)[0].frames
    with refused(r"_rgb.npz: says that rgb has 164 bytes; at most"):
        read_image(frame)


def test_overlays_without_cityscapes_say_what_is_missing(tmp_path: Path) -> None:
    write_static(tmp_path, overlay_of(1, 1, 1))
    (tmp_path / "cityscapes").rename(tmp_path / "elsewhere")
    with refused("leftImg8bit/val: no such folder; fs_val_v3 holds overlays only"):
        find_test_sets(tmp_path)


def write_lost_and_found(root: Path, *stems: str) -> None:
    labels = np.array([[0, 1, 2, 43, 200]], dtype=np.uint8)
    for stem in stems:
        sequence = stem.rsplit("_", 2)[0]
        write_png(root / "leftImg8bit/test" / sequence / f"{stem}_leftImg8bit.png", labels)
        write_png(root / "gtCoarse/test" / sequence / f"{stem}_gtCoarse_labelIds.png", labels)
        write_png(root / "gtCoarse/test" / sequence / f"{stem}_gtCoarse_color.png", labels)


def test_lost_and_found_leaves_out_what_cityscapes_knows(tmp_path: Path) -> None:
    kept = ("02_Hanns_Klemm_Str_44_000000_000020", "10_Schlossberg_9_000003_000010")
    known = ("10_Schlossberg_9_000004_000010", "15_Rechbergstr_Deckenpfronn_000000_000010")
    write_lost_and_found(tmp_path / "dataset_LostAndFound", *kept, *known)
    (found,) = find_test_sets(tmp_path)
    assert found.name == "Lost & Found"
    assert [frame.stem for frame in found.frames] == list(kept)
    np.testing.assert_array_equal(read_target(found.frames[0], found.convention)[0], [255, 0, 1, 1, 1])


def test_frames_with_empty_labels_are_left_out_of_the_complete_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lost_and_found(tmp_path / "LostAndFound", *(f"02_Weg_000000_{i:06d}" for i in range(4)))
    monkeypatch.setattr(official_layouts, "_LAF_UNLABELLED", (1,))
    assert len(find_test_sets(tmp_path)[0]) == 4
    monkeypatch.setattr(official_layouts, "LAF_TEST_FRAMES", 4)
    stems = [frame.stem for frame in find_test_sets(tmp_path)[0].frames]
    assert stems == [f"02_Weg_000000_{i:06d}" for i in (0, 2, 3)]


def test_lost_and_found_without_a_mask_or_images_is_refused(tmp_path: Path) -> None:
    stem = "02_Weg_000000_000000"
    write_lost_and_found(tmp_path / "LostAndFound", stem)
    (tmp_path / f"LostAndFound/gtCoarse/test/02_Weg/{stem}_gtCoarse_labelIds.png").unlink()
    with refused(rf"{stem}_leftImg8bit.png: image without mask; expected {stem}_gt"):
        find_test_sets(tmp_path)
    (tmp_path / "LostAndFound/leftImg8bit").rename(tmp_path / "elsewhere")
    with refused("leftImg8bit/test: no such folder; LostAndFound holds"):
        find_test_sets(tmp_path)


def test_images_of_lost_and_found_alone_are_those_of_fishyscapes(tmp_path: Path) -> None:
    stem = "04_Maurener_Weg_8_000000_000030"
    write_lost_and_found(tmp_path / "LostAndFound", stem)
    write_files(tmp_path, f"fishyscapes_lostandfound/0000_{stem}_labels.png")
    names = ["FS L&F", "Lost & Found"]
    found = find_test_sets(tmp_path)
    assert [test_set.name for test_set in found] == names
    assert found[0].frames[0].image.name == f"{stem}_leftImg8bit.png"
    (tmp_path / "LostAndFound/gtCoarse").rename(tmp_path / "elsewhere")
    assert [found.name for found in find_test_sets(tmp_path)] == names[:1]


def test_smiyc_gives_the_frames_with_labels(tmp_path: Path) -> None:
    track, ending = "dataset_AnomalyTrack", "labels_semantic"
    for stem in ("validation0001", "validation0000"):
        masks = [f"{track}/labels_masks/{stem}_{ending}{kind}.png" for kind in ("", "_color")]
        write_files(tmp_path, f"{track}/images/{stem}.jpg", *masks)
    write_files(tmp_path, f"{track}/images/airplane0000.jpg")
    (found,) = find_test_sets(tmp_path)
    assert found.name == "SMIYC RA-21"
    assert [frame.image.name for frame in found.frames] == ["validation0000.jpg", "validation0001.jpg"]
    assert [frame.mask.name for frame in found.frames] == [f"validation000{i}_{ending}.png" for i in (0, 1)]


def test_road_anomaly_has_a_folder_of_labels_per_frame(tmp_path: Path) -> None:
    frames = tmp_path / "RoadAnomaly_jpg/frames"
    write_files(frames, "animals01.jpg", "animals01.labels/labels_semantic.png")
    (found,) = find_test_sets(tmp_path)
    assert found.name == "Road Anomaly"
    assert found.frames[0].mask.parent.name == "animals01.labels"


def test_the_course_folder_wins_over_the_official_one(tmp_path: Path) -> None:
    course = ("RoadAnomaly21/images/0.png", "RoadAnomaly21/labels_masks/0.png")
    write_files(tmp_path, *course, "dataset_AnomalyTrack/images/a.jpg")
    assert [frame.stem for frame in find_test_sets(tmp_path)[0].frames] == ["0"]


def test_a_hidden_split_is_refused_alone_and_passed_over_and_named_beside_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "dataset_ObstacleTrack: no mask in it; the labels of a hidden test split"
    write_files(tmp_path, "dataset_ObstacleTrack/images/curvy-street_1.webp")
    with refused(text):
        find_test_sets(tmp_path)
    write_files(tmp_path, "RoadAnomaly21/images/0.png", "RoadAnomaly21/labels_masks/0.png")
    with caplog.at_level("INFO"):
        assert [found.name for found in find_test_sets(tmp_path)] == ["SMIYC RA-21"]
    assert text in caplog.text
    write_files(tmp_path, "dataset_ObstacleTrack/labels_masks/validation_1_labels_semantic.png")
    with refused(r"validation_1_labels_semantic.png: mask without image"):
        find_test_sets(tmp_path)


def test_fishyscapes_without_lost_and_found_says_what_is_missing(tmp_path: Path) -> None:
    write_files(tmp_path, "fishyscapes_lostandfound/0000_a_0_1_labels.png")
    text = "leftImg8bit: no such folder; fishyscapes_lostandfound holds masks only"
    with refused(text):
        find_test_sets(tmp_path)


def test_hidden_files_change_no_layout(tmp_path: Path) -> None:
    write_static(tmp_path, overlay_of(9, 9, 9))
    stem, sequence = "04_Maurener_Weg_8_000000_000010", "04_Maurener_Weg_8"
    write_files(
        tmp_path,
        "RoadAnomaly21/images/a.png", "RoadAnomaly21/labels_masks/a.png",
        "dataset_ObstacleTrack/images/b.png", "dataset_ObstacleTrack/labels_masks/b_labels_semantic.png",
        "RoadAnomaly_jpg/frames/c.png", "RoadAnomaly_jpg/frames/c.labels/labels_semantic.png",
        f"fishyscapes_lostandfound/0000_{stem}_labels.png",
        f"LostAndFound/leftImg8bit/test/{sequence}/{stem}_leftImg8bit.png",
        f"LostAndFound/gtCoarse/test/{sequence}/{stem}_gtCoarse_labelIds.png",
    )  # fmt: skip
    clean = [found.frames for found in find_test_sets(tmp_path)]
    assert [len(frames) for frames in clean] == [1] * 6
    leave_traces(tmp_path)
    assert [found.frames for found in find_test_sets(tmp_path)] == clean
