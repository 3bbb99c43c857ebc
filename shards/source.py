"""Sources of downloads: an unpacked folder, or the zip file as it came."""

from __future__ import annotations

import errno
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePath, PurePosixPath

from shards.errors import InputError

MAX_MEMBER_BYTES = 2**31
"""Largest member of a zip file, decompressed; the largest official one has 0.45 GB, COCO's annotations."""

ZIP_DAMAGES = (
    *(zipfile.BadZipFile, zlib.error, struct.error),
    *(OSError, EOFError, KeyError, ValueError, RuntimeError),
)
"""Errors of reading a zip file, an `.npz` too, that was cut off or changed."""
_HIDDEN = frozenset({"__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin"})
"""What macOS, a Synology and Windows leave in folders and archives, in lower case."""


def read_plain(path: Path) -> bytes:
    """Return the content of a file; an OSError refuses a pipe, which would wait, or a device without end.

    So it does a file that is larger than `MAX_MEMBER_BYTES`.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    if path.is_file() and path.stat().st_size > MAX_MEMBER_BYTES:
        raise OSError(errno.EFBIG, f"has over {MAX_MEMBER_BYTES:,} bytes", str(path))
    return path.read_bytes()


@dataclass(frozen=True)
class FolderSource:
    """Files below a folder; links are followed."""

    path: Path

    def match(self, pattern: str) -> list[str]:
        """Return the sorted names that fit `pattern`, in which `*` stays within one folder.

        Names are relative and use forward slashes; hidden files (`._x.png`, `.DS_Store`) are left out.
        """
        return sorted(path.relative_to(self.path).as_posix() for path in list_visible(self.path, pattern))

    def find(self, name: str) -> str | None:
        """Return `name` where there is such a file below the folder."""
        is_inside = not name.startswith("/") and ".." not in name.split("/")
        return name if is_inside and os.path.isfile(self.path / name) else None  # noqa: PTH113 - never raises

    def read(self, name: str) -> bytes:
        """Return the content of one file."""
        try:
            return read_plain(self.path / name)
        except OSError as error:
            raise InputError(f"{self.locate(name)}: cannot be read ({error.strerror})") from None

    def locate(self, name: str) -> str:
        """Return where a file is, for a message."""
        return str(self.path / name)


@dataclass(frozen=True)
class ZipSource:
    """Members of a zip file, read in place. A member's name is a key to look up, never a path on disk."""

    path: Path

    def match(self, pattern: str) -> list[str]:
        """Return the sorted names of members that fit `pattern`, as `FolderSource.match` does.

        Where a folder holds everything in the archive, it may be left out of the pattern.
        """
        parts, names = pattern.split("/"), [name for name in self.names() if not is_hidden(name)]
        top = _top_folder(self._archive())
        stripped = [(name, name.removeprefix(top).split("/")) for name in names]
        return sorted(name for name, rest in stripped if _fits(name.split("/"), parts) or _fits(rest, parts))

    def find(self, name: str) -> str | None:
        """Return the name of a member as the archive has it; its top folder may be left out."""
        archive = self._archive()
        if name in archive.NameToInfo:
            return name
        inside = _top_folder(archive) + name
        return inside if inside in archive.NameToInfo else None

    def read(self, name: str) -> bytes:
        """Return the content of one member."""
        try:
            archive = self._archive()
            size = archive.getinfo(name).file_size  # no more than this is ever decompressed
            if size > MAX_MEMBER_BYTES:
                where, limit = self.locate(name), f"{MAX_MEMBER_BYTES:,}"
                raise InputError(f"{where}: says that it has {size:,} bytes; at most {limit} are read")
            return archive.read(name)
        except ZIP_DAMAGES as error:
            raise InputError(f"{self.locate(name)}: cannot be read ({error})") from None

    def locate(self, name: str) -> str:
        """Return where a member is, for a message: `ZIP:MEMBER`."""
        return f"{self.path}:{name}"

    def names(self) -> list[str]:
        """Return the names of all files in it; a name that no official download has is refused."""
        names = [entry.filename for entry in self._archive().infolist() if not entry.is_dir()]
        for name in names:
            if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
                unsafe = f"holds a member with the unsafe name {name!r}"
                raise InputError(f"{self.path}: {unsafe}; it is no official download")
        return names

    def _archive(self) -> zipfile.ZipFile:
        try:
            status = self.path.stat()
            return _open_archive(self.path, status.st_mtime_ns, status.st_size)
        except ZIP_DAMAGES as error:
            raise InputError(f"{self.path}: is no complete zip file ({error})") from None


Source = FolderSource | ZipSource
"""A read-only tree of files, however it is stored."""


@lru_cache(maxsize=4)
def _open_archive(path: Path, _mtime_ns: int, _size: int) -> zipfile.ZipFile:
    """Open a zip file once per process: reading the table of contents of 118,000 pictures takes a second.

    Time and size are there so that a replaced file is opened anew.
    """
    return zipfile.ZipFile(path)


def open_source(path: Path, setting: str) -> Source:
    """Open a folder or a zip file."""
    if path.is_dir():
        return FolderSource(path)
    if not path.exists():
        raise InputError(f"{setting} {path}: does not exist; a folder or a zip file is needed")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{setting} {path}: is neither a folder nor a complete zip file")
    return ZipSource(path)


def list_near(source: Source, depth: int = 2) -> list[str]:
    """Return the names of the files that lie directly in a source or one folder below; or at more depths."""
    return sorted({name for n in range(depth) for name in source.match("/".join("*" * (n + 1)))})


@lru_cache(maxsize=4)
def _top_folder(archive: zipfile.ZipFile) -> str:
    """Return the folder, with its slash, that everything in an archive lies in; empty: there is none."""
    names = [name for name in archive.NameToInfo if not is_hidden(name)]
    top = next(iter(names), "").partition("/")[0] + "/"
    return top if all(name.startswith(top) for name in names) else ""


def _fits(parts: list[str], patterns: list[str]) -> bool:
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def list_visible(folder: Path, pattern: str) -> list[Path]:
    """List what fits a pattern below a folder, sorted, without what is hidden."""
    return sorted(path for path in folder.glob(pattern) if not is_hidden(path.relative_to(folder)))


def is_hidden(path: PurePath | str) -> bool:
    """Say whether a relative path goes through what systems leave behind (`._x.png`, `.DS_Store`)."""
    return any(part.startswith(".") or part.lower() in _HIDDEN for part in PurePath(path).parts)
