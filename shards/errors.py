"""Errors whose text is all that their reader needs."""


class ReportedError(Exception):
    """Something that a program says in one line and leaves with `exit_code`, without a traceback.

    The text says where, what was given and what is allowed: lower case, one line, no full stop. Any other
    exception is our own mistake and keeps its traceback.
    """

    exit_code = 1


class InputError(ReportedError, ValueError):
    """Something the user gave (a path, a file, a setting) is wrong."""

    exit_code = 2


class StorageError(ReportedError, RuntimeError):
    """A folder cannot be written: the disk is full, over quota, read-only or gone."""

    exit_code = 74  # EX_IOERR
