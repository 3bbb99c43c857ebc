"""What goes wrong on one rank ends all of them: together, with one line and one exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError

from shards.errors import InputError, ReportedError, StorageError

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
"""What a full disk is to Python, to torch and to safetensors."""


def raise_together(accelerator: Accelerator, error: ReportedError | None) -> None:
    """Wait for all ranks, and leave on every one of them if any has an error.

    A rank that left alone would have the others wait for it in their next exchange. The first rank with an
    error raises it; the others leave with its exit code and without a word, so that it is said once.
    """
    if accelerator.num_processes == 1:
        if error is not None:
            raise error
        return
    codes: list[int] = gather_object([0 if error is None else error.exit_code])
    first = next((rank for rank, code in enumerate(codes) if code), None)
    if first is None:
        return
    if error is not None and first == accelerator.process_index:
        raise error
    raise SystemExit(codes[first])


def require_agreement(accelerator: Accelerator, what: str, value: str) -> None:
    """Check that all ranks see the same.

    Raises:
        InputError: they do not; most likely a folder is not shared by their machines.
    """
    if accelerator.num_processes == 1:
        return
    values: list[str] = gather_object([value])
    other = next((rank for rank, theirs in enumerate(values) if theirs != values[0]), None)
    if other is not None:
        message = (
            f"{what}: process 0 sees {values[0]}, process {other} sees {values[other]}; all must share it"
        )
        raise_together(accelerator, InputError(message))


@contextmanager
def writing(accelerator: Accelerator, what: str) -> Iterator[None]:
    """Run a block that writes files, then wait for all ranks; if it failed on any, all leave.

    Args:
        what: said before the reason.

    Raises:
        StorageError: the block failed here, with one of `WRITE_ERRORS`.
    """
    error: ReportedError | None = None
    try:
        yield
    except ReportedError as reported:
        error = reported
    except WRITE_ERRORS as cause:
        error = StorageError(f"{what}: {explain_failure(cause)}")
        error.__cause__ = cause
    raise_together(accelerator, error)


def explain_failure(error: Exception) -> str:
    """Say in one line why something could not be written."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
