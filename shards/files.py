"""Files and folders that are complete or absent, file locks, JSON of dataclasses, hashes.

Only the standard library is imported: `slurm.cell` needs this module and has to start fast.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any, TypeVar

from shards.errors import InputError

PARTIAL = ".partial-"
"""Part of every temporary name, `.NAME.partial-*`: files and folders of a process that was killed."""
Kind = TypeVar("Kind")


def require_free(folder: Path, setting: str = "--out") -> None:
    """Check that `folder` does not exist or is an empty folder; `setting` opens the message."""
    try:
        is_folder = folder.is_dir()
    except OSError as error:  # such as a name that is too long
        raise InputError(f"{setting} {folder}: {error.strerror or error}") from None
    if is_folder:
        if any(folder.iterdir()):
            raise InputError(
                f"{setting} {folder}: the folder already holds files; choose another or empty it"
            )
    elif folder.exists():
        raise InputError(f"{setting} {folder}: is a file; a new or empty folder is needed")


def make_folder(folder: Path, setting: str = "--out") -> None:
    """Create `folder` and its parents where they are missing; an InputError says why that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{setting} {folder}: cannot be created: {error.strerror or error}") from None


@contextmanager
def staged_folder(folder: Path, setting: str = "--out") -> Iterator[Path]:
    """Yield a temporary folder beside `folder` that becomes `folder` when the block ends well.

    On any exception, Ctrl-C included, the temporary folder is removed and `folder` stays as it was. A
    process killed outright leaves `.NAME.partial-*` beside it, which nothing reads and anybody may delete.
    """
    folder = folder.absolute()
    require_free(folder, setting)
    make_folder(folder.parent, setting)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}{PARTIAL}", dir=folder.parent))
    try:
        yield staging
        staging.chmod(0o755)
        if folder.is_dir():
            folder.rmdir()  # empty, or this fails and nothing is lost
        staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


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
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `path` through a temporary name in the same folder, replacing what is there."""
    with partial_file(path) as partial, partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left in `folder`; for whoever holds its lock."""
    for path in folder.glob(f".*{PARTIAL}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class LockTaken(RuntimeError):
    """Somebody else holds the lock; the text says who."""


def this_process() -> str:
    """Name this process and its machine, as the owner of a lock."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def hold_lock(path: Path, *, wait_s: float | int, owner: str) -> Iterator[int]:
    """Hold the lock of file `path`, and yield its descriptor.

    The kernel frees the lock when the last process that has the descriptor open is gone, however it went.
    Give the descriptor to child processes that must not be doubled either. The file stays; only the lock
    counts.

    It is `flock`: on one machine it always holds; over NFS from version 4 on (or with lockd), which frees the
    locks of a machine that vanished after a lease of a minute or two, so wait that long; on Lustre with the
    mount option flock. Mounts with `local_lock` or `nolock` lock within one machine only.

    Args:
        wait_s: how long to try.
        owner: written into the file, for the message of who comes second.

    Raises:
        LockTaken: somebody else held it all the time.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + wait_s
        while not _try_lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                holder = path.read_text(encoding="utf-8", errors="replace").strip()
                raise LockTaken(f"{path} is held by {holder or 'another process'}")
            time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner.encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


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


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
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
    """Build an object of type `kind` from JSON.

    Understood are dataclasses and named tuples, their fields annotated with one another, `list`, `tuple`,
    `dict`, `Mapping`, `Sequence`, `Literal`, unions, `Path`, `Any` and the plain types of JSON. A field with
    a default may be absent; an unknown one is refused. An integer is also a float; true and false are no
    integers.

    Args:
        content: JSON text (`str` or `bytes`), or what `json.loads` made of one.
        where: file and place, which open each message.

    Raises:
        InputError: it is no JSON, or a value is not of its type: `WHERE: shards[0]: num_bytes is '10'; int is
            needed`.
    """
    if isinstance(content, str | bytes):
        try:
            content = json.loads(content)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
            raise InputError(f"{where}: is no valid JSON ({error})") from None
    return typing.cast(Kind, _build(kind, content, where, "", ""))


def _build(kind: Any, value: Any, where: str, place: str, name: str) -> Any:
    """Convert `value`, which the object at `place` (dotted; empty at the top) holds as `name`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where, f"{place}.{name}".strip("."))
    if kind is Any or (value is None and type(None) in arguments):
        return value
    if origin in (typing.Union, types.UnionType):
        *others, last = [argument for argument in arguments if argument is not type(None)]
        for alternative in others:
            with suppress(InputError):
                return _build(alternative, value, where, place, name)
        return _build(last, value, where, place, name)
    if origin is typing.Literal and value in arguments:
        return value
    if origin in (list, tuple, Sequence) and isinstance(value, list):
        repeated = origin is not tuple or arguments[1:] == (...,)
        kinds = arguments[:1] * len(value) if repeated else arguments
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            items = [_build(inner, item, where, place, f"{name}[{i}]") for i, (inner, item) in pairs]
            return items if origin is list else tuple(items)
    if origin in (dict, Mapping):
        _require_object(value, where, f"{place}.{name}".strip("."))
        prefix = f"{name}." if name else ""
        return {key: _build(arguments[1], item, where, place, prefix + key) for key, item in value.items()}
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind:
        return value
    subject = f"{where}: {place}: {name}" if place else f"{where}: {name}"
    needed = f"one of {', '.join(map(str, arguments))}" if origin is typing.Literal else _name_of(kind)
    raise InputError(f"{subject.rstrip(' :')}{' ' if name else ': '}is {value!r:.80}; {needed} is needed")


def _build_dataclass(kind: Any, value: Any, where: str, place: str) -> Any:
    here = _require_object(value, where, place)
    fields = _fields_of(kind)
    if unknown := [name for name in value if name not in fields]:
        raise InputError(f"{here}: has an unknown field {unknown[0]!r}; known are {', '.join(fields)}")
    if missing := [name for name, (_, needed) in fields.items() if needed and name not in value]:
        raise InputError(f"{here}: has no field {missing[0]!r}")
    values = {name: _build(fields[name][0], item, where, place, name) for name, item in value.items()}
    try:
        return kind(**values)
    except ValueError as error:  # of its own checks
        raise InputError(f"{here}: {error}") from None


def _require_object(value: Any, where: str, place: str) -> str:
    here = f"{where}: {place}" if place else where
    if not isinstance(value, dict):
        raise InputError(f"{here}: is a {type(value).__name__}; a JSON object is needed")
    return here


@functools.cache
def _fields_of(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Return type and "has no default" of each field that the constructor takes."""
    hints, missing = typing.get_type_hints(kind), dataclasses.MISSING
    return {
        field.name: (hints[field.name], field.default is missing and field.default_factory is missing)
        for field in dataclasses.fields(kind)
        if field.init
    }


def _name_of(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
