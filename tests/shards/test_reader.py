from __future__ import annotations

import pickle
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset
from webdataset.tariterators import group_by_keys, tar_file_iterator

from shards.errors import InputError
from shards.manifest import Manifest, ShardEntry, write_manifest
from shards.reader import MAX_OPEN_FILES, open_shards
from shards.scene import open_scene
from tests.support.tars import write_tar


def write_special(path: Path, name: str, kind: bytes, target: str = "") -> Path:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        tar.addfile(info)
    return path


def png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


SCENE = {
    "image.png": png(np.zeros((4, 6, 3), np.uint8)),
    "label.png": png(np.zeros((4, 6), np.uint8)),
}


def test_tars_written_by_webdataset_are_read_as_webdataset_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    rng = np.random.default_rng(0)
    with webdataset.TarWriter(str(path)) as writer:
        for i in range(20):
            data = {"image.PNG": rng.bytes(int(rng.integers(0, 3000))), "label.png": rng.bytes(511)}
            writer.write({"__key__": f"{'k' * 120}{i:03d}", **data})  # names over 100 bytes need a PAX header
    reader = open_shards([str(path)], "train")
    with path.open("rb") as file:
        theirs = list(group_by_keys({**member, "__url__": ""} for member in tar_file_iterator(file)))
    assert reader.keys == tuple(sample["__key__"] for sample in theirs)
    for i, sample in enumerate(theirs):
        assert reader.read(i) == {k: v for k, v in sample.items() if not k.startswith("__")}


def test_only_the_members_asked_for_are_returned(tmp_path: Path) -> None:
    reader = open_shards([str(write_tar(tmp_path / "s.tar", {"a.x": b"1", "a.y": b"2"}))], None)
    assert reader.read(0, ["y"]) == {"y": b"2"}
    assert reader.suffixes(0) == ("x", "y")


def test_folders_inside_a_tar_do_not_enter_the_key(tmp_path: Path) -> None:
    path = write_special(tmp_path / "s.tar", "deep", tarfile.DIRTYPE)
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("deep/er/000017.image.jpg"))
    assert open_shards([str(path)], None).keys == ("000017",)


def test_braces_and_wildcards_name_shards_in_order(tmp_path: Path) -> None:
    for i in range(4):
        write_tar(tmp_path / f"s-{i}.tar", {f"key{i}.x": b""})
    assert open_shards([f"{tmp_path}/s-{{2..3}}.tar"], None).keys == ("key2", "key3")
    assert open_shards([f"{tmp_path}/s-*.tar"], None).keys == ("key0", "key1", "key2", "key3")
    assert open_shards([f"{tmp_path}/s-*"], None).keys == ("key0", "key1", "key2", "key3")  # no index file


@pytest.mark.parametrize(("split", "keys"), [("train", ("a",)), ("val", ("b",)), (None, ("a", "b"))])
def test_a_folder_gives_the_shards_of_the_split(
    tmp_path: Path, split: str | None, keys: tuple[str, ...]
) -> None:
    write_split_folder(tmp_path)
    assert open_shards([str(tmp_path)], split).keys == keys


def test_a_split_that_a_folder_lacks_is_named_with_the_folder(tmp_path: Path) -> None:
    write_split_folder(tmp_path)
    with pytest.raises(InputError, match=f"{tmp_path}: split 'test'.*train, val"):
        open_shards([str(tmp_path)], "test")


def test_a_shard_that_is_not_the_one_of_its_manifest_is_named(tmp_path: Path) -> None:
    write_split_folder(tmp_path)
    other = write_tar(tmp_path / "other.tar", {"z.x": b"1"})
    other.replace(tmp_path / "val.tar")
    assert open_shards([str(tmp_path)], "train").keys == ("a",)
    with pytest.raises(
        InputError, match=r"val.tar: holds 1 samples \(z, ...\), the manifest beside it lists 1 \(b"
    ):
        open_shards([str(tmp_path)], "val")


def write_split_folder(folder: Path) -> None:
    entries = []
    for split, key in (("train", "a"), ("val", "b")):
        path = write_tar(folder / f"{split}.tar", {f"{key}.x": b"1"})
        entries.append(ShardEntry(path.name, split, 1, path.stat().st_size, "0" * 64, (key,)))
    write_manifest(Manifest(1, "cityscapes", "cityscapes-train-id", "png", 2, {}, tuple(entries)), folder)


def test_a_pickled_reader_reads_again_without_the_open_files(tmp_path: Path) -> None:
    reader = open_shards([str(write_tar(tmp_path / "s.tar", {"a.x": b"1"}))], None)
    assert reader.read(0) == {"x": b"1"}
    copy = pickle.loads(pickle.dumps(reader))
    assert not copy._handles
    assert copy.read(0) == {"x": b"1"}


def test_more_shards_than_open_files_are_read(tmp_path: Path) -> None:
    for i in range(MAX_OPEN_FILES + 3):
        write_tar(tmp_path / f"{i:03d}.tar", {f"k{i:03d}.x": str(i).encode()})
    reader = open_shards([f"{tmp_path}/*.tar"], None)
    assert reader.num_shards == MAX_OPEN_FILES + 3
    for i in [*range(len(reader)), 0]:
        assert reader.read(i) == {"x": str(i).encode()}
    assert len(reader._handles) == MAX_OPEN_FILES


@pytest.mark.parametrize("keep", range(1, 12))
def test_every_cut_through_a_shard_is_noticed(tmp_path: Path, keep: int) -> None:
    path = write_tar(tmp_path / "cut.tar", {"a.x": b"1" * 700, "b.x": b"2" * 512})
    path.write_bytes(path.read_bytes()[: keep * 256])  # the data ends at byte 2560
    with pytest.raises(InputError, match=rf"cut\.tar: is (truncated|no plain tar).*{keep * 256}"):
        open_shards([str(path)], None)


def test_a_truncated_member_is_named_with_both_sizes(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "cut.tar", {"a.x": b"1" * 5000})
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(
        InputError, match=r"cut\.tar: is truncated: member 'a\.x' ends at byte 5512.*has 3000"
    ):
        open_shards([str(path)], None)


def test_a_damaged_header_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "bad.tar", {"a.x": b"1", "b.x": b"2"})
    content = bytearray(path.read_bytes())
    content[1024] ^= 255  # the first byte of the second header
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"bad\.tar: is truncated or damaged: no end-of-archive mark at byte 1024"
    ):
        open_shards([str(path)], None)


def test_a_shard_that_shrinks_after_indexing_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.x": b"1" * 5000})
    reader = open_shards([str(path)], None)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"s\.tar: 488 of 5000 bytes at offset 512; the file has shrunk"):
        reader.read(0)


def test_a_shard_that_disappears_after_indexing_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.x": b"1"})
    reader = open_shards([str(path)], None)
    path.unlink()
    with pytest.raises(InputError, match=r"s\.tar: cannot be opened: No such file"):
        reader.read(0)


@pytest.mark.parametrize("name", ["/etc/a.x", "../a.x", "b/../../a.x"])
def test_a_member_that_leaves_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    path = write_tar(tmp_path / "evil.tar", {name: b""})
    with pytest.raises(InputError, match=r"evil\.tar: refuses the member .*leaves the archive"):
        open_shards([str(path)], None)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = write_special(tmp_path / "evil.tar", "a.image.png", kind, "/etc/passwd")
    with pytest.raises(InputError, match=r"evil\.tar: refuses the member 'a\.image\.png': only plain files"):
        open_shards([str(path)], None)


def test_a_key_in_two_shards_is_named_with_both(tmp_path: Path) -> None:
    first = write_tar(tmp_path / "1.tar", {"a.x": b""})
    second = write_tar(tmp_path / "2.tar", {"a.x": b""})
    with pytest.raises(
        InputError, match=f"{second}: sample 'a' is already in {first}; every key must be unique"
    ):
        open_shards([str(first), str(second)], None)


def test_a_suffix_twice_in_a_sample_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"one/a.x": b"", "two/a.x": b""})
    with pytest.raises(InputError, match="sample 'a' has two members with the suffix x"):
        open_shards([str(path)], None)


@pytest.mark.parametrize("name", ["README", ".hidden", "a."])
def test_a_member_without_key_or_suffix_is_an_error(tmp_path: Path, name: str) -> None:
    path = write_tar(tmp_path / "s.tar", {name: b""})
    with pytest.raises(InputError, match="has no suffix; names such as"):
        open_shards([str(path)], None)


def test_an_empty_list_is_an_error() -> None:
    with pytest.raises(InputError, match="shards: the list is empty"):
        open_shards([], "train")


@pytest.mark.parametrize("pattern", ["none.tar", "none-*.tar", "none-{0..1}.tar"])
def test_a_path_that_matches_nothing_is_named(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(InputError, match=r"none.*: no shard found; give a folder"):
        open_shards([f"{tmp_path}/{pattern}"], "train")


def test_unbalanced_braces_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Unbalanced braces"):
        open_shards([f"{tmp_path}/s-{{0..1.tar"], "train")


@pytest.mark.parametrize("content", [b"", b"hello" * 400], ids=["empty", "text"])
def test_a_file_that_is_no_tar_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.raises(InputError, match=r"s\.tar: is no plain tar file"):
        open_shards([str(tmp_path / "s.tar")], None)


def test_a_png_scene_decodes_to_the_pixels_that_were_written() -> None:
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    label = rng.choice(np.array([*range(19), 254, 255], np.uint8), (5, 7))
    sample = open_scene("k", {"image.png": png(rgb[..., ::-1]), "label.png": png(label)}).decode()
    np.testing.assert_array_equal(sample.image, rgb)
    np.testing.assert_array_equal(sample.label, label)


def test_a_jpeg_scene_keeps_red_red() -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes B, G, R
    jpeg = cv2.imencode(".jpg", red)[1].tobytes()
    members = {"image.jpg": jpeg, "label.png": png(np.zeros((8, 8), np.uint8))}
    sample = open_scene("k", members).decode()
    assert sample.image[4, 4, 0] > 250
    assert sample.image[4, 4, 2] < 5


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"label.png": b""}, r"sample k: has no image\.jpg or image\.png; its members are label\.png"),
        ({"image.png": b""}, r"sample k: has no label\.png; its members are image\.png"),
        ({**SCENE, "image.jpg": b""}, r"sample k: has both image\.jpg and image\.png; one image is needed"),
        ({**SCENE, "image.png": b"junk"}, r"sample k: image\.png \(4 bytes\) cannot be decoded"),
        ({**SCENE, "image.png": b""}, r"sample k: image\.png \(0 bytes\) cannot be decoded"),
        ({**SCENE, "label.png": b"junk"}, r"sample k: label\.png \(4 bytes\) cannot be decoded"),
        (
            {**SCENE, "label.png": png(np.zeros((4, 5), np.uint8))},
            r"sample k: image is \(4, 6\) but label is \(4, 5\)",
        ),
        (
            {**SCENE, "label.png": png(np.zeros((4, 6, 3), np.uint8))},
            "sample k: .*one channel of 8 bits is needed",
        ),
        (
            {**SCENE, "label.png": png(np.zeros((4, 6), np.uint16))},
            "sample k: .*uint16.*one channel of 8 bits",
        ),
        (
            {**SCENE, "label.png": png(np.full((4, 6), 33, np.uint8))},
            r"sample k: label\.png holds 33; allowed",
        ),
    ],
    ids=[
        "no image",
        "no label",
        "both",
        "bad image",
        "empty",
        "bad label",
        "sizes",
        "rgb",
        "16 bit",
        "label ids",
    ],
)
def test_an_unfit_scene_is_refused_by_key(members: dict[str, bytes], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_scene("k", members).decode()
