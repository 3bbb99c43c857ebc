from __future__ import annotations

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from webdataset.tariterators import group_by_keys, tar_file_iterator

from shards.reader import MAX_OPEN_FILES, open_shards
from tests.support.refused import refused
from tests.support.tars import write_shards, write_tar


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
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("deep")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
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
    write_shards(tmp_path, {"train": {"a.x": b"1"}, "val": {"b.x": b"1"}})
    assert open_shards([str(tmp_path)], split).keys == keys
    with refused(f"{tmp_path}: split 'test'.*train, val"):
        open_shards([str(tmp_path)], "test")


def test_a_shard_that_is_not_the_one_of_its_manifest_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, {"train": {"a.x": b"1"}, "val": {"b.x": b"1"}})
    other = write_tar(tmp_path / "other.tar", {"z.x": b"1"})
    other.replace(tmp_path / "val.tar")
    assert open_shards([str(tmp_path)], "train").keys == ("a",)
    with refused(r"val.tar: holds 1 samples \(z, ...\), the manifest beside it lists 1 \(b"):
        open_shards([str(tmp_path)], "val")


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
    assert len(reader.shards) == MAX_OPEN_FILES + 3
    for i in [*range(len(reader)), 0]:
        assert reader.read(i) == {"x": str(i).encode()}
    assert len(reader._handles) == MAX_OPEN_FILES


@pytest.mark.parametrize("keep", range(1, 12))
def test_every_cut_through_a_shard_is_noticed(tmp_path: Path, keep: int) -> None:
    path = write_tar(tmp_path / "cut.tar", {"a.x": b"1" * 700, "b.x": b"2" * 512})
    path.write_bytes(path.read_bytes()[: keep * 256])  # the data ends at byte 2560
    with refused(rf"cut\.tar: is (truncated|no plain tar).*{keep * 256}"):
        open_shards([str(path)], None)


def test_a_key_in_two_shards_is_named_with_both(tmp_path: Path) -> None:
    first = write_tar(tmp_path / "1.tar", {"a.x": b""})
    second = write_tar(tmp_path / "2.tar", {"a.x": b""})
    with refused(f"{second}: sample 'a' is already in {first}; every key must be unique"):
        open_shards([str(first), str(second)], None)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "validation.shards: the list is empty"),
        *[
            ([path], "^validation.shards /.*none.*: no shard found; give a folder")
            for path in ("none.tar", "none-*.tar", "none-{0..1}.tar")
        ],
        (["s-{0..1.tar"], "Unbalanced braces"),
    ],
)
def test_paths_without_shards_are_refused(tmp_path: Path, paths: list[str], message: str) -> None:
    with refused(message):
        open_shards([f"{tmp_path}/{path}" for path in paths], "train", "validation.shards")


def test_a_shard_that_shrinks_or_disappears_after_indexing_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.x": b"1" * 5000})
    reader = open_shards([str(path)], None)
    path.write_bytes(path.read_bytes()[:1000])
    with refused(r"s\.tar: 488 of 5000 bytes at offset 512; the file has shrunk"):
        reader.read(0)
    reader.close()
    path.unlink()
    with refused(r"s\.tar: cannot be opened: No such file"):
        reader.read(0)
