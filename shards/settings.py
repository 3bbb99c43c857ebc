"""Settings of a program: YAML file and command line to dataclass, dataclass to YAML; exit codes."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import logging
import math
import os
import re
import signal
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import tyro
import yaml
from tqdm.contrib.logging import logging_redirect_tqdm

from shards.errors import InputError, ReportedError
from shards.files import write_atomically

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


Config = TypeVar("Config")


def load_config(config_type: type[Config], arguments: Sequence[str], *, program: str) -> Config:
    """Read `[CONFIG.yaml] --section.setting value ...`; what stands on the command line wins.

    Of settings by name, such as loss.weights, `--loss.weights.dice 7` changes one entry of the file's, and
    `--loss.weights mask 5 dice 5` replaces them all.

    Raises:
        InputError: the file is missing or no YAML mapping, a key is unknown, or a value has the wrong type.
    """
    if not arguments or arguments[0].startswith("-"):
        config: Config = parse_options(config_type, arguments, program=program)
    else:
        saved = _emptied(read_config(config_type, Path(arguments[0])), arguments[1:], "--")
        config = parse_options(config_type, arguments[1:], default=saved, program=program)
    require_finite(config)
    return config


def require_finite(config: Any) -> None:
    """Refuse nan and infinity in any setting."""
    for name, value in flat_settings(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name}: got {value}; a finite number is needed")


def read_config(config_type: type[Config], path: Path) -> Config:
    """Read a YAML file into `config_type`; settings that the file leaves out keep their defaults."""
    return build_config(config_type, read_settings(path), str(path))


def read_settings(path: Path) -> Any:
    """Read a YAML file as it is, unchecked; an empty one is an empty mapping."""
    if not path.is_file():
        raise InputError(f"{path}: no such configuration file")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None


def build_config(config_type: type[Config], settings: Any, where: str) -> Config:
    """Check nested settings and build `config_type` of them; `where` they are from opens each message."""
    try:
        return _build(config_type, settings, "")
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def with_overrides(settings: Any, overrides: Mapping[str, Any]) -> Any:
    """Return nested settings with those at dotted names replaced; what is given is not changed."""
    for name, value in overrides.items():
        settings = _replaced(settings, name.split("."), value)
    return settings


def _replaced(settings: Any, keys: Sequence[str], value: Any) -> Any:
    if not keys:
        return value
    inner = settings if isinstance(settings, Mapping) else {}
    return {**inner, keys[0]: _replaced(inner.get(keys[0]), keys[1:], value)}


def write_config(config: Any, path: Path) -> None:
    """Write every setting of a configuration, defaults too; `read_config` returns an equal object."""
    write_atomically(path, yaml.safe_dump(_plain(config), sort_keys=False, width=110))


def flat_settings(config: Any) -> dict[str, str | int | float | bool]:
    """List a configuration as dotted names and plain values, as TensorBoard wants hyper-parameters."""
    flat: dict[str, str | int | float | bool] = {}

    def visit(value: Any, name: str) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                visit(inner, f"{name}.{key}" if name else str(key))
        else:
            flat[name] = value if isinstance(value, str | int | float | bool) else str(value)

    visit(_plain(config), "")
    return flat


def _emptied(config: Config, arguments: Sequence[str], prefix: str) -> Config:
    """Empty those dictionaries of a configuration that `arguments` give as a whole.

    Of a dictionary that is not empty, the parser would know the present keys and no others.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value, option = getattr(config, field.name), prefix + field.name
        if isinstance(value, dict) and option in arguments:
            changes[field.name] = {}
        elif dataclasses.is_dataclass(value):
            inner = _emptied(value, arguments, f"{option}.")
            changes |= {} if inner is value else {field.name: inner}
    return dataclasses.replace(config, **changes) if changes else config  # type: ignore[type-var]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _build(config_type: type[Config], content: Any, where: str) -> Config:
    if not isinstance(content, Mapping):
        raise InputError(f"{where or 'the file'}: expected settings by name, got {content!r}")
    hints = typing.get_type_hints(config_type)
    names = [field.name for field in dataclasses.fields(config_type)]  # type: ignore[arg-type]
    values = {}
    for key, value in content.items():
        dotted = f"{where}.{key}" if where else str(key)
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f"; perhaps you meant {close[0]}" if close else ""
            raise InputError(f"{dotted}: unknown setting{hint}; known here: {', '.join(names)}")
        values[key] = _convert(value, hints[key], dotted)
    return config_type(**values)


def _convert(value: Any, hint: Any, where: str) -> Any:
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)  # type: ignore[arg-type]
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), where)
    if origin is typing.Literal:
        if value not in arguments:
            raise InputError(f"{where}: got {value!r}; allowed: {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return _convert_tuple(value, arguments, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: expected values by name, got {value!r}")
        return {str(k): _convert(v, arguments[1], f"{where}.{k}") for k, v in value.items()}
    return _convert_scalar(value, hint, where)


def _convert_tuple(value: Any, arguments: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{where}: expected a list, got {value!r}")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(inner, arguments[0], f"{where}[{i}]") for i, inner in enumerate(value))
    if len(value) != len(arguments):
        raise InputError(f"{where}: expected {len(arguments)} values, got {value!r}")
    return tuple(
        _convert(inner, hint, f"{where}[{i}]")
        for i, (inner, hint) in enumerate(zip(value, arguments, strict=True))
    )


def _convert_scalar(value: Any, hint: Any, where: str) -> Any:
    wrong = InputError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r}")
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-4, without a dot, as text
        except (TypeError, ValueError, OverflowError):
            raise wrong from None
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, bool) is not (hint is bool) or not isinstance(value, hint):
        raise wrong
    return value
