"""Manifest of a folder of shards: files, samples, hashes, options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.files import from_json, require_title, to_json, write_atomically
from shards.schema import CITYSCAPES, ClassTable

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1
CLASS_OPTIONS = ("classes", "void", "outlier")
"""Options of kind `scenes` that are the fields of its `ClassTable`."""
KINDS = ("cityscapes", "scenes", "cutouts")
"""Kinds of samples: Cityscapes or other scenes with labels, or objects to paste."""


@dataclass(frozen=True)
class ShardEntry:
    """One shard file."""

    name: str
    """File name inside the folder, such as `cityscapes-train-000000.tar`."""
    split: str
    """`train`, `val` or `test`."""
    num_samples: int
    num_bytes: int
    """Size of the file; another size on disk means a broken copy."""
    sha256: str
    """Hash of the whole file, as 64 hexadecimal digits."""
    keys: tuple[str, ...]
    """Keys of the samples, in the order in which they stand in the file."""

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name:
            raise InputError(f"name is {self.name!r}; a plain file name inside the folder is needed")
        if len(self.keys) != self.num_samples:
            raise InputError(f"num_samples is {self.num_samples}, but there are {len(self.keys)} keys")


@dataclass(frozen=True)
class Manifest:
    """Everything that a reader of shards needs to know before it opens one."""

    version: int
    """Version of the format; readers refuse every other one than `MANIFEST_VERSION`."""
    kind: str
    """One of `KINDS`."""
    label_encoding: str
    """What the values in label files mean, such as `cityscapes-train-id`."""
    image_encoding: str
    """How the pictures are stored: one of the keys of `IMAGE_SUFFIXES`."""
    num_samples: int
    """Over all shards."""
    options: dict[str, Any]
    """What the shards were made with; values that JSON can hold."""
    shards: tuple[ShardEntry, ...]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"kind is {self.kind!r}; known kinds are {', '.join(KINDS)}")

    @property
    def classes(self) -> ClassTable:
        """What the train ids mean: Cityscapes' classes where the options name none."""
        given = {name: self.options[name] for name in CLASS_OPTIONS if name in self.options}
        return from_json(ClassTable, given, "options") if self.kind == "scenes" else CITYSCAPES

    @property
    def title(self) -> str:
        """Name of the set, for results."""
        return str(self.options.get("name", "")) if self.kind == "scenes" else "Cityscapes"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have shards, in the order of the shards."""
        return tuple(dict.fromkeys(entry.split for entry in self.shards))

    def select(self, split: str) -> tuple[ShardEntry, ...]:
        """Return the shards of one split, in order."""
        if not (chosen := tuple(entry for entry in self.shards if entry.split == split)):
            known = ", ".join(self.splits)
            raise InputError(f"split {split!r}: the shards hold none of it; their splits are {known}")
        return chosen


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `folder`/manifest.json; equal manifests give equal bytes."""
    write_atomically(folder / MANIFEST_NAME, to_json(manifest, sort_keys=True))


def read_manifest(folder: Path, *, check_files: bool = True) -> Manifest:
    """Read `folder`/manifest.json and check that every shard is there in its full size.

    The hashes are not computed: that costs a read of all bytes.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise InputError(f"{folder}: has no {MANIFEST_NAME}; a folder written by jobs.prepare is needed")
    manifest = parse_manifest(path.read_bytes(), str(path))
    for entry in manifest.shards if check_files else ():
        shard = folder / entry.name
        if not shard.is_file():
            raise InputError(f"{shard}: the shard is missing, but the manifest lists it")
        if (size := shard.stat().st_size) != entry.num_bytes:
            wrong = "truncated" if size < entry.num_bytes else "too long"
            raise InputError(f"{shard}: is {wrong}: {size} bytes, the manifest says {entry.num_bytes}")
    return manifest


def parse_manifest(text: bytes, path: str) -> Manifest:
    """Read the content of a manifest file; `path` opens each message."""
    content = from_json(dict[str, Any], text, path)
    version = content.get("version")
    if type(version) is int and version != MANIFEST_VERSION:  # whose fields may be others
        raise InputError(f"{path}: version is {version}; this program reads version {MANIFEST_VERSION}")
    manifest = from_json(Manifest, content, path)
    given, held = manifest.num_samples, sum(entry.num_samples for entry in manifest.shards)
    if given != held:
        raise InputError(f"{path}: num_samples is {given}, but the shards add up to {held}")
    try:
        _ = manifest.classes
        if manifest.kind == "scenes":
            require_title(manifest.options.get("name"), "options: name")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return manifest
