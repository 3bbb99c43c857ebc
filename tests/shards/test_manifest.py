"""The manifest: what is written is read, and whatever contradicts the files is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, read_manifest, write_manifest
from tests.support.refused import refused


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


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert example(tmp_path) == read_manifest(tmp_path)


def test_shards_are_selected_by_split(tmp_path: Path) -> None:
    manifest = example(tmp_path)
    assert manifest.splits == ("train", "val")
    assert [entry.name for entry in manifest.select("val")] == ["cityscapes-val-000000.tar"]
    with refused("split 'test': the shards hold none of it; their splits are train, val"):
        manifest.select("test")


@pytest.mark.parametrize(
    ("change", "shard", "message"),
    [
        ({"version": 7}, {}, "version is 7; this program reads version 1"),
        ({"version": True}, {}, "version is True; int is needed"),
        ({"kind": "boxes"}, {}, "kind is 'boxes'; known kinds are cityscapes, scenes, cutouts"),
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
    content = json.loads((tmp_path / MANIFEST_NAME).read_text())
    content |= change
    content["shards"][0] |= shard
    for record in (content, content["shards"][0]):
        for name in [name for name, value in record.items() if value is None]:
            del record[name]
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content))
    with refused(message):
        read_manifest(tmp_path)


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    with refused(r"has no manifest\.json; a folder written by jobs\.prepare is needed"):
        read_manifest(tmp_path)
    for text, message in (("{", "is no valid JSON"), ("[]", "is a list; a JSON object is needed")):
        (tmp_path / MANIFEST_NAME).write_text(text)
        with refused(rf"manifest\.json: {message}"):
            read_manifest(tmp_path)
