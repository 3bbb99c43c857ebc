"""Options from the command line, and what a program does with a user's mistake."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TypeVar

import tyro

from shards.errors import InputError

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
    printed = io.StringIO()
    extra = {} if default is None else {"default": default}
    try:
        with _wide_terminal(), contextlib.redirect_stderr(printed):
            return tyro.cli(  # type: ignore[call-overload, no-any-return]
                options_type,
                args=list(arguments),
                prog=f"python -m {program}",
                config=(tyro.conf.FlagConversionOff,),
                use_underscores=True,
                **extra,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError(_one_line(printed.getvalue())) from None


def run_program(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a program to its exit code: 0 done, 2 a user's mistake (one line), 130 Ctrl-C, 1 anything else."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


@contextlib.contextmanager
def _wide_terminal() -> Iterator[None]:
    """Keep tyro from wrapping an error message, which is about to become one line.

    `--help` goes to a real terminal and keeps its width.
    """
    if "--help" in sys.argv or "-h" in sys.argv:
        yield
        return
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "2000"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = before


def _one_line(box: str) -> str:
    """Turn tyro's boxed message into `what is wrong; perhaps you meant ...; see --help`."""
    lines = [re.sub(r"^[│|]\s?|\s*[│|]$", "", line).strip() for line in box.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("╭", "╰", "+"))]
    rules = [i for i, line in enumerate(lines) if set(line) <= {"─", "-"}]
    text = " ".join(lines[: rules[0]] if rules else lines)
    if "Perhaps you meant:" in lines:
        suggestion = lines[lines.index("Perhaps you meant:") + 1].split()[0]
        text += f"; perhaps you meant {suggestion}"
    text = re.sub(r"^Error parsing [\w.]+: (?=\w+\.\w)", "", text)  # our own messages name the setting
    return f"{text[:1].lower()}{text[1:].rstrip('.')}; --help lists every option"
