"""YAML files, read strictly: every key once, of bounded size, by the rules of YAML 1.2 for plain values.

YAML 1.1, which PyYAML follows, reads `no` as false, `1:30` as 90, `010` as 8 and `2026-11-28` as a date. Here
all of these are text, so that a setting that needs a number or a truth value refuses them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from shards.errors import InputError

MAX_CHARACTERS = 2**22
"""Of all values together, those that aliases repeat included: a bomb is 400 bytes and promises gigabytes."""
_TAG = "tag:yaml.org,2002:"
_PLAIN = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]{3})*|0x[0-9a-fA-F]+)", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "timestamp": None,
    "value": None,
}
"""Tag -> plain text that is such a value, and the characters that it begins with; None: nothing is."""


_DAMAGES = (yaml.YAMLError, ValueError, RecursionError, LookupError, AttributeError)
"""What PyYAML raises at text that is no YAML, is not UTF-8, or has a tag that its value does not fit."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name and kind
        first: [(tag, pattern) for tag, pattern in known if tag.removeprefix(_TAG) not in _PLAIN]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._characters = 0
        self._sizes: dict[int, int] = {}
        self._place: list[str] = []

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, and count what it holds."""
        is_alias, before = self.check_event(yaml.AliasEvent), self._characters
        self._place.append(index.value if isinstance(index, yaml.ScalarNode) else "")
        node = super().compose_node(parent, index)
        self._place.pop()
        if is_alias and id(node) not in self._sizes:
            raise InputError("an alias stands within what it repeats")
        own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        self._characters += self._sizes[id(node)] if is_alias else 1 + own
        self._sizes[id(node)] = self._characters - before
        if self._characters > MAX_CHARACTERS:
            raise InputError(f"its values have more than {MAX_CHARACTERS:,} characters, aliases written out")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping, and refuse a key that is given twice."""
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line, is_merge = key.start_mark.line + 1, key.tag == f"{_TAG}merge"
            value = key.value if is_merge else self.construct_object(key)  # 0 and 0x0 are one key
            if value in lines:
                name = ".".join(filter(None, [*self._place, key.value]))
                raise InputError(f"{name:.80}: given twice, in line {lines[value]} and in line {line}")
            lines[value] = line
        return node


for _name, _plain in _PLAIN.items():
    if _plain is not None:
        _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_plain[0]})$"), list(_plain[1]))


def read_yaml(path: Path, setting: str = "") -> Any:
    """Read a YAML file; an InputError, which `setting` opens, says that it is none, or why it is refused."""
    where = f"{setting} {path}".strip()
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror or error}") from None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except _DAMAGES as error:
        raise InputError(f"{where}: not a YAML file: {' '.join(str(error).split()):.300}") from None
