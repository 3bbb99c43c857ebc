"""Random access to the samples in tar shards: an index of byte offsets, built once from the tar headers.

A sample is a run of members that share a key. As in WebDataset, the key of `000017.image.jpg` is what
stands before the first dot of the base name (`000017`) and its suffix is the rest (`image.jpg`); suffixes
are compared in lower case. Any tar that WebDataset writes can be read, compressed ones cannot: a byte
offset means nothing there.
"""

from __future__ import annotations

import glob
import os
import tarfile
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
from braceexpand import braceexpand
from jaxtyping import UInt8

from shards.errors import InputError
from shards.manifest import read_manifest
from shards.schema import IMAGE_SUFFIXES, LABEL_SUFFIX, NUM_CLASSES, OUTLIER_ID, VOID_ID, Sample

MAX_OPEN_FILES = 64
"""Per process; far below the usual limit of 1024, and opening a file again costs little."""


class Member(NamedTuple):
    """Where one file of a sample lies in its shard, in bytes."""

    suffix: str
    offset: int
    size: int


class _Entry(NamedTuple):
    shard: int
    members: tuple[Member, ...]


class ShardReader:
    """Reads any sample of a list of shards by its number; safe to pickle and to fork.

    Reads use `pread`, which has no file position, so that a handle opened before a fork may be used by
    both processes. Handles do not travel in a pickle.
    """

    def __init__(self, shards: Sequence[Path], split: str | None = None) -> None:
        """Index `shards`, which costs about 20 µs per member.

        Args:
            shards: tar files; samples are numbered in this order.
            split: name of what they hold, for messages.

        Raises:
            InputError: a shard is missing, truncated, unsafe or no tar, or two samples have one key.
        """
        self.shards = tuple(shards)
        self.split = split
        self._entries: list[_Entry] = []
        owners: dict[str, int] = {}
        for number, path in enumerate(self.shards):
            for key, members in _index_shard(path):
                if key in owners:
                    first = self.shards[owners[key]]
                    raise InputError(
                        f"{path}: sample {key!r} is already in {first}; every key must be unique"
                    )
                owners[key] = number
                self._entries.append(_Entry(number, members))
        self.keys = tuple(owners)
        self._handles: OrderedDict[int, int] = OrderedDict()

    @property
    def num_shards(self) -> int:
        """Number of tar files."""
        return len(self.shards)

    def __len__(self) -> int:
        return len(self.keys)

    def samples_per_shard(self) -> list[int]:
        """Count the samples of each shard, in the order of `shards`."""
        counts = Counter(entry.shard for entry in self._entries)
        return [counts[number] for number in range(len(self.shards))]

    def suffixes(self, index: int) -> tuple[str, ...]:
        """Name the members of one sample, without reading them."""
        return tuple(member.suffix for member in self._entries[index].members)

    def read(self, index: int, suffixes: Collection[str] | None = None) -> dict[str, bytes]:
        """Return the members of sample `index` by suffix.

        Args:
            suffixes: the members wanted; all of them by default.

        Raises:
            InputError: the shard has disappeared or shrunk since it was indexed.
        """
        entry = self._entries[index]
        handle = self._handle(entry.shard)
        wanted = [member for member in entry.members if suffixes is None or member.suffix in suffixes]
        return {member.suffix: self._read_member(handle, entry.shard, member) for member in wanted}

    def close(self) -> None:
        """Close the open files; the next read opens them again."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def _read_member(self, handle: int, shard: int, member: Member) -> bytes:
        content = os.pread(handle, member.size, member.offset)
        while 0 < len(content) < member.size:  # one call returns 2 GiB at most, and less over some networks
            more = os.pread(handle, member.size - len(content), member.offset + len(content))
            if not more:
                break
            content += more
        if len(content) != member.size:
            raise InputError(
                f"{self.shards[shard]}: {len(content)} of {member.size} bytes at offset {member.offset}; "
                "the file has shrunk since it was opened"
            )
        return content

    def _handle(self, shard: int) -> int:
        if shard in self._handles:
            self._handles.move_to_end(shard)
            return self._handles[shard]
        while len(self._handles) >= MAX_OPEN_FILES:
            os.close(self._handles.popitem(last=False)[1])
        try:
            self._handles[shard] = os.open(self.shards[shard], os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"{self.shards[shard]}: cannot be opened: {error.strerror}") from None
        return self._handles[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": OrderedDict()}

    def __del__(self) -> None:
        if "_handles" in self.__dict__:  # absent where the index could not be built
            self.close()


def open_shards(paths: Sequence[str], split: str | None) -> ShardReader:
    """Index every shard that `paths` name.

    Args:
        paths: each a folder with a manifest, a `.tar` file, or a pattern of tar files with the wildcards
            `*`, `?`, `[...]` and braces such as `train-{000000..000007}.tar`.
        split: which shards of a folder to take, such as `train`; None takes all. Bare tar files do not
            say which split they are and are taken as they are.

    Raises:
        InputError: `paths` is empty, one of them names no shard, or a shard is unfit (see `ShardReader`).
    """
    if not paths:
        raise InputError(
            "shards: the list is empty; give a folder of shards, a .tar file or a pattern of them"
        )
    found = [shard for path in paths for shard in _find_shards(path, split)]
    reader = ShardReader([shard for shard, _ in found], split)
    _require_listed_keys(reader, [keys for _, keys in found])
    return reader


def decode_sample(key: str, members: Mapping[str, bytes]) -> Sample:
    """Decode a scene and its label map.

    Raises:
        InputError: a member is missing or cannot be decoded, the sizes differ, or the label holds a value
            that is neither a train id, `OUTLIER_ID` nor `VOID_ID`.
    """
    suffix = require_scene_members(key, tuple(members))
    picture = (
        cv2.imdecode(np.frombuffer(members[suffix], np.uint8), cv2.IMREAD_COLOR) if members[suffix] else None
    )
    if picture is None:
        raise InputError(f"sample {key}: {suffix} ({len(members[suffix])} bytes) cannot be decoded")
    label = _decode_label(key, members[LABEL_SUFFIX])
    if picture.shape[:2] != label.shape:
        raise InputError(
            f"sample {key}: image is {picture.shape[:2]} but label is {label.shape} (height, width)"
        )
    return Sample(key=key, image=cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, dst=picture), label=label)


def require_scenes(reader: ShardReader) -> None:
    """Check, without reading any of them, that all samples are scenes.

    Raises:
        InputError: a sample has no image, more than one, or no label.
    """
    for index, key in enumerate(reader.keys):
        require_scene_members(key, reader.suffixes(index))


def decode_scenes(reader: ShardReader, count: int) -> Iterator[Sample]:
    """Decode the first `count` scenes, one after the other."""
    for index in range(count):
        yield decode_sample(reader.keys[index], reader.read(index))


def require_scene_members(key: str, suffixes: Sequence[str]) -> str:
    """Check that a sample is a scene, and return the suffix of its image.

    Raises:
        InputError: it has no image, more than one, or no label.
    """
    images = [suffix for suffix in IMAGE_SUFFIXES.values() if suffix in suffixes]
    missing = [] if images else [" or ".join(IMAGE_SUFFIXES.values())]
    missing += [] if LABEL_SUFFIX in suffixes else [LABEL_SUFFIX]
    if missing:
        raise InputError(
            f"sample {key}: has no {' and no '.join(missing)}; its members are {', '.join(suffixes)}"
        )
    if len(images) > 1:
        raise InputError(f"sample {key}: has both {' and '.join(images)}; one image is needed")
    return images[0]


def _decode_label(key: str, content: bytes) -> UInt8[np.ndarray, "H W"]:
    label = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    if label is None:
        raise InputError(f"sample {key}: {LABEL_SUFFIX} ({len(content)} bytes) cannot be decoded")
    if label.ndim != 2 or label.dtype != np.uint8:
        raise InputError(
            f"sample {key}: {LABEL_SUFFIX} is {label.dtype} of shape {label.shape}; "
            "one channel of 8 bits is needed"
        )
    strange = cv2.inRange(
        label, (NUM_CLASSES,), (OUTLIER_ID - 1,)
    )  # a histogram would take ten times as long
    if cv2.countNonZero(strange):
        unknown = np.unique(label[strange > 0]).tolist()
        raise InputError(
            f"sample {key}: {LABEL_SUFFIX} holds {', '.join(map(str, unknown[:8]))}; allowed are train ids "
            f"0..{NUM_CLASSES - 1}, {OUTLIER_ID} (outlier) and {VOID_ID} (void)"
        )
    return label


def _require_listed_keys(reader: ShardReader, listed: Sequence[tuple[str, ...] | None]) -> None:
    """Check that each shard holds the samples that its manifest lists; None: it has no manifest."""
    start = 0
    for shard, keys, count in zip(reader.shards, listed, reader.samples_per_shard(), strict=True):
        held = reader.keys[start : start + count]
        start += count
        if keys is not None and held != keys:
            raise InputError(
                f"{shard}: holds {len(held)} samples ({', '.join(held[:2])}, ...), the manifest beside it "
                f"lists {len(keys)} ({', '.join(keys[:2])}, ...): the file is not the one that was prepared"
            )


def _find_shards(path: str, split: str | None) -> list[tuple[Path, tuple[str, ...] | None]]:
    """List shard files, each with the keys that its folder's manifest says it holds."""
    if Path(path).is_dir():
        manifest = read_manifest(Path(path))
        try:
            entries = manifest.shards if split is None else manifest.select(split)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        return [(Path(path) / entry.name, entry.keys) for entry in entries]
    if Path(path).is_file():
        return [(Path(path), None)]
    try:
        patterns = list(braceexpand(path))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    found: list[tuple[Path, tuple[str, ...] | None]] = []
    for pattern in patterns:
        matches = sorted(glob.glob(pattern))  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not matches:
            part = "" if pattern == path else f" ({pattern})"
            raise InputError(
                f"{path}{part}: no shard found; give a folder with a manifest, a .tar file or a pattern"
            )
        found += [(Path(match), None) for match in matches]
    return found


def _index_shard(path: Path) -> list[tuple[str, tuple[Member, ...]]]:
    """List the samples of one shard in file order, with their members."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = [_check_member(path, info, size) for info in tar]
            end = tar.offset
            file.seek(end)
            tail = file.read(tarfile.BLOCKSIZE)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror or error}") from None
    except tarfile.TarError as error:
        raise InputError(f"{path}: is no plain tar file, or a damaged one ({size} bytes): {error}") from None
    # tarfile itself stops in silence at a broken header and at a cut between two members
    if tail != bytes(tarfile.BLOCKSIZE):
        raise InputError(
            f"{path}: is truncated or damaged: no end-of-archive mark at byte {end}, where the last whole "
            f"member ends; the file has {size} bytes"
        )
    return _group_members(path, [member for member in members if member is not None])


def _check_member(path: Path, info: tarfile.TarInfo, file_size: int) -> tuple[str, Member] | None:
    """Return the key and place of a member; None for folders and for WebDataset's own `__name__`."""
    name = PurePosixPath(info.name)
    if name.is_absolute() or ".." in name.parts:
        raise InputError(f"{path}: refuses the member {info.name!r}: its path leaves the archive")
    if info.isdir() or (name.name.startswith("__") and name.name.endswith("__")):
        return None
    if not info.isreg() or info.issparse():
        raise InputError(f"{path}: refuses the member {info.name!r}: only plain files belong into a shard")
    if info.offset_data + info.size > file_size:
        raise InputError(
            f"{path}: is truncated: member {info.name!r} ends at byte {info.offset_data + info.size}, "
            f"the file has {file_size}"
        )
    key, dot, suffix = name.name.partition(".")
    if not key or not dot or not suffix:
        raise InputError(
            f"{path}: member {info.name!r} has no suffix; names such as 000017.image.jpg are needed"
        )
    return key, Member(suffix.lower(), info.offset_data, info.size)


def _group_members(path: Path, members: list[tuple[str, Member]]) -> list[tuple[str, tuple[Member, ...]]]:
    samples: list[tuple[str, tuple[Member, ...]]] = []
    for key, member in members:
        if not samples or samples[-1][0] != key:
            samples.append((key, (member,)))
            continue
        earlier = samples[-1][1]
        if any(member.suffix == other.suffix for other in earlier):
            raise InputError(f"{path}: sample {key!r} has two members with the suffix {member.suffix}")
        samples[-1] = (key, (*earlier, member))
    return samples
