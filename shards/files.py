"""Files that are complete or absent, file locks, names, JSON of dataclasses, hashes.

Only the standard library is imported: `slurm.cell` needs this module and has to start fast.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, TypeVar

from shards.errors import InputError, shorten, suggest

PARTIAL = ".partial-"
"""Part of every temporary name, `.NAME.partial-*`: files and folders of a process that was killed."""
Kind = TypeVar("Kind")
Location = typing.Annotated[str, "location"]
"""Type of a setting that is a path, a pattern or a URL: `~`, `$DATA` and `${DATA}` in it are filled in."""


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Yield a temporary, empty file beside `path` that replaces `path` when the block ends well."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}{PARTIAL}", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(path)  # which a failed write does not know
        raise


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `path` through a temporary name in the same folder, replacing what is there."""
    with partial_file(path) as partial, partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def remove_partials(folder: Path, name: str = "") -> None:
    """Remove what killed processes left of `name` in `folder`, or of all files at any depth of it.

    For whoever holds the lock of what it is.
    """
    start, paths = (f".{name}{PARTIAL}", folder.iterdir()) if name else (".", folder.rglob(f".*{PARTIAL}*"))
    for path in [path for path in paths if path.name.startswith(start)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


NAME = re.compile(r"\w[\w .,=+-]{0,119}")


def require_name(name: str, setting: str) -> None:
    """Check that `name` can name a folder and a column: no path, no option, no formula, no line break."""
    if not NAME.fullmatch(name):
        allowed = "120 letters, digits, spaces and _ . , = + - at most, a letter, digit or _ first"
        raise InputError(f"{setting}: got {name!r:.60}; {allowed}")


def require_title(title: Any, setting: str) -> None:
    """Check that `title` is a text for one cell of a table."""
    if not isinstance(title, str) or not 0 < len(title.strip()) <= 120 or not title.isprintable():
        raise InputError(f"{setting}: got {title!r:.80}; one line of 1 to 120 printable characters is needed")


class LockTaken(RuntimeError):
    """Somebody else holds the lock; the text says who."""


def this_process() -> str:
    """Name this process and its machine, as the owner of a lock."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def hold_lock(
    path: Path, *, wait_s: float | int, owner: str, shared: bool = False, is_kept: bool = True
) -> Iterator[int]:
    """Hold the lock of file `path`, with others or alone, and yield its descriptor.

    The kernel frees the lock when the last process that has the descriptor open is gone, however it went.
    Give the descriptor to child processes that must not be doubled either. Only the lock counts: the file
    stays or, unless `is_kept`, is removed by its holder.

    It is `flock`: on one machine it always holds; over NFS from version 4 on (or with lockd), which frees the
    locks of a machine that vanished after a lease of a minute or two, so wait that long; on Lustre with the
    mount option flock. Mounts with `local_lock` or `nolock` lock within one machine only.

    `owner` is written into the file, for the message of who comes second. A LockTaken says that somebody else
    held it for all of `wait_s`.
    """
    descriptor = _open_locked(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, time.monotonic() + wait_s)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner.encode(), 0)
        yield descriptor
    finally:
        if not is_kept:
            path.unlink(missing_ok=True)  # while it is held, so that nobody else's is removed
        os.close(descriptor)


def _open_locked(path: Path, kind: int, deadline: float) -> int:
    """Open and lock a file that may be removed by its holder at any moment."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        is_locked = _try_lock(descriptor, kind)
        if is_locked and _is_at(path, descriptor):
            return descriptor
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        os.close(descriptor)
        if not is_locked:
            if time.monotonic() >= deadline:
                raise LockTaken(f"{path} is held by {holder or 'another process'}")
            time.sleep(0.1)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def is_held(path: Path) -> bool:
    """Say whether somebody holds the lock of file `path`."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    """Return a hash of a file, in hexadecimal."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def to_json(value: Any, *, indent: int | None = 1, sort_keys: bool = False, allow_nan: bool = True) -> str:
    """Render dataclasses, paths, and what JSON knows, with a line break at the end."""
    text = json.dumps(value, default=_plain, indent=indent, sort_keys=sort_keys, allow_nan=allow_nan)
    return text + "\n"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, PurePath) else dataclasses.asdict(value)


def read_json(kind: Callable[..., Kind], path: Path) -> Kind:
    """Read a JSON file as `from_json` does; a file that cannot be read is an InputError, too."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    return from_json(kind, content, str(path))


def from_json(kind: Callable[..., Kind], content: Any, where: str) -> Kind:
    """Build an object of type `kind`, see `Builder`, from JSON.

    `content` is JSON text, or what `json.loads` made of one. An InputError, which `where` opens, says that it
    is no JSON, or that a value is of another type: `WHERE: shards[0]: num_bytes is '10'; int is needed`.
    """
    try:
        if isinstance(content, str | bytes):
            content = json.loads(content, object_pairs_hook=_once)
        return typing.cast(Kind, Builder().build(kind, content))
    except InputError as error:
        raise InputError(f"{where}: {str(error).lstrip(': ')}") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise InputError(f"{where}: is no valid JSON ({error!s:.200})") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON, whose names stand once."""
    if len(content := dict(pairs)) < len(pairs):
        raise InputError(f"{Counter(name for name, _ in pairs).most_common(1)[0][0]!r:.80} is given twice")
    return content


class Builder:
    """Builder of typed objects from what JSON holds; `shards.settings` derives one for settings.

    It understands dataclasses, `list`, `tuple`, `dict`, `Mapping`, `Sequence`, `Literal`, `X | None`, `Path`,
    `Any`, and the plain types of JSON. A field with a default may be absent; an unknown one is refused. An
    integer is also a float; true and false are no integers.
    """

    dot, noun, missing, own_error = ": ", "field", "{place}: has no field {name!r}", "{place}: {error}"
    """Parts of messages: text between place and field, a field's name, the two texts about a whole object."""

    def build(self, kind: Any, value: Any, place: str = "") -> Any:
        """Convert `value`, which stands at `place`; an InputError says why that fails."""
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if kind is Any or (value is None and type(None) in inner):
            return value
        if origin in (typing.Annotated, typing.Union, types.UnionType):
            return self.build(inner[0], value, place)
        if isinstance(value, Mapping):
            if dataclasses.is_dataclass(kind):
                return self._build_dataclass(kind, value, place)
            if origin in (dict, Mapping):
                places = {key: f"{place}.{key}".lstrip(".") for key in value}
                return {str(key): self.build(inner[1], value[key], places[key]) for key in value}
        if isinstance(value, list | tuple) and origin in (list, tuple, Sequence):
            repeated = origin is not tuple or inner[1:] == (...,)
            kinds = inner[:1] * len(value) if repeated else inner
            if len(kinds) == len(value):
                items = [self.build(kinds[i], item, f"{place}[{i}]") for i, item in enumerate(value)]
                return items if origin is list else tuple(items)
        try:
            return self.convert(kind, value)
        except (TypeError, ValueError, OverflowError):
            raise InputError(self.refuse(kind, value, place)) from None

    def _build_dataclass(self, kind: Any, content: Mapping[Any, Any], place: str) -> Any:
        fields, start = _fields_of(kind), place + (self.dot if place.strip("-") else "")
        places = {name: f"{start}{name}" for name in (*fields, *content)}
        if unknown := [name for name in content if name not in fields]:
            known = f"{suggest(str(unknown[0]), fields)}; known here: {', '.join(fields)}"
            raise InputError(f"{places[unknown[0]]}: unknown {self.noun}{known}")
        values = {name: self.build(fields[name][0], item, places[name]) for name, item in content.items()}
        if lacking := [name for name, (_, needed) in fields.items() if needed and name not in values]:
            names = ", ".join(places[name] for name in lacking)
            raise InputError(self.missing.format(place=place, name=lacking[0], names=names))
        try:
            return kind(**values)
        except ValueError as error:  # of its own checks
            raise InputError(self.own_error.format(place=place, error=error)) from None

    def convert(self, kind: Any, value: Any) -> Any:
        """Return a value without parts as `kind`; a TypeError or ValueError says that it is none."""
        if kind is float and type(value) is int:
            return float(value)
        if kind is Path and isinstance(value, str):
            return Path(value)
        origin = typing.get_origin(kind)
        of_class = not origin and isinstance(kind, type) and isinstance(value, kind)
        is_exact = of_class and isinstance(value, bool) is (kind is bool)
        if is_exact or (origin is typing.Literal and value in typing.get_args(kind)):
            return value
        raise TypeError

    def refuse(self, kind: Any, value: Any, place: str) -> str:
        """Say that `value` is no `kind`."""
        origin = typing.get_origin(kind)
        if dataclasses.is_dataclass(kind) or origin in (dict, Mapping):
            return f"{place}: is a {type(value).__name__}; a JSON object is needed"
        needed = str(kind) if origin else kind.__name__
        if origin is typing.Literal:
            needed = f"one of {', '.join(map(str, typing.get_args(kind)))}"
        return f"{place} is {shorten(value)}; {needed} is needed"


@functools.cache
def _fields_of(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Return type and "has no default" of each field that the constructor takes."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = [field for field in dataclasses.fields(kind) if field.init]
    return {f.name: (hints[f.name], f.default is f.default_factory is dataclasses.MISSING) for f in fields}
