"""Settings of a program: YAML files and command lines to dataclasses and back; exit codes.

One converter judges both sources; tyro renders `--help`. Its parser would need 0.03 s for each of the up to
10,000 configurations of a sweep, ours takes 0.2 ms.
"""

from __future__ import annotations

import dataclasses
import difflib
import io
import json
import logging
import math
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

Config = TypeVar("Config")


def parse_options(options_type: Any, arguments: Sequence[str], *, program: str) -> Any:
    """Read `arguments` into a dataclass, or into one of a union of dataclasses (subcommands of tyro).

    Args:
        options_type: its docstrings become `--help`.
        program: name shown there, such as `jobs.prepare`.

    Raises:
        InputError: an unknown option, a wrong type, or a value that the dataclass refuses.
        SystemExit: `--help` was asked for.
    """
    _show_help(options_type, arguments, program)
    if not isinstance(options_type, type):
        kinds = {mark.name: kind for kind, mark in map(typing.get_args, typing.get_args(options_type))}
        if not arguments or arguments[0] not in kinds:
            raise InputError(f"expected one of {{{', '.join(kinds)}}}; --help lists every option")
        options_type, arguments = kinds[arguments[0]], arguments[1:]
    return _build_from_words(options_type, {}, arguments)


def load_config(config_type: type[Config], arguments: Sequence[str], *, program: str) -> Config:
    """Read `[CONFIG.yaml] --section.setting value ...`; what stands on the command line wins.

    Of settings by name, such as loss.weights, `--loss.weights.dice 7` changes one entry of the file's, and
    `--loss.weights mask 5 dice 5` replaces them all.

    Raises:
        InputError: the file is missing or no YAML mapping, a key is unknown, or a value has the wrong type.
    """
    settings, default = {}, None
    if arguments and not arguments[0].startswith("-"):
        settings = read_settings(Path(arguments[0]))
        default, arguments = build_config(config_type, settings, arguments[0]), arguments[1:]
    _show_help(config_type, arguments, program, default)
    return _build_from_words(config_type, settings, arguments)


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
        if argument.startswith("--") or argument == "-h":
            target = own if _split_option(argument)[0] in names else of_run
        target.append(argument)
    return own, of_run


def run_program(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a program to its exit code.

    0 done; what a `ReportedError` says, after one line with its text, such as 2 for a user's mistake;
    130 Ctrl-C; 143 SIGTERM; what the program itself chose by `sys.exit`; 1 anything else. The codes of a
    fine-tuning are listed in docs/training.md.
    """

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)  # an ordinary exit: half-written folders are removed on the way out

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?" for a dash
    signal.signal(signal.SIGTERM, leave)
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


def read_config(config_type: type[Config], path: Path) -> Config:
    """Read a YAML file into `config_type`; settings that the file leaves out keep their defaults."""
    return build_config(config_type, read_settings(path), str(path))


class _Loader(yaml.SafeLoader):
    """Reads YAML, and refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise yaml.YAMLError(f"line {line}: {key.value} is given in line {lines[key.value]} already")
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def read_settings(path: Path) -> Any:
    """Read a YAML file as it is, unchecked; an empty one is an empty mapping."""
    if not path.is_file():
        raise InputError(f"{path}: no such configuration file")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
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
        key, _, rest = name.partition(".")
        inner = settings if isinstance(settings, Mapping) else {}
        settings = {**inner, key: with_overrides(inner.get(key), {rest: value}) if rest else value}
    return settings


def write_config(config: Any, path: Path) -> None:
    """Write every setting of a configuration, defaults too; `read_config` returns an equal object."""
    write_atomically(path, yaml.safe_dump(_plain(config), sort_keys=False, width=110))


def flat_settings(config: Any) -> dict[str, str | int | float | bool]:
    """List a configuration as dotted names and plain values, as TensorBoard wants hyper-parameters."""

    def visit(value: Any, name: str) -> Iterator[tuple[str, str | int | float | bool]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from visit(inner, f"{name}.{key}" if name else key)
        else:
            yield name, value if isinstance(value, str | int | float | bool) else str(value)

    return dict(visit(_plain(config), ""))


def _plain(config: Any) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _show_help(options_type: Any, arguments: Sequence[str], program: str, default: Any = None) -> None:
    if "--help" in arguments or "-h" in arguments:
        extra: dict[str, Any] = {} if default is None else {"default": default}
        extra |= {"config": (tyro.conf.FlagConversionOff,), "use_underscores": True}
        tyro.cli(options_type, args=list(arguments), prog=f"python -m {program}", **extra)


class _Word(str):
    """A value as it stands on a command line, of which the field's type makes a number, a path, ..."""


def _build_from_words(config_type: type[Config], settings: Any, arguments: Sequence[str]) -> Config:
    try:
        return _build(config_type, with_overrides(settings, _read_words(config_type, arguments)), "--")
    except ValueError as error:
        raise InputError(f"{error}; --help lists every option") from None


def _split_option(argument: str) -> tuple[str, list[_Word]]:
    """Split `--tile-width=9` into `--tile_width` and its value."""
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_"), [_Word(value)] if equals else []


def _read_words(options_type: type, arguments: Sequence[str]) -> dict[str, Any]:
    """Read a command line into words by dotted name; surplus words belong to the positional field."""
    hints = dict(_list_fields(options_type, ""))
    positional = next((n for n, hint in hints.items() if tyro.conf.Positional in typing.get_args(hint)), "")
    groups: list[tuple[str, list[_Word]]] = [("", [])]
    for argument in arguments:
        if argument.startswith("--"):
            groups.append(_split_option(argument))
        else:
            groups[-1][1].append(_Word(argument))
    loose, found, unknown = groups[0][1], dict[str, Any](), list[str]()
    for option, words in groups[1:]:
        name = option[2:]
        entries = typing.get_args(hints.get(name.rpartition(".")[0]))  # of settings by name
        hint = hints.get(name, entries[1] if len(entries) == 2 else None)
        if hint is None:
            unknown += [option, *words]
        elif typing.get_origin(hint) is dict and len(words) % 2 == 0:
            found[name] = dict(zip(words[::2], words[1::2], strict=True))
        else:
            if positional and typing.get_origin(hint) is not tuple:
                count = 0 if hint is bool and words[:1] not in (["True"], ["False"]) else 1
                loose, words = loose + words[count:], words[:count]
            found[name] = words or ([_Word(True)] if hint is bool else [])  # `--dry_run` alone will do
    if positional and (loose or typing.get_origin(typing.get_args(hints[positional])[0]) is tuple):
        found[positional] = loose
    else:
        unknown += loose
    if unknown:
        meant = _suggest(unknown[0], [f"--{name}" for name in hints])
        raise InputError(f"unrecognized options: {', '.join(unknown)}{meant}")
    return found


def _suggest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; perhaps you meant {close[0]}" if close else ""


def _list_fields(config_type: type, prefix: str) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(config_type, include_extras=True)
    for field in dataclasses.fields(config_type):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _list_fields(hint, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            yield prefix + field.name, hint


def _build(config_type: type[Config], content: Any, prefix: str) -> Config:
    """Build a dataclass of settings by name; `prefix` stands before their names in messages."""
    if not isinstance(content, Mapping):
        raise InputError(f"{prefix[:-1] or 'the file'}: expected settings by name, got {content!r}")
    hints, fields = typing.get_type_hints(config_type), dataclasses.fields(config_type)  # type: ignore[arg-type]
    names = [field.name for field in fields]
    for key in content:
        if key not in names:
            meant = _suggest(str(key), names)
            raise InputError(f"{prefix}{key}: unknown setting{meant}; known here: {', '.join(names)}")
    values = {key: _convert(value, hints[key], prefix + key) for key, value in content.items()}
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [prefix + name for name in required if name not in values]:
        raise InputError(f"missing {', '.join(missing)}")
    return config_type(**values)


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, list) and list(map(type, value)) == [_Word] and origin is not tuple:
        value = value[0]
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{where}.")  # type: ignore[arg-type]
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, _Word) and value == "None"):
            return None
        return _convert(value, inner[0], where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: expected values by name, got {value!r}")
        return {str(key): _convert(entry, inner[1], f"{where}.{key}") for key, entry in value.items()}
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where}: expected a list, got {value!r}")
        hints = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        if len(value) != len(hints):
            raise InputError(f"{where}: expected {len(hints)} values, got {value!r}")
        return tuple(_convert(entry, hints[i], f"{where}[{i}]") for i, entry in enumerate(value))
    return _convert_scalar(value, hint, where)


def _convert_scalar(value: Any, hint: Any, where: str) -> Any:
    is_word, kind = isinstance(value, _Word), getattr(hint, "__name__", hint)
    choices = (True, False) if is_word and hint is bool else typing.get_args(hint)
    if choices:
        named = {str(choice): choice for choice in choices}
        if is_word and value in named:
            return named[value]
        if value in choices:
            return value
        option = where.partition("[")[0]
        refused = f"invalid choice {value!r} for argument '{option}'. Expected one of {tuple(named)}"
        raise InputError(refused if is_word else f"{where}: got {value!r}; allowed: {', '.join(named)}")
    refused = f"error parsing {where}: invalid {kind} {value!r}"
    wrong = InputError(refused if is_word else f"{where}: expected {kind}, got {value!r}")
    try:
        if is_word or (hint in (float, Path) and not isinstance(value, bool)):
            value = hint(value)  # of a file too: YAML 1.1 reads 1e-4, without a dot, as text
    except (TypeError, ValueError, OverflowError):
        raise wrong from None
    if not isinstance(value, hint) or isinstance(value, bool) is not (hint is bool):
        raise wrong
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}: got {value}; a finite number is needed")
    return value
