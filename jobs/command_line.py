"""Options from the command line, and what a program does with a user's mistake."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn, TypeVar

import tyro
from tqdm.contrib.logging import logging_redirect_tqdm

from shards.errors import InputError, ReportedError

Options = TypeVar("Options")


def parse_options(
    options_type: type[Options] | object,
    arguments: Sequence[str],
    *,
    default: Options | None = None,
    program: str,
) -> Options:
    """Read `arguments` into a dataclass (or one of a union of dataclasses, as subcommands).

    Args:
        options_type: the dataclass; its docstrings become `--help`.
        arguments: what stands behind the program's name.
        default: values to start from, such as those of a YAML file.
        program: name shown in `--help`, such as `jobs.prepare`.

    Raises:
        InputError: an unknown option, a wrong type, or a value that the dataclass refuses.
        SystemExit: `--help` was asked for.
    """
    extra = {} if default is None else {"default": default}
    printed = _Utf8Text()
    try:
        with contextlib.nullcontext() if _asks_for_help(arguments) else _captured(printed):
            return tyro.cli(  # type: ignore[call-overload, no-any-return]
                options_type,
                args=list(arguments),
                prog=f"python -m {program}",
                config=(tyro.conf.FlagConversionOff,),
                use_underscores=True,
                **extra,
            )
    except SystemExit as stop:
        if stop.code != 2:  # tyro's for a mistake; else --help, or a signal that came meanwhile
            raise
        raise InputError(_one_line(printed.getvalue())) from None


def split_arguments(arguments: Sequence[str], options_type: type) -> tuple[list[str], list[str]]:
    """Part the options of a program from the configuration file and the settings of a run.

    For programs that take both: an option of `options_type` is the program's own, such as an `--out` that is
    not where the run would go; everything else is of the run.
    """
    names = {f"--{field.name}" for field in dataclasses.fields(options_type)} | {"--help", "-h"}
    own: list[str] = []
    of_run: list[str] = []
    target = of_run
    for argument in arguments:
        if argument.startswith("-") and not argument[1:2].isdigit():
            name = argument.split("=")[0].replace("-", "_").replace("__", "--", 1)
            target = own if name in names or argument == "-h" else of_run
        target.append(argument)
    return own, of_run


def run_program(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a program to its exit code.

    0 done; what a `ReportedError` says, after one line with its text, such as 2 for a user's mistake;
    130 Ctrl-C; 143 SIGTERM; what the program itself chose by `sys.exit`; 1 anything else. The codes of a
    fine-tuning are listed in docs/training.md.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?" for a dash
    signal.signal(signal.SIGTERM, _leave)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        with logging_redirect_tqdm():
            main(sys.argv[1:])
    except ReportedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    """Turn SIGTERM into an ordinary exit, so that half-written folders are removed on the way out."""
    sys.exit(128 + number)


class _Utf8Text(io.StringIO):
    """Text in memory that claims to be a UTF-8 terminal, so that tyro draws its boxes in one known way."""

    encoding = "utf-8"  # type: ignore[assignment]


def _asks_for_help(arguments: Sequence[str]) -> bool:
    return "--help" in arguments or "-h" in arguments


@contextlib.contextmanager
def _captured(printed: io.StringIO) -> Iterator[None]:
    """Catch what tyro prints about a mistake, on a terminal so wide that it wraps nothing."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "2000"
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _one_line(box: str) -> str:
    """Turn tyro's box, sections between rules, into one line that says what is wrong and what was meant."""
    sections: list[list[str]] = [[]]
    for line in (line.strip("│ ") for line in box.splitlines() if line.startswith("│")):
        if set(line) == {"─"}:
            sections.append([])
        elif line:
            sections[-1].append(line)
    told = []
    for section in sections:
        head = section[0] if section else ""
        if head.startswith("Missing from"):
            told.append("missing " + ", ".join(line.split()[0] for line in section if line.startswith("--")))
        elif head.startswith("Perhaps you meant"):
            told.append(f"perhaps you meant {section[1].split()[0]}")
        elif section and not head.startswith(("For full helptext", "Argument helptext")):
            told.append(" ".join(section).replace("Unrecognized options", "unrecognized options"))
    # our own messages name their setting; tyro puts the dataclass or section before them
    text = re.sub(r"^Error parsing (?!--)[\w.]+: ", "", "; ".join(told))
    return f"{text[:1].lower()}{text[1:].rstrip('.')}; --help lists every option"
