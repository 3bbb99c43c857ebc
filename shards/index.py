"""Byte offsets of the members of a tar shard, kept in a small file beside it.

A sample is all members that share a key, neighbours or not. As in WebDataset, the key of `000017.image.jpg`
is what stands before the first dot of the base name (`000017`) and its suffix is the rest (`image.jpg`);
suffixes are compared in lower case. Any tar that WebDataset writes can be read, compressed ones cannot: a
byte offset means nothing there.

The index of `x.tar` is `x.tar.index.json`. It is a convenience, never a truth: where it is absent,
unreadable, older than its shard or of a shard of another size, it is built anew, and written if the folder
allows; every read checks the header that stands before the member (`require_header`).
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from shards.errors import InputError
from shards.files import remove_partials, write_atomically
from shards.source import is_hidden

INDEX_ENDING = ".index.json"
INDEX_VERSION = 1


class Member(NamedTuple):
    """Where one file of a sample lies in its shard, in bytes."""

    suffix: str
    offset: int
    size: int


class IndexedSample(NamedTuple):
    """One sample of a shard, with its members in file order; samples are in the order of their first ones."""

    key: str
    members: tuple[Member, ...]


def load_index(shard: Path) -> tuple[IndexedSample, ...]:
    """Return the samples of `shard` in file order, from its index file where that can be trusted."""
    path = index_path(shard)
    try:
        status = shard.stat()
        if path.stat().st_mtime_ns >= status.st_mtime_ns:
            samples = parse_index(path.read_bytes(), status.st_size)
            if samples is not None and _ends_as_indexed(shard, samples, status.st_size):
                return samples
    except OSError:
        pass  # build_index names a shard that is missing; a missing index is the usual case
    samples = build_index(shard)
    with contextlib.suppress(OSError):  # a read-only folder is read without index files
        remove_partials(shard.parent, path.name)  # of a process that was killed, or that writes the same
        write_index(shard, samples)
    return samples


def index_path(shard: Path) -> Path:
    """Return where the index of `shard` is kept."""
    return shard.with_name(shard.name + INDEX_ENDING)


def write_index(shard: Path, samples: Sequence[IndexedSample]) -> None:
    """Write the index beside `shard`; equal shards give equal bytes."""
    rows = [[key, [list(member) for member in members]] for key, members in samples]
    content = {"version": INDEX_VERSION, "num_bytes": shard.stat().st_size, "samples": rows}
    write_atomically(index_path(shard), json.dumps(content, separators=(",", ":")) + "\n")


def parse_index(content: bytes, num_bytes: int) -> tuple[IndexedSample, ...] | None:
    """Read an index file; None where it is damaged, of another version or of a shard of another size."""
    try:
        found: Any = json.loads(content)
        if found["version"] != INDEX_VERSION or found["num_bytes"] != num_bytes:
            return None
        samples = []
        for key, rows in found["samples"]:
            members = tuple(Member(str(suffix), int(offset), int(size)) for suffix, offset, size in rows)
            are_inside = (tarfile.BLOCKSIZE <= m.offset <= num_bytes - m.size <= num_bytes for m in members)
            if not all(are_inside) or not _is_text(str(key)):
                return None
            samples.append(IndexedSample(str(key), members))
        are_apart = all(len({m.suffix for m in members}) == len(members) > 0 for _, members in samples)
        return tuple(samples) if are_apart and len(dict(samples)) == len(samples) else None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def require_header(header: bytes, key: str, member: Member, where: str) -> None:
    """Check that the tar header before a member is of that member."""
    if not _is_header_of(header, key, member):
        lacking = f"no member {key}.{member.suffix} of {member.size} bytes at offset {member.offset}"
        advice = f"the file is not the one that was indexed: remove its {INDEX_ENDING} file, or restore it"
        raise InputError(f"{where}: {lacking}; {advice}")


_DAMAGES = (tarfile.TarError, ValueError, OverflowError, RecursionError)
"""What the standard library raises at headers that are none."""
_MAX_HEADER = 2**20


class _HeaderReader(io.BufferedReader):
    """A tar file of which headers alone are read; one larger than any name is refused."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def build_index(path: Path) -> tuple[IndexedSample, ...]:
    """List the samples of one shard from its headers, which costs about 20 µs per member."""
    try:
        size = path.stat().st_size
        with (
            _HeaderReader(path.open("rb", buffering=0)) as file,
            tarfile.open(fileobj=file, mode="r:") as tar,
        ):
            members = [_check_member(path, info, size) for info in tar]
            end = tar.offset
            file.seek(end)
            tail = file.read(tarfile.BLOCKSIZE)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror or error}") from None
    except _DAMAGES as error:
        raise InputError(
            f"{path}: is no plain tar file, or a damaged one ({size} bytes): {error!s:.200}"
        ) from None
    # tarfile itself stops in silence at a broken header and at a cut between two members
    if tail != bytes(tarfile.BLOCKSIZE):
        lacking = f"no end-of-archive mark at byte {end}, where the last whole member ends"
        raise InputError(f"{path}: is truncated or damaged: {lacking}; the file has {size} bytes")
    return _group_members(path, [member for member in members if member is not None])


def _is_header_of(header: bytes, key: str, member: Member) -> bool:
    if len(header) != tarfile.BLOCKSIZE:
        return False
    size = header[124:136].strip(b" \0")
    if not header[124] & 0x80 and not (size.isdigit() and int(size, 8) == member.size):
        return False  # a set first bit marks sizes of 8 GiB and more, in binary
    name, expected = header[:100].rstrip(b"\0"), f"{key}.{member.suffix}".lower()
    if len(name) == 100 or not expected.isascii():
        return True  # the whole name stands in another block
    return name.rpartition(b"/")[2].decode("utf-8", "replace").lower() == expected


def _ends_as_indexed(shard: Path, samples: tuple[IndexedSample, ...], num_bytes: int) -> bool:
    """Say whether first and last member stand where the index says, and the end of the archive after them."""
    if not samples:
        return False
    placed = [(member.offset, key, member) for key, members in samples for member in members]
    with shard.open("rb") as file:
        for _, key, member in (min(placed), max(placed)):
            file.seek(member.offset - tarfile.BLOCKSIZE)
            if not _is_header_of(file.read(tarfile.BLOCKSIZE), key, member):
                return False
        file.seek(member.offset + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _check_member(path: Path, info: tarfile.TarInfo, file_size: int) -> tuple[str, Member] | None:
    """Return key and place of a member; None for folders, hidden files and WebDataset's own `__name__`."""
    name = PurePosixPath(info.name)
    if name.is_absolute() or ".." in name.parts:
        raise InputError(f"{path}: refuses the member {info.name!r}: its path leaves the archive")
    if info.isdir() or is_hidden(name) or (name.name.startswith("__") and name.name.endswith("__")):
        return None
    if not info.isreg() or info.issparse():
        raise InputError(f"{path}: refuses the member {info.name!r}: only plain files belong into a shard")
    if not _is_text(info.name):
        raise InputError(f"{path}: refuses the member {info.name!r}: its name is not UTF-8")
    end = info.offset_data + info.size
    if not info.offset_data <= end <= file_size:
        member = f"member {info.name!r} ends at byte {end}"
        raise InputError(f"{path}: is truncated: {member}, the file has {file_size}")
    key, dot, suffix = name.name.partition(".")
    if not key or not dot or not suffix:
        needed = "names such as 000017.image.jpg are needed"
        raise InputError(f"{path}: member {info.name!r} has no suffix; {needed}")
    return key, Member(suffix.lower(), info.offset_data, info.size)


def _is_text(name: str) -> bool:
    """Say whether a name can be written: a byte that is not UTF-8 stands in it as half a character."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _group_members(path: Path, members: list[tuple[str, Member]]) -> tuple[IndexedSample, ...]:
    samples: dict[str, list[Member]] = {}
    for key, member in members:
        samples.setdefault(key, []).append(member)
    for key, of_sample in samples.items():
        suffix, count = Counter(member.suffix for member in of_sample).most_common(1)[0]
        if count > 1:
            raise InputError(f"{path}: sample {key!r} has two members with the suffix {suffix}")
    return tuple(IndexedSample(key, tuple(of_sample)) for key, of_sample in samples.items())
