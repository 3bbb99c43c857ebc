"""Locations of shards: folders, files, patterns and URLs; remote ones are cached when first read.

URLs are those of fsspec (`https://`, `s3://`, `gs://`, `hf://`, `file://`, ...); some need a package of their
own, such as s3fs. Many processes may share a cache: a lock lets one of them download a shard while the others
wait, and a file appears under its name only when it is complete. Where locks do not work (some network
file systems) a shard is downloaded more than once, and still read whole.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import itertools
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
from braceexpand import braceexpand

from shards.errors import InputError, refusal_of
from shards.files import hash_file, hold_lock, partial_file, remove_partials, this_process
from shards.index import INDEX_ENDING, IndexedSample, load_index, parse_index
from shards.manifest import MANIFEST_NAME, Manifest, parse_manifest, read_manifest
from shards.schema import CITYSCAPES, ClassTable

ATTEMPTS = 3
PAUSE_S = 2.0
"""Between two attempts to reach a remote file; longer each time."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Shard:
    """One tar file, local or remote."""

    location: str
    """Path or URL."""
    keys: tuple[str, ...] | None = None
    """Samples that a manifest says it holds; None: no manifest speaks of it."""
    num_bytes: int | None = None
    """Size that a manifest says it has."""
    sha256: str | None = None
    classes: ClassTable = CITYSCAPES
    """What its train ids mean; without a manifest Cityscapes' classes."""
    title: str = ""
    """Name of the set, where a manifest says it."""
    cache: Path | None = None
    """Folder for the local copy of a remote shard; None: it is a local file."""
    stamp: str = ""
    """What the server said of a remote shard that no manifest speaks of: size, time, tag."""

    def __str__(self) -> str:
        return self.location

    def index(self) -> tuple[IndexedSample, ...]:
        """Return the samples in file order; of a remote shard without downloading it, where that can be."""
        if self.cache is not None and self.num_bytes is not None and not self._copy().is_file():
            with contextlib.suppress(InputError):  # prepared by another program: no index beside it
                content = _read_remote(self.location + INDEX_ENDING, attempts=1)
                if (samples := parse_index(content, self.num_bytes)) is not None:
                    return samples
        return load_index(self.fetch())

    def fetch(self) -> Path:
        """Return the local file, after downloading it where it is not in the cache yet.

        A remote file that is not the one that its manifest describes is refused.
        """
        if self.cache is None:
            return Path(self.location)
        copy = self._copy()
        if copy.is_file():
            return copy
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as held:
                with contextlib.suppress(OSError):  # no locks here: see the module's first lines
                    lock = copy.with_name(copy.name + ".lock")
                    held.enter_context(hold_lock(lock, wait_s=math.inf, owner=this_process()))
                    remove_partials(copy.parent, copy.name)
                if not copy.is_file():
                    self._download(copy)
        except OSError as error:
            raise refusal_of(error, f"data.cache {self.cache}: {self.location}") from None
        return copy

    def _copy(self) -> Path:
        assert self.cache is not None
        digest = hashlib.sha256(f"{self.location}\0{self.sha256 or self.stamp}".encode()).hexdigest()[:16]
        return self.cache / digest / _without_query(self.location).rpartition("/")[2]

    def _download(self, copy: Path) -> None:
        with partial_file(copy) as partial:
            _reach(self.location, lambda system, path: system.get_file(path, str(partial)))
            size = partial.stat().st_size
            if self.num_bytes is not None and size != self.num_bytes:
                raise InputError(f"{self.location}: has {size} bytes, the manifest says {self.num_bytes}")
            if self.sha256 is not None and hash_file(partial) != self.sha256:
                raise InputError(f"{self.location}: its bytes differ from the manifest's hash")


def find_shards(path: str, split: str | None, cache: str = "", *, check_files: bool = True) -> list[Shard]:
    """List the shards that `path` names.

    Args:
        path: a folder with a manifest, a `.tar` file, or a pattern of tar files with the wildcards `*`, `?`,
            `[...]` and braces such as `train-{000000..000007}.tar`; each as a path or as a URL.
        split: which shards of a folder to take; None takes all.
        cache: folder for remote shards; empty: see `default_cache`.
        check_files: report a shard that a manifest lists and that is missing or has another size; otherwise
            whoever opens it finds out.
    """
    if "://" in path:
        kept_in = Path(cache) if cache else default_cache()
        found = [_find_remote(path, pattern, split, kept_in, check_files) for pattern in _expand(path)]
        return list(itertools.chain(*found))
    if Path(path).is_dir():
        return _select(read_manifest(Path(path), check_files=check_files), path, path, split)
    if Path(path).is_file():
        return _as_manifests_say([path])
    files: list[str] = []
    for pattern in _expand(path):
        matches = _without_indexes(glob.glob(pattern))  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not matches and (check_files or not pattern.endswith(".tar") or glob.has_magic(pattern)):
            raise _nothing_found(path, pattern)
        files += matches or [pattern]
    return _as_manifests_say(files)


def is_there(path: str) -> bool:
    """Say whether a path or a pattern leads to something; a URL is believed, and so is `hf:org/name`."""
    return "://" in path or path.startswith("hf:") or any(glob.glob(pattern) for pattern in braceexpand(path))  # noqa: PTH207


def default_cache() -> Path:
    """Return where remote shards are kept if `data.cache` does not say: in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eomt-anomaly"


def _find_remote(given: str, pattern: str, split: str | None, cache: Path, check_files: bool) -> list[Shard]:
    if glob.has_magic(_without_query(pattern).split("://", 1)[1]):
        matches = _without_indexes(_reach(pattern, lambda system, path: system.glob(path)))
        if not matches:
            raise _nothing_found(given, pattern)
        protocol = pattern.split("://", 1)[0]
        urls = [match if "://" in match else f"{protocol}://{match}" for match in matches]
    elif _without_query(pattern).endswith(".tar"):
        urls = [pattern]
    else:
        folder = pattern.rstrip("/")
        where = f"{folder}/{MANIFEST_NAME}"
        shards = _select(parse_manifest(_read_remote(where), where), folder, pattern, split)
        return [replace(shard, cache=cache) for shard in shards]
    return [Shard(url, cache=cache, stamp=_ask_stamp(url, check_files)) for url in urls]


def _ask_stamp(url: str, required: bool) -> str:
    """Ask once, when a run starts: it must not change its data on the way."""
    try:
        info = _reach(url, lambda system, path: system.info(path))
    except InputError:
        if required:
            raise
        return "absent"
    return repr([info.get(name) for name in ("size", "ETag", "etag", "mtime", "LastModified", "created")])


def _select(manifest: Manifest, folder: str, given: str, split: str | None) -> list[Shard]:
    try:
        entries = manifest.shards if split is None else manifest.select(split)
    except InputError as error:
        raise InputError(f"{given}: {error}") from None
    known = (manifest.classes, manifest.title)
    return [Shard(f"{folder}/{e.name}", e.keys, e.num_bytes, e.sha256, *known) for e in entries]


def _as_manifests_say(paths: Sequence[str]) -> list[Shard]:
    """Return local tar files; those that a manifest beside them lists have its classes and title."""
    told: dict[Path, Shard] = {}
    for folder in {Path(path).parent for path in paths}:
        with contextlib.suppress(InputError):  # no manifest, or somebody else's file of that name
            manifest = read_manifest(folder, check_files=False)
            known = Shard("", classes=manifest.classes, title=manifest.title)
            told |= dict.fromkeys((folder / entry.name for entry in manifest.shards), known)
    return [replace(told.get(Path(path), Shard("")), location=path) for path in paths]


def find_classes(shards: Sequence[Shard]) -> ClassTable:
    """Return the one table of classes of several shards."""
    for shard in shards[1:]:
        advice = "scenes of one run have the same classes, in one order"
        shard.classes.require_fit(shards[0].classes, str(shard), str(shards[0]), advice)
    return shards[0].classes if shards else CITYSCAPES


def _expand(path: str) -> list[str]:
    try:
        return list(braceexpand(path))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _without_query(url: str) -> str:
    """Cut off what signs a web address: there, a question mark is no wildcard."""
    return url.partition("?")[0] if url.startswith(("http://", "https://")) else url


def _without_indexes(names: Sequence[str]) -> list[str]:
    """Sort what a pattern has found; `train-*` fits the index files, too."""
    return sorted(name for name in names if not name.endswith(INDEX_ENDING))


def _nothing_found(path: str, pattern: str) -> InputError:
    part = "" if pattern == path else f" ({pattern})"
    advice = "give a folder with a manifest, a .tar file or a pattern"
    return InputError(f"{path}{part}: no shard found; {advice}")


def _read_remote(url: str, attempts: int = ATTEMPTS) -> bytes:
    return _reach(url, lambda system, path: system.cat_file(path), attempts)


def _reach(url: str, ask: Any, attempts: int = ATTEMPTS) -> Any:
    """Ask the file system of `url`, again where it does not answer; a file that is absent stays absent."""
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise InputError(f"{url}: {' '.join(str(error).split())}") from None
    for attempt in range(attempts):
        try:
            return ask(system, path)
        except Exception as error:  # each file system has its own
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            if _is_final(error):
                raise InputError(f"{url}: cannot be read: no such file, or no right to read it") from None
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if attempt + 1 < attempts:
                time.sleep(PAUSE_S * (attempt + 1))
    raise InputError(f"{url}: cannot be read after {attempts} attempts: {reason}")


def _is_final(error: Exception) -> bool:
    """Say whether to ask again is useless; fsspec's HTTP calls a server out of reach a missing file, too."""
    cause = error.__cause__
    absent = (FileNotFoundError, IsADirectoryError, PermissionError)
    said = cause is None or isinstance(cause, absent) or getattr(cause, "status", 0) in (401, 403, 404, 410)
    return isinstance(error, absent) and said
