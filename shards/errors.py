"""Errors whose text is all that their reader needs."""

from __future__ import annotations

import errno
import os


class ReportedError(Exception):
    """Something that a program says in one line and leaves with `exit_code`, without a traceback.

    The text says where, what was given and what is allowed: lower case, one line, no full stop. Any other
    exception is our own mistake and keeps its traceback, except for those of `as_reported`.
    """

    exit_code = 1


class InputError(ReportedError, ValueError):
    """Something the user gave (a path, a file, a setting) is wrong."""

    exit_code = 2


class StorageError(ReportedError, RuntimeError):
    """A folder cannot be written: the disk is full, over quota, read-only or gone."""

    exit_code = 74  # EX_IOERR


_FAULTS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ESTALE, errno.ENODEV),
)
_IMPOSSIBLE = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)


def as_reported(error: BaseException, place: str = "") -> ReportedError | None:
    """Return a fault of storage as a StorageError, an impossible path as an InputError; None: neither.

    Libraries that are not Python's name the system's fault in their text (safetensors, HDF5, torch).

    Args:
        place: what is being read or written; empty: the path that the error names.
    """
    code = error.errno if isinstance(error, OSError) else None
    if code is None:
        code = next((fault for fault in _FAULTS if os.strerror(fault) in str(error)), None)
    if code is None or code not in (*_FAULTS, *_IMPOSSIBLE):
        return None
    named = getattr(error, "filename", None)
    reason = os.strerror(code) + (f" ({named})" if place and named and str(named) != place else "")
    kind = StorageError if code in _FAULTS else InputError
    return kind(f"{place or named or 'a file'}: cannot be read or written: {reason}")


def printable(text: str) -> str:
    """Return `text` with every control character, line breaks too, as an escape such as \\x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
