"""Settings of a program: YAML files and command lines to dataclasses and back.

One converter judges both sources; tyro renders `--help`. Its parser would need 0.03 s for each of the up to
10,000 configurations of a sweep, ours takes 0.2 ms.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import tyro
import yaml

from shards.errors import InputError, shorten, suggest
from shards.files import Builder, Location, to_json, write_atomically
from shards.yaml_file import read_yaml

Config = TypeVar("Config")

LARGEST = 1e12
"""Size of the largest number in a setting; products of a few of them are numbers in float32 still."""
ROOT = Path(__file__).resolve().parent.parent
"""The folder in which jobs/configs and slurm/examples lie, in the repository or installed."""
UNSET = ("none", "null")
"""Words that take a setting of the file back, such as `--loss.outlier none`: its default holds."""


def parse_options(options_type: Any, arguments: Sequence[str], *, program: str) -> Any:
    """Read `arguments` into a dataclass, or into one of a union of dataclasses (subcommands of tyro).

    Docstrings become `--help`, which shows `program`, such as `jobs.prepare`. An InputError names an unknown
    option, a wrong type, or a value that the dataclass refuses.
    """
    _show_help(options_type, arguments, program)
    if not isinstance(options_type, type):
        kinds = {mark.name: kind for kind, mark in map(typing.get_args, typing.get_args(options_type))}
        if not arguments or arguments[0] not in kinds:
            given = f"got {shorten(arguments[0])}; " if arguments else ""
            raise InputError(f"{given}expected one of {{{', '.join(kinds)}}}; --help lists every option")
        options_type, arguments = kinds[arguments[0]], arguments[1:]
    return _build_from_words(options_type, {}, arguments)


def load_config(config_type: type[Config], arguments: Sequence[str], *, program: str) -> Config:
    """Read `[CONFIG.yaml] --section.setting value ...`; what stands on the command line wins.

    `none` takes a setting of the file back, as in `--loss.outlier none`. Of settings by name, such as
    loss.weights, `--loss.weights.dice 7` changes one entry of the file's, and `--loss.weights mask 5 dice 5`
    replaces them all. An InputError says what is wrong with file or words.
    """
    settings, default = {}, None
    if arguments and not arguments[0].startswith("-"):
        settings = read_settings(Path(arguments[0]))
        default, arguments = build_config(config_type, settings, arguments[0]), arguments[1:]
    _show_help(config_type, arguments, program, default)
    return _build_from_words(config_type, settings, arguments)


def split_arguments(arguments: Sequence[str], options_type: type) -> tuple[list[str], list[str]]:
    """Part the options of a program from the configuration file and the settings of a run.

    An option of `options_type` is the program's own, such as an `--out` that is not where the run would go.
    """
    names = {f"--{field.name}" for field in dataclasses.fields(options_type)} | {"--help", "-h"}
    own, of_run = list[str](), list[str]()
    target = of_run
    for argument in arguments:
        if argument.startswith("--") or argument == "-h":
            target = own if _split_option(argument)[0] in names else of_run
        target.append(argument)
    return own, of_run


def read_config(config_type: type[Config], path: Path) -> Config:
    """Read a YAML file into `config_type`; settings that the file leaves out keep their defaults."""
    return build_config(config_type, read_settings(path), str(path))


def read_settings(path: Path) -> Any:
    """Read a YAML file as it is, unchecked; an empty one is an empty mapping."""
    return read_yaml(find_config(path)) or {}


def find_config(path: Path) -> Path:
    """Return a configuration file, or the suite's own of that name, such as jobs/configs/rba.yaml."""
    for file in (path, ROOT / path):
        if file.is_file():
            return file
    raise InputError(f"{path}: no such configuration file")


def build_config(config_type: type[Config], settings: Any, where: str) -> Config:
    """Check nested settings and build `config_type` of them; `where` they are from opens each message."""
    try:
        return cast(Config, _SettingsBuilder().build(config_type, settings))
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
    write_atomically(path, yaml.safe_dump(json.loads(to_json(config)), sort_keys=False, width=110))


def flat_settings(config: Any, prefix: str = "") -> dict[str, str | int | float | bool]:
    """List a configuration as dotted names and plain values, as TensorBoard wants hyper-parameters."""
    flat: dict[str, str | int | float | bool] = {}
    for name, value in json.loads(to_json(config)).items():
        if isinstance(value, dict):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str | int | float | bool) else str(value)
    return flat


def _show_help(options_type: Any, arguments: Sequence[str], program: str, default: Any = None) -> None:
    if "--help" in arguments or "-h" in arguments:
        extra: dict[str, Any] = {} if default is None else {"default": default}
        extra |= {"config": (tyro.conf.FlagConversionOff,), "use_underscores": True}
        tyro.cli(options_type, args=list(arguments), prog=f"python -m {program}", **extra)


class _Word(str):
    """A value as it stands on a command line, of which the field's type makes a number, a path, ..."""


def _build_from_words(config_type: type[Config], settings: Any, arguments: Sequence[str]) -> Config:
    try:
        nested = with_overrides(settings, _read_words(config_type, arguments))
        return cast(Config, _SettingsBuilder().build(config_type, nested, "--"))
    except ValueError as error:
        taken_back = ", and `--SETTING none` takes one of the file back" if settings else ""
        raise InputError(f"{error}; --help lists every option{taken_back}") from None


def _split_option(argument: str) -> tuple[str, list[_Word]]:
    """Split `--tile-width=9` into `--tile_width` and its value."""
    name, equals, value = argument.partition("=")
    return name[:2] + name[2:].replace("-", "_"), [_Word(value)] if equals else []


def _read_words(options_type: type, arguments: Sequence[str]) -> dict[str, Any]:
    """Read a command line into words by dotted name; surplus words belong to the positional field."""
    fields = list(_list_fields(options_type, ""))
    hints = {name: hint for name, hint, _ in fields}
    positional = next((name for name, _, is_positional in fields if is_positional), "")
    loose, found, unknown = list[_Word](), dict[str, Any](), list[str]()
    starts = [i for i, argument in enumerate(arguments) if argument.startswith("--")] + [len(arguments)]
    loose += map(_Word, arguments[: starts[0]])
    for start, end in itertools.pairwise(starts):
        option, words = _split_option(arguments[start])
        words += map(_Word, arguments[start + 1 : end])
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
            words = words or ([_Word(True)] if hint is bool else [])  # `--dry_run` alone will do
            found[name] = _unpack(words, hint)
    if positional and (loose or typing.get_origin(hints[positional]) is tuple):
        found[positional] = _unpack(loose, hints[positional])
    else:
        unknown += loose
    if unknown:
        meant = suggest(unknown[0], [f"--{name}" for name in hints])
        raise InputError(f"unrecognized options: {', '.join(unknown)}{meant}")
    return found


def _unpack(words: list[_Word], hint: Any) -> Any:
    """Return a field's value: the list of its words, or the one where it takes one; None takes it back."""
    if len(words) == 1 and words[0].lower() in UNSET and words[0] not in _choices(hint):
        return None
    if len(words) != 1 or typing.get_origin(hint) is tuple:
        return words
    return words[0]


def _list_fields(config_type: Any, prefix: str) -> Iterator[tuple[str, Any, bool]]:
    """List dotted name and type of every setting, and whether it is positional."""
    hints = typing.get_type_hints(config_type, include_extras=True)
    for name in (field.name for field in dataclasses.fields(config_type)):
        hint = hints[name]
        kind, *marks = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
        if dataclasses.is_dataclass(kind):
            yield from _list_fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, kind, tyro.conf.Positional in marks


class _SettingsBuilder(Builder):
    """Builds dataclasses of settings: the nested content of a YAML file, and words of a command line."""

    dot, noun, missing, own_error = ".", "setting", "missing {names}", "{error}"

    def build(self, kind: Any, value: Any, place: str = "") -> Any:
        if isinstance(value, str) and (kind is Path or kind == Location):
            value = _fill_in(value, place)
        if isinstance(value, Mapping) and Any not in typing.get_args(kind):  # null: not given after all
            kept = _takes_null(kind)
            value = {name: inner for name, inner in value.items() if inner is not None or name in kept}
        built = super().build(kind, value, place)
        if kind in (int, float) and not abs(built) <= LARGEST:
            raise InputError(f"{place}: got {built}; a finite number is needed, at most {LARGEST:g} in size")
        return built

    def convert(self, kind: Any, value: Any) -> Any:
        is_word, choices = isinstance(value, _Word), _choices(kind)
        if isinstance(value, str) and "\0" in value:
            raise ValueError
        if isinstance(value, str):
            value.encode()  # or a ValueError: no table and no file could hold it
        if is_word and choices:
            value = {str(choice): choice for choice in choices}.get(value, value)
        elif is_word or (kind in (float, Path) and not isinstance(value, bool)):
            value = kind(value)  # of a file too: YAML 1.1 reads 1e-4, without a dot, as text
        return super().convert(kind, value)

    def refuse(self, kind: Any, value: Any, place: str) -> str:
        origin, choices = typing.get_origin(kind), tuple(map(str, _choices(kind)))
        if isinstance(value, _Word) and origin in (None, Literal):
            if not choices:
                return f"error parsing {place}: invalid {kind.__name__} {value!r}"
            option = place.partition("[")[0]
            return f"invalid choice {value!r} for argument '{option}'. Expected one of {choices}"
        if origin is Literal:
            return f"{place}: got {shorten(value)}; allowed: {', '.join(choices)}"
        needed = "values by name" if origin is dict else "a list" if origin else kind.__name__
        needed = "true or false" if kind is bool else needed
        if dataclasses.is_dataclass(kind):
            needed = "settings by name"
        elif origin is tuple and isinstance(value, list | tuple):
            needed = f"{len(choices)} values"
        return f"{place or 'the file'}: expected {needed}, got {shorten(value)}"


def _fill_in(text: str, place: str) -> str:
    """Fill in the home folder and variables of the environment, as a shell does."""

    def value_of(variable: re.Match[str]) -> str:
        name = variable[1] or variable[2]
        if name not in os.environ:
            raise InputError(f"{place}: {text}: the variable {name} of the environment is not set")
        return os.environ[name]

    return os.path.expanduser(re.sub(r"\$(?:\{(\w+)\}|(\w+))", value_of, text))  # noqa: PTH111 - may be a URL


@functools.cache
def _takes_null(kind: Any) -> frozenset[str]:
    """Name the fields of a dataclass of which None is a value."""
    hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
    return frozenset(name for name, hint in hints.items() if type(None) in typing.get_args(hint))


def _choices(kind: Any) -> tuple[Any, ...]:
    return (True, False) if kind is bool else typing.get_args(kind)


def require_least(options: object, **lowest: int) -> None:
    """Check that numbers of a program's options, where they are given, are no smaller."""
    for name, least in lowest.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"--{name}: got {value}; at least {least}")
