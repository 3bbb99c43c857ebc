"""Folders and files that a program writes: claimed before the work, complete or absent after it."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import InputError, ReportedError, StorageError, as_reported, refusal_of
from shards.files import PARTIAL, LockTaken, hold_lock, is_held, remove_partials, this_process


def require_free(folder: Path, setting: str = "--out") -> None:
    """Check that `folder` does not exist or is an empty folder; `setting` opens the message."""
    try:
        is_folder = folder.is_dir()
        is_used = is_folder and any(folder.iterdir())
        is_link = folder.is_symlink()
    except OSError as error:  # such as a name that is too long
        raise refusal_of(error, f"{setting} {folder}") from None
    if is_used:
        advice = "choose another or empty it"
        raise InputError(f"{setting} {folder}: the folder already holds files; {advice}")
    if not is_folder and (is_link or folder.exists()):
        kind = "a link that leads to no folder" if is_link else "a file"
        raise InputError(f"{setting} {folder}: is {kind}; a new or empty folder is needed")


def make_folder(folder: Path, setting: str = "--out") -> None:
    """Create `folder` and its parents where they are missing.

    Raises:
        InputError: the path is impossible.
        StorageError: the file system does not allow it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{setting} {folder}: is a file, or a link that leads to no folder") from None
    except OSError as error:
        raise refusal_of(error, f"{setting} {folder}") from None


@contextmanager
def claimed(place: Path, setting: str = "--out", part: str = "") -> Iterator[None]:
    """Be the only program that writes the folder or file `place` while the block runs.

    Its parents are made, and those that are new removed again where the block fails. What a killed process
    left of `place` is removed. A fault of storage in the block is a StorageError.

    Args:
        part: claim this share of it alone, such as `0-of-2`.

    Raises:
        InputError: another program holds `.NAME.lock` beside it, or the path is impossible.
        StorageError: the folder above it cannot be written.
    """
    where = f"{setting} {place}" + (f", part {part}" if part else "")
    place = place.absolute()
    new = [folder for folder in place.parents if not folder.is_dir()]
    make_folder(place.parent, setting)
    try:
        with _held(_lock_of(place, part), where):
            _require_alone(place, part, where)
            if not part:
                remove_partials(place.parent, place.name)
            yield
    except BaseException as error:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # of empty ones
        if isinstance(error, ReportedError) or (reported := as_reported(error, where)) is None:
            raise
        raise reported from error


@contextmanager
def _held(lock: Path, where: str) -> Iterator[None]:
    """Hold a lock at once, or say who holds it, or why it cannot be had."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(lock, wait_s=0.0, owner=this_process(), is_kept=False))
        except LockTaken as error:
            raise InputError(f"{where}: another program is writing there: {error}") from None
        except OSError as error:
            told = StorageError(f"{where}: cannot be written: {error.strerror or error}")
            raise as_reported(error, where) or told from None
        yield


def _lock_of(place: Path, part: str = "") -> Path:
    return place.with_name(".".join(["", place.name, *([part] if part else []), "lock"]))


def _require_alone(place: Path, part: str, where: str) -> None:
    """Check that nobody holds the whole, or a part of it, and remove the locks of those who were killed."""
    names = re.escape(f".{place.name}.") + r"\d+-of-\d+\.lock"
    parts = [] if part else [path for path in place.parent.iterdir() if re.fullmatch(names, path.name)]
    for lock in [_lock_of(place)] if part else parts:
        if is_held(lock):
            raise InputError(f"{where}: another program is writing there: it holds {lock}")
        lock.unlink(missing_ok=True)


@contextmanager
def staged_folder(folder: Path, setting: str = "--out") -> Iterator[Path]:
    """Claim `folder`, and yield a temporary one beside it that becomes `folder` when the block ends well.

    On any exception, Ctrl-C included, the temporary folder is removed and `folder` stays as it was. A
    process killed outright leaves `.NAME.partial-*` beside it, which the next one removes.
    """
    require_free(folder, setting)
    with claimed(folder, setting):
        require_free(folder, setting)  # another program may have ended meanwhile
        folder = folder.absolute()
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}{PARTIAL}", dir=folder.parent))
        try:
            yield staging
            publish(staging, folder)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def publish(finished: Path, folder: Path) -> None:
    """Give a finished folder its name; what has it is empty, or this fails and nothing is lost."""
    finished.chmod(0o755)
    if folder.is_dir():
        folder.rmdir()
    finished.rename(folder)
