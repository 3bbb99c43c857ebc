"""Random access to the samples in tar shards, by the byte offsets that `shards/index.py` finds."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.index import Member, require_header
from shards.location import Shard, find_classes, find_shards

MAX_OPEN_FILES = 64
"""Per process; far below the usual limit of 1024, and opening a file again costs little."""


class ShardReader:
    """Reads any sample of a list of shards by its number; safe to pickle and to fork.

    Reads use `pread`, which has no file position, so that a handle opened before a fork may be used by
    both processes. Handles do not travel in a pickle.
    """

    def __init__(
        self, shards: Sequence[Path | Shard], split: str | None = None, *, max_errors: int = 0
    ) -> None:
        """Index `shards`, in whose order samples are numbered, and which are of `split`.

        Up to `max_errors` unreadable ones are left out and told in `errors`.
        """
        self.split = split
        self.errors: tuple[str, ...] = ()
        """What was wrong with the shards that were left out."""
        self.shards: tuple[Shard, ...] = ()
        self._entries: list[tuple[int, tuple[Member, ...]]] = []
        owners: dict[str, int] = {}
        for given in shards:
            shard = given if isinstance(given, Shard) else Shard(str(given))
            try:
                samples = shard.index()
                _require_listed_keys(shard, [sample.key for sample in samples])
            except InputError as error:
                self.errors += (str(error),)
                if len(self.errors) > max_errors:
                    raise
                continue
            for key, members in samples:
                if key in owners:
                    also = f"sample {key!r} is already in {self.shards[owners[key]]}"
                    raise InputError(f"{shard}: {also}; every key must be unique")
                owners[key] = len(self.shards)
                self._entries.append((len(self.shards), members))
            self.shards += (shard,)
        self.keys = tuple(owners)
        self.classes = find_classes(self.shards)
        """What the train ids of all labels mean."""
        self._handles: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self.keys)

    def fingerprint(self) -> str:
        """Return what the order of samples depends on, in 32 hexadecimal digits: all keys, in their order."""
        return hashlib.blake2b("\0".join(self.keys).encode(), digest_size=16).hexdigest()

    def suffixes(self, index: int) -> tuple[str, ...]:
        """Name the members of one sample, without reading them."""
        return tuple(member.suffix for member in self._entries[index][1])

    def read(self, index: int, suffixes: Collection[str] | None = None) -> dict[str, bytes]:
        """Return the members of sample `index` by suffix: those of `suffixes`, or all of them."""
        shard, members = self._entries[index]
        handle, key = self._handle(shard), self.keys[index]
        wanted = [member for member in members if suffixes is None or member.suffix in suffixes]
        return {member.suffix: self._read_member(handle, shard, key, member) for member in wanted}

    def close(self) -> None:
        """Close the open files; the next read opens them again."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def _read_member(self, handle: int, shard: int, key: str, member: Member) -> bytes:
        content = os.pread(handle, member.size, member.offset)
        while 0 < len(content) < member.size:  # one call returns 2 GiB at most, and less over some networks
            more = os.pread(handle, member.size - len(content), member.offset + len(content))
            if not more:
                break
            content += more
        if len(content) != member.size:
            found = f"{len(content)} of {member.size} bytes at offset {member.offset}"
            raise InputError(f"{self.shards[shard]}: {found}; the file has shrunk since it was opened")
        header = os.pread(handle, tarfile.BLOCKSIZE, member.offset - tarfile.BLOCKSIZE)
        require_header(header, key, member, str(self.shards[shard]))
        return content

    def _handle(self, shard: int) -> int:
        if shard in self._handles:
            self._handles.move_to_end(shard)
            return self._handles[shard]
        while len(self._handles) >= MAX_OPEN_FILES:
            os.close(self._handles.popitem(last=False)[1])
        try:
            self._handles[shard] = os.open(self.shards[shard].fetch(), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"{self.shards[shard]}: cannot be opened: {error.strerror}") from None
        return self._handles[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": OrderedDict()}

    def __del__(self) -> None:
        if "_handles" in self.__dict__:  # absent where the index could not be built
            self.close()


def open_shards(
    paths: Sequence[str],
    split: str | None,
    setting: str = "data.shards",
    *,
    cache: str = "",
    max_errors: int = 0,
) -> ShardReader:
    """Index every shard that `paths` name, of which up to `max_errors` unreadable ones are left out.

    See `shards.location.find_shards` for `paths`, `split` and `cache`. Bare tar files do not say which split
    they are and are taken as they are. What is wrong with a path opens with the `setting` that it is from.
    """
    shards = list_shards(paths, split, setting, cache=cache, max_errors=max_errors)
    return ShardReader(shards, split, max_errors=max_errors)


def list_shards(
    paths: Sequence[str],
    split: str | None,
    setting: str = "data.shards",
    *,
    cache: str = "",
    max_errors: int = 0,
) -> list[Shard]:
    """List the shards that `open_shards` indexes; of folders no more than the manifest is read."""
    if not paths:
        advice = "give a folder of shards, a .tar file or a pattern of them"
        raise InputError(f"{setting}: the list is empty; {advice}")
    try:
        return [s for path in paths for s in find_shards(path, split, cache, check_files=max_errors == 0)]
    except InputError as error:
        raise InputError(f"{setting} {error}") from None


def _require_listed_keys(shard: Shard, held: Sequence[str]) -> None:
    if shard.keys is not None and tuple(held) != shard.keys:
        found = f"{len(held)} samples ({', '.join(held[:2])}, ...)"
        listed = f"the manifest beside it lists {len(shard.keys)} ({', '.join(shard.keys[:2])}, ...)"
        raise InputError(f"{shard}: holds {found}, {listed}: the file is not the one that was prepared")
