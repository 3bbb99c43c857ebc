"""A benchmark is known under every name, at every place, in another format and size, and mirrored."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.sets.benchmarks import require_no_benchmark_scenes, require_own_sets
from eval.sets.fingerprint import Original, find_original, known_originals, take_fingerprint
from eval.sets.registry import TEST_SETS, Convention, find_test_sets
from shards.reader import open_shards
from tests.support.evaluation import write_scenes, write_set
from tests.support.refused import refused


def draw_image(bits: int) -> np.ndarray:
    """Draw the picture (R, G, B) whose fingerprint has these bits."""
    rising = np.unpackbits(np.frombuffer(bits.to_bytes(16, "big"), np.uint8)).reshape(8, 16).astype(bool)
    steps = np.cumsum(np.where(rising, 7, -7), axis=1)
    grey = 128 + np.concatenate([np.zeros((8, 1), int), steps], axis=1)
    grey = grey - (grey.max(axis=1, keepdims=True) + grey.min(axis=1, keepdims=True)) // 2 + 128
    return np.repeat(cv2.resize(grey.astype(np.uint8), (17 * 16, 8 * 16), interpolation=0)[..., None], 3, 2)


def draw_target(bits: int) -> np.ndarray:
    cells = np.unpackbits(np.frombuffer(bits.to_bytes(16, "big"), np.uint8)).reshape(8, 16)
    return np.kron(cells, np.ones((16, 17), np.uint8))


@pytest.fixture(name="sets")
def _sets(tmp_path: Path) -> Path:
    """Two benchmarks, one of images of its own, and a set `mine` of others; outside: another place."""
    rng = np.random.default_rng(3)

    def frames(count: int, anomaly: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
        drawn = []
        for _ in range(count):
            target = draw_target(int(rng.integers(1, 2**63)) << 40)
            drawn.append((draw_image(int.from_bytes(rng.bytes(16), "big")), target * np.uint8(anomaly)))
        return drawn

    of_mine, of_static = frames(2), frames(2)
    write_set(tmp_path / "sets/FS_LostFound_full", frames(3))
    write_set(tmp_path / "sets/fs_static", of_static)
    write_set(tmp_path / "sets/mine", of_mine)
    return tmp_path / "sets"


def guard(sets: Path, name: str = "mine", **changes: object) -> None:
    own = Convention(name, "Mine", is_benchmark=False, **changes)  # type: ignore[arg-type]
    require_own_sets(find_test_sets(sets, own=(own,)), "--datasets sets")


def change_pictures(
    folder: Path, change: Callable[[np.ndarray], np.ndarray], ending: str, *, masks: bool
) -> None:
    for part in ("images", "labels_masks") if masks else ("images",):
        for path in list((folder / part).iterdir()):
            picture = change(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))
            path.unlink()
            to = path.with_suffix(ending if part == "images" else ".png")
            to.write_bytes(cv2.imencode(to.suffix, picture)[1].tobytes())


def smaller(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, (128, 96), interpolation=cv2.INTER_AREA if picture.ndim == 3 else 0)


def keep_one(folder: Path) -> None:
    for path in folder.glob("*/[12].png"):
        path.unlink()


CHANGES: dict[str, Callable[[Path], None]] = {
    "copied": lambda folder: None,
    "one frame of it": keep_one,
    "as JPEG": lambda folder: change_pictures(folder, lambda p: p, ".jpg", masks=False),
    "as WebP": lambda folder: change_pictures(folder, lambda p: p, ".webp", masks=False),
    "smaller": lambda folder: change_pictures(folder, smaller, ".jpg", masks=True),
    "mirrored": lambda folder: change_pictures(folder, lambda p: p[:, ::-1], ".png", masks=True),
    "brighter": lambda folder: change_pictures(
        folder, lambda p: cv2.add(p, (30, 30, 30, 0)), ".png", masks=False
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("original", ["FS_LostFound_full", "fs_static"])
def test_a_copy_of_a_benchmark_beside_it_is_refused(sets: Path, original: str, change: str) -> None:
    shutil.rmtree(sets / "mine")
    shutil.copytree(sets / original, sets / "mine")
    CHANGES[change](sets / "mine")
    text = f"sets: .*mine.*: shows what {TEST_SETS[original].name}, image .*, shows, which is a bench"
    with refused(text):
        guard(sets)


def test_other_masks_over_a_benchmarks_own_images_do_not_help(sets: Path) -> None:
    shutil.rmtree(sets / "mine/images")
    shutil.copytree(sets / "FS_LostFound_full/images", sets / "mine/images")
    (sets / "mine/images/2.png").unlink()
    with refused("shows what FS L&F, image 0, shows"):
        guard(sets)


def test_other_objects_on_the_same_street_are_another_frame(sets: Path) -> None:
    shutil.rmtree(sets / "mine/images")
    shutil.copytree(sets / "fs_static/images", sets / "mine/images")
    guard(sets)


@pytest.mark.parametrize("name", ["LostAndFound", "fs_static_copy", "SMIYC-val", "dataset_AnomalyTrack2"])
def test_a_set_to_choose_on_bears_no_benchmarks_name(sets: Path, name: str) -> None:
    (sets / "mine").rename(sets / name)
    if name.startswith("SMIYC"):
        guard(sets, name)
    else:
        with refused(f"--datasets sets: {name}: .* is a benchmark, on which nothing"):
            guard(sets, name)


@pytest.mark.parametrize("part", [".", "images", "labels_masks", "images/0.png"])
def test_links_are_followed(sets: Path, tmp_path: Path, part: str) -> None:
    elsewhere = tmp_path / ("Fishyscapes" if part == "." else "Fishyscapes/x")
    elsewhere.parent.mkdir(exist_ok=True)
    (sets / "mine" / part).rename(elsewhere)
    (sets / "mine" / part).symlink_to(elsewhere)
    with refused("mine: Fishyscapes is a benchmark"):
        guard(sets)


def test_the_pasted_set_is_looked_at_too_and_benchmarks_of_ones_own_are_beside(sets: Path) -> None:
    shutil.copytree(sets / "fs_static", sets / "PastedVal")
    with refused("PastedVal.*: shows what FS Static, image 0, shows"):
        require_own_sets(find_test_sets(sets), "--datasets sets")
    shutil.rmtree(sets / "PastedVal")
    shutil.copytree(sets / "mine", sets / "PastedVal")
    with refused("PastedVal.*: shows what Mine, image 0, shows"):
        require_own_sets(find_test_sets(sets, own=(Convention("mine", "Mine"),)), "--datasets sets")


def known(folder: str) -> Original:
    name = TEST_SETS[folder].name
    return next(o for o in known_originals() if o.name.startswith(name) and o.fingerprint.mask)


@pytest.mark.parametrize("folder", ["RoadAnomaly21", "RoadObsticle21", "fs_static", "RoadAnomaly"])
def test_published_frames_are_known_without_their_files(folder: str) -> None:
    original = known(folder)
    image, target = draw_image(original.fingerprint.image), draw_target(original.fingerprint.mask)
    assert take_fingerprint(image, target) == original.fingerprint
    assert find_original(image, target, known_originals()) == original.name
    nothing = np.zeros_like(target)
    assert find_original(image, nothing, known_originals()) == (
        "" if folder == "fs_static" else original.name
    )


def test_all_frames_of_four_sets_are_known_and_none_is_another_sets() -> None:
    names = [original.name.partition(",")[0] for original in known_originals()]
    counts = {"SMIYC RA-21": 10, "SMIYC RO-21": 30, "FS Static": 30, "Road Anomaly": 60}
    assert {name: names.count(name) for name in names} == counts


def test_a_blank_picture_tells_nothing() -> None:
    blank, target = np.full((128, 272, 3), 90, np.uint8), draw_target(1 << 90)
    assert find_original(blank, target, [Original("x", take_fingerprint(blank, target), True)]) == ""


def test_labelled_scenes_are_looked_at(tmp_path: Path) -> None:
    image = draw_image(known("RoadAnomaly21").fingerprint.image)
    label = np.zeros(image.shape[:2], np.uint8)
    write_scenes(tmp_path / "val", {"a": (image[..., ::-1], label)})
    reader = open_shards([str(tmp_path / "val")], "val")
    with refused("--cityscapes: a: shows what SMIYC RA-21, image .*, shows, which is a"):
        require_no_benchmark_scenes(reader, "--cityscapes")
    other = draw_image(int.from_bytes(np.random.default_rng(0).bytes(16), "big"))
    write_scenes(tmp_path / "good", {"a": (other, label)})
    require_no_benchmark_scenes(open_shards([str(tmp_path / "good")], "val"), "--cityscapes")
