"""A YAML file and dotted options become a configuration dataclass, and a dataclass becomes a YAML file."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from jobs.command_line import parse_options
from shards.errors import InputError
from shards.staging import write_atomically

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
    for name, value in flat_settings(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name}: got {value}; a finite number is needed")
    return config


def read_config(config_type: type[Config], path: Path) -> Config:
    """Read a YAML file into `config_type`; settings that the file leaves out keep their defaults."""
    if not path.is_file():
        raise InputError(f"{path}: no such configuration file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    try:
        return _build(config_type, content or {}, "")
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


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
