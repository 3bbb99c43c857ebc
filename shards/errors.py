"""Errors whose text is all that their reader needs."""

from __future__ import annotations

import difflib
import errno
import os
import reprlib
from collections.abc import Iterable, Sized
from typing import Any

MOST_CHARACTERS = 2000


def printable(text: str) -> str:
    """Escape what is no plain character of one line: a name of a file must not forge lines or colours."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class ReportedError(Exception):
    """Something that a program says in one line and leaves with `exit_code`, without a traceback.

    The text says where, what was given and what is allowed: lower case, one line, no full stop. Names in it
    are printable, whatever a file calls its parts. Any other exception is our own mistake and keeps its
    traceback, except for those of `as_reported`.
    """

    exit_code = 1

    def __str__(self) -> str:
        text = printable(super().__str__())
        return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ..."


class InputError(ReportedError, ValueError):
    """Something the user gave (a path, a file, a setting) is wrong."""

    exit_code = 2


class StorageError(ReportedError, RuntimeError):
    """A folder cannot be written: the disk is full, over quota, read-only or gone."""

    exit_code = 74  # EX_IOERR


def shorten(value: Any) -> str:
    """Render a value for a message; of a large one the beginning."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    return short.repr(value)


def and_more(items: Sized) -> str:
    """Return ` (and N more)` for a message that names the first of several items."""
    return f" (and {len(items) - 1} more)" if len(items) > 1 else ""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `; perhaps you meant NAME` where one is alike."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; perhaps you meant {close[0]}" if close else ""


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


def refusal_of(error: OSError, place: str) -> ReportedError:
    """Return what `as_reported` says of a fault at a place that the user gave, or else an InputError."""
    return as_reported(error, place) or InputError(f"{place}: {error.strerror or error}")
