from __future__ import annotations

import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset

from shards.prepare.writer import write_shard
from shards.reader import open_shards
from shards.scene import decode_scene, find_scene_members, open_scene
from shards.schema import train_id_table
from tests.support.refused import refused
from tests.support.tars import encode

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
LABEL = np.random.default_rng(1).choice(np.array([*range(19), 254, 255], np.uint8), (6, 8))


@pytest.mark.parametrize(
    ("suffixes", "image", "label"),
    [
        (["image.jpg", "label.png"], "image.jpg", "label.png"),
        (["image.tiles", "label.png"], "image.tiles", "label.png"),
        (["jpg", "png"], "jpg", "png"),
        (["jpeg", "seg.png", "json"], "jpeg", "seg.png"),
        (["png", "mask.png"], "png", "mask.png"),
        (["webp", "segmentation.png", "cls"], "webp", "segmentation.png"),
        (["leftimg8bit.png", "gtfine_labelids.png"], "leftimg8bit.png", "gtfine_labelids.png"),
        (["rgb.png", "labeltrainids.png"], "rgb.png", "labeltrainids.png"),
    ],
)
def test_the_usual_names_are_understood(suffixes: list[str], image: str, label: str) -> None:
    assert find_scene_members("k", suffixes) == (image, label)


def test_shards_of_others_are_read(tmp_path: Path) -> None:
    """Written by webdataset with its own encoders: `jpg` and `png`, and members that nobody needs."""
    path = tmp_path / "theirs.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for i in range(3):
            writer.write({"__key__": f"k{i}", "jpg": IMAGE, "png": LABEL, "json": {"a": 1}, "cls": 4})
    reader = open_shards([str(path)], None)
    for sample in (decode_scene(reader, index) for index in range(3)):
        assert sample.image.shape == (6, 8, 3)
        np.testing.assert_array_equal(sample.label, LABEL)


def test_label_ids_become_train_ids_where_the_name_says_so() -> None:
    ids = np.arange(34, dtype=np.uint8).reshape(2, 17)
    image = encode(np.zeros((2, 17, 3), np.uint8))
    sample = open_scene("k", {"png": image, "gtfine_labelids.png": encode(ids)}).decode()
    np.testing.assert_array_equal(sample.label, train_id_table()[ids])
    with refused(r"labelids\.png holds 40; allowed are label ids 0\.\.33 and 255"):
        open_scene("k", {"png": image, "labelids.png": encode(np.full((2, 17), 40, np.uint8))})


class Evil:
    """Creates a folder when somebody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["pyd", "pickle", "pkl", "pth", "npy"])
def test_a_pickled_member_is_never_loaded(tmp_path: Path, suffix: str) -> None:
    bait = pickle.dumps(Evil(tmp_path / "executed"))
    members = {"image.png": encode(IMAGE), "label.png": encode(LABEL), suffix: bait}
    write_shard(tmp_path / "s.tar", [("k", members)])
    reader = open_shards([str(tmp_path / "s.tar")], None)
    decode_scene(reader, 0)
    assert reader.read(0)[suffix] == bait
    assert not (tmp_path / "executed").exists()
    pickle.loads(bait)  # the bait is real
    assert (tmp_path / "executed").exists()


def test_a_jpeg_scene_keeps_red_red() -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes B, G, R
    jpeg = cv2.imencode(".jpg", red)[1].tobytes()
    sample = open_scene("k", {"image.jpg": jpeg, "label.png": encode(red[..., 0])}).decode()
    assert sample.image[4, 4, 0] > 250
    assert sample.image[4, 4, 2] < 5


FIT = {"image.png": encode(IMAGE), "label.png": encode(LABEL)}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"label.png": b""}, r"has no image\.jpg or image\.png; its members are label\.png"),
        ({"image.png": b""}, r"has no label\.png; its members are image\.png"),
        ({"png": b""}, r"has no label\.png; its members are png"),
        ({"cls": b"", "txt": b""}, r"has no image\.jpg or image\.png and no label\.png"),
        ({**FIT, "image.jpg": b""}, r"has both image\.jpg and image\.png; one image is needed"),
        ({"jpg": b"", "jpeg": b"", "label.png": b""}, "has both jpeg and jpg; one image is needed"),
        ({"jpg": b"", "seg.png": b"", "mask.png": b""}, "has both mask.png and seg.png; one label is needed"),
        ({**FIT, "image.png": b"junk"}, r"image\.png: cannot be decoded as a picture \(4 bytes\)"),
        ({**FIT, "image.png": b""}, r"image\.png: cannot be decoded as a picture \(0 bytes\)"),
        ({**FIT, "label.png": b"junk"}, r"label\.png: is no PNG file \(4 bytes\)"),
        ({**FIT, "label.png": encode(LABEL[:, :5])}, r"image is \(6, 8\) but label is \(6, 5\)"),
        ({**FIT, "label.png": encode(IMAGE)}, r"label\.png: is colour of 8 bits; grey of 8 bits"),
        ({**FIT, "label.png": encode(LABEL.astype(np.uint16))}, r"label\.png: is grey of 16 bits; grey of 8"),
        ({**FIT, "label.png": encode(LABEL * 0 + 33)}, r"label\.png holds 33; allowed"),
    ],
)
def test_an_unfit_scene_is_refused_by_key(members: dict[str, bytes], message: str) -> None:
    with refused(f"sample k: {message}"):
        open_scene("k", members).decode()
