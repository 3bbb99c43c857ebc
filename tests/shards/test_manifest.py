"""The manifest: what is written is read, and whatever contradicts the files is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shards.errors import InputError
from shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, read_manifest, write_manifest


def example(folder: Path) -> Manifest:
    """Write two shards of 10 bytes and their manifest."""
    entries = []
    for split in ("train", "val"):
        name = f"cityscapes-{split}-000000.tar"
        (folder / name).write_bytes(b"0123456789")
        entries.append(ShardEntry(name, split, 2, 10, "ab" * 32, (f"{split}_a", f"{split}_b")))
    options = {"splits": ["train", "val"], "samples_per_shard": 2}
    manifest = Manifest(1, "cityscapes", "cityscapes-train-id", "jpeg", 4, options, tuple(entries))
    write_manifest(manifest, folder)
    return manifest


def edit(folder: Path, change: dict[str, Any], shard: dict[str, Any] | None = None) -> None:
    """Change fields of the manifest, and of its first shard; None removes one."""
    path = folder / MANIFEST_NAME
    content = json.loads(path.read_text())
    for record, changes in ((content, change), (content["shards"][0], shard or {})):
        for name, value in changes.items():
            if value is None:
                del record[name]
            else:
                record[name] = value
    path.write_text(json.dumps(content))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert example(tmp_path) == read_manifest(tmp_path)


def test_shards_are_selected_by_split(tmp_path: Path) -> None:
    manifest = example(tmp_path)
    assert manifest.splits == ("train", "val")
    assert [entry.name for entry in manifest.select("val")] == ["cityscapes-val-000000.tar"]


def test_a_split_without_shards_is_named_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="split 'test': the shards hold none of it; their splits are train, val"
    ):
        example(tmp_path).select("test")


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"has no manifest\.json; a folder written by jobs\.prepare is needed"
    ):
        read_manifest(tmp_path)


def test_text_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json: is no valid JSON"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "shard", "message"),
    [
        ({"version": 7}, {}, "version is 7; this program reads version 1"),
        ({"version": True}, {}, "version is True; int is needed"),
        ({"kind": "boxes"}, {}, "kind is 'boxes'; known kinds are cityscapes, cutouts"),
        ({"label_encoding": None}, {}, "has no field 'label_encoding'"),
        ({"num_samples": 5}, {}, "num_samples is 5, but the shards add up to 4"),
        ({}, {"sha256": None}, r"shards\[0\]: has no field 'sha256'"),
        ({}, {"num_bytes": "10"}, r"shards\[0\]: num_bytes is '10'; int is needed"),
        ({}, {"keys": ["a"]}, r"shards\[0\]: num_samples is 2, but there are 1 keys"),
        ({}, {"name": "../x.tar"}, r"name is '\.\./x\.tar'; a plain file name inside the folder is needed"),
        ({}, {"name": "gone.tar"}, r"gone\.tar: the shard is missing, but the manifest lists it"),
        ({}, {"num_bytes": 11}, r"000000\.tar: is truncated: 10 bytes, the manifest says 11"),
        ({}, {"num_bytes": 9}, r"000000\.tar: is too long: 10 bytes, the manifest says 9"),
    ],
)
def test_a_wrong_field_is_named(
    tmp_path: Path, change: dict[str, Any], shard: dict[str, Any], message: str
) -> None:
    example(tmp_path)
    edit(tmp_path, change, shard)
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path)


def test_a_list_instead_of_an_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text("[]")
    with pytest.raises(InputError, match=r"manifest\.json: is a list; a JSON object is needed"):
        read_manifest(tmp_path)
