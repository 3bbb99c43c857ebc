"""Cityscapes: what is read, what is written, and which downloads are refused."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.prepare.cityscapes import list_frames, open_cityscapes, plan_cityscapes
from shards.prepare.plan import FolderPlan
from shards.scene import decode_label_ids
from shards.schema import CITYSCAPES_CLASSES, VOID_ID
from tests.support.refused import refused
from tests.support.tars import encode

SIZE = (24, 40)


def image_path(root: Path, key: str, split: str = "train") -> Path:
    return root / "leftImg8bit" / split / key.split("_")[0] / f"{key}_leftImg8bit.png"


def label_path(root: Path, key: str, split: str = "train") -> Path:
    return root / "gtFine" / split / key.split("_")[0] / f"{key}_gtFine_labelIds.png"


def add_frame(root: Path, key: str, split: str = "train") -> None:
    """Write a smooth picture and a label map that holds every label id, -1 included."""
    rows, columns = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    picture = np.stack([columns * 6, rows * 9, np.full(SIZE, len(key))], axis=-1).astype(np.uint8)
    label = (np.arange(SIZE[0] * SIZE[1]) % 35).reshape(SIZE).astype(np.uint8)
    label[label == 34] = 255
    for path, array in ((image_path(root, key, split), picture), (label_path(root, key, split), label)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(array))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for key in ("bochum_000000_000001", "aachen_000001_000019", "aachen_000000_000019"):
        add_frame(tmp_path / "root", key)
    add_frame(tmp_path / "root", "frankfurt_000000_000294", "val")
    return tmp_path / "root"


def zip_halves(root: Path, out: Path) -> Path:
    out.mkdir()
    for half in ("leftImg8bit", "gtFine"):
        with zipfile.ZipFile(out / f"{half}_trainvaltest.zip", "w") as archive:
            archive.writestr("README", "as in the official file")
            for path in sorted((root / half).rglob("*.png"), reverse=True):
                archive.write(path, path.relative_to(root).as_posix())
    return out


def all_samples(plan: FolderPlan) -> list[tuple[str, str, dict[str, bytes]]]:
    return [(shard.name, key, dict(members)) for shard in plan.shards for key, members in shard.samples()]


def test_frames_are_sorted_by_key_and_shards_numbered_per_split(root: Path) -> None:
    names = [(name, key) for name, key, _ in all_samples(plan_cityscapes(root, samples_per_shard=1))]
    assert names == [
        ("cityscapes-train-000000.tar", "aachen_000000_000019"),
        ("cityscapes-train-000001.tar", "aachen_000001_000019"),
        ("cityscapes-train-000002.tar", "bochum_000000_000001"),
        ("cityscapes-val-000000.tar", "frankfurt_000000_000294"),
    ]


def test_folder_and_zip_give_the_same_samples(root: Path, tmp_path: Path) -> None:
    archives = zip_halves(root, tmp_path / "zips")
    assert all_samples(plan_cityscapes(archives)) == all_samples(plan_cityscapes(root))


def test_labels_hold_the_train_ids_of_the_official_table(root: Path) -> None:
    _, _, members = all_samples(plan_cityscapes(root))[0]
    label = cv2.imdecode(np.frombuffer(members["label.png"], np.uint8), cv2.IMREAD_UNCHANGED)
    label_ids = cv2.imread(str(label_path(root, "aachen_000000_000019")), cv2.IMREAD_UNCHANGED)
    expected = np.full(SIZE, VOID_ID)
    for train_id, entry in enumerate(CITYSCAPES_CLASSES):
        expected[label_ids == entry.ids[0]] = train_id
    assert (label.dtype, label.shape) == (np.uint8, SIZE)
    np.testing.assert_array_equal(label, expected)


def test_png_keeps_the_bytes_of_the_original(root: Path) -> None:
    _, key, members = all_samples(plan_cityscapes(root, image_encoding="png"))[0]
    assert sorted(members) == ["image.png", "label.png"]
    assert members["image.png"] == image_path(root, key).read_bytes()


def test_val_frames_are_stored_without_loss_unless_asked(root: Path) -> None:
    kinds = {}
    for encoding in ("png", "jpeg"):
        samples = all_samples(plan_cityscapes(root, val_encoding=encoding))
        pictures = [(shard.split("-")[1], name) for shard, _, files in samples for name in files]
        kinds[encoding] = {pair for pair in pictures if pair[1].startswith("image")}
    assert kinds["png"] == {("train", "image.jpg"), ("val", "image.png")}
    assert kinds["jpeg"] == {("train", "image.jpg"), ("val", "image.jpg")}


def test_jpeg_is_near_the_original_and_has_full_colour_resolution(root: Path) -> None:
    _, key, members = all_samples(plan_cityscapes(root))[0]
    assert sorted(members) == ["image.jpg", "label.png"]
    decoded = cv2.imdecode(np.frombuffer(members["image.jpg"], np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(decoded.astype(int) - cv2.imread(str(image_path(root, key)))).mean() < 2
    header = members["image.jpg"].index(b"\xff\xc0")  # start of frame; sampling factors are at 11, 14 and 17
    assert {members["image.jpg"][header + at] for at in (11, 14, 17)} == {0x11}


def test_only_the_chosen_splits_are_read(root: Path) -> None:
    image_path(root, "frankfurt_000000_000294", "val").write_bytes(b"broken")
    assert len(all_samples(plan_cityscapes(root, splits=["train"]))) == 3


def test_a_split_named_twice_is_read_once(root: Path) -> None:
    assert len(plan_cityscapes(root, splits=["val", "val"]).shards) == 1


def test_files_of_macos_are_ignored(root: Path) -> None:
    path = image_path(root, "aachen_000000_000019")
    path.with_name(f"._{path.name}").write_bytes(b"resource fork")
    assert len(list_frames(open_cityscapes(root), "train")) == 3


FIRST, SECOND = "aachen_000000_000019", "aachen_000001_000019"
IMAGE = f"leftImg8bit/train/aachen/{FIRST}_leftImg8bit.png"
LABEL = f"gtFine/train/aachen/{FIRST}_gtFine_labelIds.png"
HALVES = ("leftImg8bit", "gtFine")


def move(root: Path, *names: str) -> None:
    for name in names:
        (root / name).rename(root / name.replace("/", "-").upper())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "--root ROOT: is no folder; one that holds leftImg8bit/ and gtFine/"),
        (lambda root: move(root, HALVES[0]), "ROOT: holds neither a folder leftImg8bit/ nor leftImg8bit_"),
        (lambda root: move(root, HALVES[1]), "ROOT: holds neither a folder gtFine/ nor gtFine_trainval"),
        (
            lambda root: move(root, "leftImg8bit/val", "gtFine/val"),
            r"split 'val' is empty: no file ROOT/leftImg8bit/val/\*/\*_leftImg8bit\.png",
        ),
        (lambda root: (root / LABEL).unlink(), f"image ROOT/{IMAGE} has no label ROOT/{LABEL}$"),
        (
            lambda root: [image_path(root, key).unlink() for key in (FIRST, SECOND)],
            rf"label ROOT/{LABEL} has no image ROOT/{IMAGE} \(and 1 more\)$",
        ),
        (
            lambda root: add_frame(root, "aachen_1.5"),
            r"aachen_1\.5_.*: the part before _leftImg8bit\.png may hold only letters",
        ),
        (
            lambda root: shutil.copy(root / IMAGE, root / "leftImg8bit/train/bochum"),
            f"ROOT/leftImg8bit/train/bochum/{FIRST}_.*: the same frame is also at ROOT/{IMAGE}",
        ),
        (lambda root: add_frame(root, FIRST, "val"), f"split 'val': frame {FIRST} is also in another split"),
        (
            lambda root: (root / LABEL).write_bytes(encode(np.zeros((12, 20), np.uint8))),
            f"ROOT/{LABEL} is 20x12 pixels, but ROOT/{IMAGE} is 40x24; they must be equal",
        ),
        (
            lambda root: (root / IMAGE).write_bytes((root / IMAGE).read_bytes()[:-20]),
            f"ROOT/{IMAGE}: cannot be decoded as a picture",
        ),
    ],
)
def test_a_damaged_download_is_refused(root: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(root)
    for encoding in ("jpeg", "png"):
        with refused(message.replace("ROOT", str(root))):
            all_samples(plan_cityscapes(root, image_encoding=encoding))


def test_a_jpeg_that_is_called_png_keeps_its_pixels(root: Path) -> None:
    path = image_path(root, "aachen_000000_000019")
    path.write_bytes(cv2.imencode(".jpg", cv2.imread(str(path)))[1].tobytes())
    stored = {key: members for _, key, members in all_samples(plan_cityscapes(root, image_encoding="png"))}
    content = np.frombuffer(stored["aachen_000000_000019"]["image.png"], np.uint8)
    assert np.array_equal(cv2.imdecode(content, cv2.IMREAD_COLOR), cv2.imread(str(path)))


@pytest.mark.parametrize("value", [34, 254])
def test_an_unknown_label_value_is_refused(value: int) -> None:
    label = np.zeros(SIZE, np.uint8)
    label[0, :3] = value
    text = rf"x\.png holds {value}; allowed are label ids 0\.\.33 and 255 \("
    with refused(text):
        decode_label_ids(encode(label), "x.png")


TRAIN_IDS = {0: 30, 1: 8, 2: 20, 5: 3, 8: 15, 9: 2, 10: 12, 13: 7, 255: 3}
"""Shares in percent of train ids in a street: road, sidewalk, building, pole, ..."""


@pytest.mark.parametrize(
    ("shares", "is_refused"),
    [
        (TRAIN_IDS, True),
        ({**TRAIN_IDS, 24: 1}, False),
        ({0: 40, 1: 20, 2: 5, 3: 35}, False),
        ({0: 70, 7: 30}, False),
        ({3: 5, 4: 10, 7: 20, 16: 65}, False),
        ({0: 20, 5: 5, 6: 5, 9: 5, 7: 30, 11: 35}, False),
    ],
    ids=["train ids", "a person", "withheld", "road alone", "tunnel", "little void"],
)
def test_a_labelids_file_of_train_ids_is_refused(shares: dict[int, int], is_refused: bool) -> None:
    content = encode(np.repeat(list(shares), list(shares.values())).astype(np.uint8).reshape(1, -1))
    if is_refused:
        with refused(r"x: holds train ids, not label ids \(read as label ids, \d+% of it would be void\)"):
            decode_label_ids(content, "x")
    else:
        decode_label_ids(content, "x")
