from __future__ import annotations

import os
import pickle
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset

from shards.errors import InputError
from shards.prepare.writer import write_shard
from shards.reader import open_shards
from shards.scene import decode_scene, find_scene_members, open_scene
from shards.schema import train_id_table
from shards.tiles import encode_tiles

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
LABEL = np.random.default_rng(1).integers(0, 19, (6, 8), np.uint8)


def png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


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


@pytest.mark.parametrize(
    ("suffixes", "message"),
    [
        (["jpg", "jpeg", "label.png"], "sample k: has both jpeg and jpg; one image is needed"),
        (["jpg", "seg.png", "mask.png"], "sample k: has both mask.png and seg.png; one label is needed"),
        (["png"], r"sample k: has no label\.png; its members are png"),
        (["cls", "txt"], r"sample k: has no image\.jpg or image\.png and no label\.png"),
    ],
)
def test_what_cannot_be_told_apart_is_an_error(suffixes: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_scene_members("k", suffixes)


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


def read_with_webdataset(path: Path) -> list[dict[str, object]]:
    with path.open("rb") as stream:
        members = webdataset.tariterators.tar_file_expander([{"url": "x", "stream": stream}])
        return list(webdataset.tariterators.group_by_keys(members))


def test_plain_webdataset_reads_ours_and_decodes_what_it_knows(tmp_path: Path) -> None:
    path = tmp_path / "ours.tar"
    write_shard(path, [("k0", {"image.png": png(IMAGE[..., ::-1]), "label.png": png(LABEL)})])
    decode = webdataset.autodecode.Decoder([webdataset.autodecode.imagehandler("rgb8")])
    (sample,) = map(decode, read_with_webdataset(path))
    np.testing.assert_array_equal(sample["image.png"], IMAGE)
    np.testing.assert_array_equal(sample["label.png"][..., 0], LABEL)


def test_plain_webdataset_hands_out_tiles_as_bytes(tmp_path: Path) -> None:
    path, content = tmp_path / "tiles.tar", encode_tiles(IMAGE)
    write_shard(path, [("k1", {"image.tiles": content, "label.png": png(LABEL)})])
    (sample,) = read_with_webdataset(path)
    assert sample["image.tiles"] == content
    own = decode_scene(open_shards([str(path)], None), 0)
    np.testing.assert_array_equal(own.image, IMAGE)


def test_label_ids_become_train_ids_where_the_name_says_so() -> None:
    ids = np.arange(34, dtype=np.uint8).reshape(2, 17)
    image = png(np.zeros((2, 17, 3), np.uint8))
    sample = open_scene("k", {"png": image, "gtfine_labelids.png": png(ids)}).decode()
    np.testing.assert_array_equal(sample.label, train_id_table()[ids])
    with pytest.raises(InputError, match=r"labelids\.png holds 40; allowed are label ids 0\.\.33 and 255"):
        open_scene("k", {"png": image, "labelids.png": png(np.full((2, 17), 40, np.uint8))})


class Evil:
    """Creates a folder when somebody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["pyd", "pickle", "pkl", "pth", "npy"])
def test_a_pickled_member_is_never_loaded(tmp_path: Path, suffix: str) -> None:
    bait = pickle.dumps(Evil(tmp_path / "executed"))
    members = {"image.png": png(IMAGE), "label.png": png(LABEL), suffix: bait}
    write_shard(tmp_path / "s.tar", [("k", members)])
    reader = open_shards([str(tmp_path / "s.tar")], None)
    decode_scene(reader, 0)
    assert reader.read(0)[suffix] == bait
    assert not (tmp_path / "executed").exists()
    pickle.loads(bait)  # the bait is real
    assert (tmp_path / "executed").exists()


def test_a_member_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    """A header of 8 GiB with nothing behind it: nothing is allocated."""
    info = tarfile.TarInfo("k.image.png")
    info.size = 2**33 - 512
    (tmp_path / "s.tar").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    with pytest.raises(InputError, match=r"s\.tar: is truncated: member 'k\.image\.png' ends at byte"):
        open_shards([str(tmp_path / "s.tar")], None)


def test_sparse_members_are_refused(tmp_path: Path) -> None:
    """A sparse header makes 1 GiB of nothing; GNU tar writes them, WebDataset never does."""
    info = tarfile.TarInfo("k.image.png")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"00000000000\0", b"00000000000\0"
    header[483:495] = b"10000000000\0"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "s.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(InputError, match="refuses the member 'k.image.png': only plain files"):
        open_shards([str(tmp_path / "s.tar")], None)
