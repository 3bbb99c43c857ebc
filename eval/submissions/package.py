"""A package of a benchmark: its description, and its files in an unpacked folder, a zip or a tar."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from eval.submissions.bravo import BRAVO
from eval.submissions.fishyscapes import FISHYSCAPES
from eval.submissions.smiyc import SMIYC
from shards.errors import InputError
from shards.source import MAX_MEMBER_BYTES, FolderSource, ZipSource, is_hidden

BENCHMARKS = {benchmark.name: benchmark for benchmark in (SMIYC, FISHYSCAPES, BRAVO)}
DESCRIPTION_NAME = "submission.json"


@dataclass(frozen=True, kw_only=True)
class Description:
    """Content of `submission.json`: whose answers a package holds; the benchmarks do not read it."""

    benchmark: str
    method: str
    model: str
    """Where the model was read from."""
    fingerprint: str
    """SHA-256 of the model's weights or code."""
    score: str
    frames: dict[str, tuple[int, int]]
    """(height, width) by key."""


@dataclass(frozen=True)
class Package:
    """Files by name, with forward slashes."""

    path: Path
    names: frozenset[str]
    read: Callable[[str], bytes]
    """Name to content; raises `InputError` where it is damaged or larger than any file of a package."""


@contextmanager
def open_package(path: Path) -> Iterator[Package]:
    """Open what a user hands in, hidden files left out; no member may leave the folder."""
    if path.is_dir():
        names = (entry.relative_to(path).as_posix() for entry in path.rglob("*") if entry.is_file())
        yield Package(path, _visible(names), FolderSource(path).read)
    elif path.suffix == ".zip" and path.is_file():
        source = ZipSource(path)
        yield Package(path, _visible(source.names()), source.read)
    elif path.is_file() and path.name.endswith((".tar", ".tar.gz", ".tgz")):
        try:
            with tarfile.open(path) as archive:
                yield _of_tar(path, archive)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise InputError(f"{path}: is no complete tar file ({error})") from None
    else:
        raise InputError(f"{path}: expected the folder of a package, or a .zip, .tar or .tar.gz of it")


def _of_tar(path: Path, archive: tarfile.TarFile) -> Package:
    members = {member.name.removeprefix("./"): member for member in archive.getmembers() if member.isfile()}
    for name in members:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise InputError(f"{path}: holds a member with the unsafe name {name!r}")

    def read(name: str) -> bytes:
        if members[name].size > MAX_MEMBER_BYTES:
            raise InputError(f"{path}:{name}: has {members[name].size:,} bytes; at most {MAX_MEMBER_BYTES:,}")
        content = archive.extractfile(members[name])
        assert content is not None
        return content.read()

    return Package(path, _visible(members), read)


def _visible(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name in names if not is_hidden(name))
