"""Errors whose text is all that their reader needs."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

MOST_CHARACTERS = 2000


def printable(text: str) -> str:
    """Escape what is no plain character of one line: a name of a file must not forge lines or colours."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class ReportedError(Exception):
    """Something that a program says in one line and leaves with `exit_code`, without a traceback.

    The text says where, what was given and what is allowed: lower case, one line, no full stop. Names in it
    are printable, whatever a file calls its parts. Any other exception is our own mistake and keeps its
    traceback.
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


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `; perhaps you meant NAME` where one is alike."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; perhaps you meant {close[0]}" if close else ""
