"""The table of contents of a folder of shards: what is in which file, and what the bytes must hash to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.files import write_atomically

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1
KINDS = ("cityscapes", "cutouts")
"""What the samples of a folder are: road scenes with labels, or objects to paste."""


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
    """Of the whole file, as 64 hexadecimal digits."""
    keys: tuple[str, ...]
    """Keys of the samples, in the order in which they stand in the file."""


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

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have shards, in the order of the shards."""
        return tuple(dict.fromkeys(entry.split for entry in self.shards))

    def select(self, split: str) -> tuple[ShardEntry, ...]:
        """Return the shards of one split, in order.

        Raises:
            InputError: no shard belongs to `split`.
        """
        chosen = tuple(entry for entry in self.shards if entry.split == split)
        if not chosen:
            raise InputError(
                f"split {split!r}: the shards hold none of it; their splits are {', '.join(self.splits)}"
            )
        return chosen


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `folder`/manifest.json; equal manifests give equal bytes."""
    write_atomically(folder / MANIFEST_NAME, json.dumps(asdict(manifest), indent=1, sort_keys=True) + "\n")


def read_manifest(folder: Path, *, check_files: bool = True) -> Manifest:
    """Read `folder`/manifest.json and check that every shard is there in its full size.

    The hashes are not computed: that costs a read of all bytes.

    Args:
        check_files: False looks at the manifest alone.

    Raises:
        InputError: there is no manifest, it is unfit (see `parse_manifest`), or a shard is missing or has
            another size than the manifest says.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise InputError(f"{folder}: has no {MANIFEST_NAME}; a folder written by jobs.prepare is needed")
    manifest = parse_manifest(path.read_bytes(), str(path))
    for entry in manifest.shards if check_files else ():
        _check_shard_file(entry, folder)
    return manifest


def parse_manifest(text: bytes, path: str) -> Manifest:
    """Read the content of a manifest file.

    Args:
        path: where it is, for messages.

    Raises:
        InputError: it is no JSON or of an unknown version, or a field is missing or contradicts another one.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: is no valid JSON ({error})") from None
    version = _field(content, "version", int, f"{path}")
    if version != MANIFEST_VERSION:
        raise InputError(f"{path}: version is {version}; this program reads version {MANIFEST_VERSION}")
    shards = _field(content, "shards", list, f"{path}")
    manifest = Manifest(
        version=version,
        kind=_field(content, "kind", str, f"{path}"),
        label_encoding=_field(content, "label_encoding", str, f"{path}"),
        image_encoding=_field(content, "image_encoding", str, f"{path}"),
        num_samples=_field(content, "num_samples", int, f"{path}"),
        options=_field(content, "options", dict, f"{path}"),
        shards=tuple(parse_entry(entry, f"{path}: shards[{i}]") for i, entry in enumerate(shards)),
    )
    if manifest.kind not in KINDS:
        raise InputError(f"{path}: kind is {manifest.kind!r}; known kinds are {', '.join(KINDS)}")
    in_shards = sum(entry.num_samples for entry in manifest.shards)
    if in_shards != manifest.num_samples:
        raise InputError(
            f"{path}: num_samples is {manifest.num_samples}, but the shards add up to {in_shards}"
        )
    return manifest


def parse_entry(content: Any, where: str) -> ShardEntry:
    """Read the description of one shard.

    Args:
        where: it stands, for messages.

    Raises:
        InputError: a field is missing or contradicts another one.
    """
    entry = ShardEntry(
        name=_field(content, "name", str, where),
        split=_field(content, "split", str, where),
        num_samples=_field(content, "num_samples", int, where),
        num_bytes=_field(content, "num_bytes", int, where),
        sha256=_field(content, "sha256", str, where),
        keys=tuple(str(key) for key in _field(content, "keys", list, where)),
    )
    if Path(entry.name).name != entry.name:
        raise InputError(f"{where}: name is {entry.name!r}; a plain file name inside the folder is needed")
    if len(entry.keys) != entry.num_samples:
        raise InputError(f"{where}: num_samples is {entry.num_samples}, but there are {len(entry.keys)} keys")
    return entry


def _field(content: Any, name: str, kind: type, where: str) -> Any:
    if not isinstance(content, Mapping):
        raise InputError(f"{where}: is a {type(content).__name__}; a JSON object is needed")
    if name not in content:
        raise InputError(f"{where}: has no field {name!r}; the manifest is not of version {MANIFEST_VERSION}")
    value = content[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where}: {name} is {value!r}; {kind.__name__} is needed")
    return value


def _check_shard_file(entry: ShardEntry, folder: Path) -> None:
    path = folder / entry.name
    if not path.is_file():
        raise InputError(f"{path}: the shard is missing, but the manifest lists it")
    size = path.stat().st_size
    if size < entry.num_bytes:
        raise InputError(f"{path}: is truncated: {size} bytes, the manifest says {entry.num_bytes}")
    if size > entry.num_bytes:
        raise InputError(f"{path}: is too long: {size} bytes, the manifest says {entry.num_bytes}")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
