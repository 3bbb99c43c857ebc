"""Folders and files that are complete or absent, never half written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import InputError


def require_free(folder: Path, setting: str = "--out") -> None:
    """Check that `folder` does not exist or is an empty folder.

    Raises:
        InputError: something is already there; nothing existing is overwritten.
    """
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
    """Create `folder` and its parents where they are missing.

    Raises:
        InputError: it cannot be created: a file is in the way, it is read-only, or a name is too long.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{setting} {folder}: cannot be created: {error.strerror or error}") from None


@contextmanager
def staged_folder(folder: Path, setting: str = "--out") -> Iterator[Path]:
    """Yield a temporary folder beside `folder` that becomes `folder` when the block ends well.

    On any exception, Ctrl-C included, the temporary folder is removed and `folder` stays as it was. A
    process killed outright leaves `.NAME.partial-*` beside it, which nothing reads and anybody may delete.

    Raises:
        InputError: `folder` already holds files.
    """
    folder = folder.absolute()
    require_free(folder, setting)
    make_folder(folder.parent, setting)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        yield staging
        staging.chmod(0o755)
        if folder.is_dir():
            folder.rmdir()  # empty, or this fails and nothing is lost
        staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `path` through a temporary name in the same folder, replacing what is there."""
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
