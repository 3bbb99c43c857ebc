"""A user's own test sets, described in a few lines of YAML.

my_night_drives:              # folder, with images/ and labels_masks/ as the others
  name: Night drives          # in tables; default: the folder's name
  values: {0: normal, 7: anomaly, 255: void}    # default: 0, 1, 255
  use: validation             # benchmark (default): nothing may be chosen on it
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from eval.sets.registry import EXTRA_SETS, TEST_SETS, Convention
from shards.errors import InputError
from shards.schema import ANOMALY, NORMAL, VOID

_MEANINGS = {"normal": NORMAL, "anomaly": ANOMALY, "void": VOID}
_USES = ("benchmark", "validation")
_KEYS = ("name", "values", "use")


def read_own_sets(path: Path, setting: str = "--sets") -> tuple[Convention, ...]:
    """Read the descriptions of a YAML file.

    Raises:
        InputError: the file is missing or no such YAML, or a key, value or folder's name is not allowed.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{setting} {path}: cannot be read as YAML: {reason}") from None
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{setting} {path}: expected folders and what is known of each, got {entries!r}")
    return tuple(
        _parse(str(folder), entry or {}, f"{setting} {path}: {folder}") for folder, entry in entries.items()
    )


def _parse(folder: str, entry: Any, where: str) -> Convention:
    if folder in TEST_SETS or folder in EXTRA_SETS:
        raise InputError(f"{where}: is the name of a known test set; rename the folder")
    if not isinstance(entry, dict) or not set(entry) <= set(_KEYS):
        given = ", ".join(map(str, entry)) if isinstance(entry, dict) else repr(entry)
        raise InputError(f"{where}: got {given}; allowed keys are {', '.join(_KEYS)}")
    use = entry.get("use", "benchmark")
    if use not in _USES:
        raise InputError(f"{where}: use: got {use!r}; allowed are {', '.join(_USES)}")
    values = entry.get("values", {0: "normal", 1: "anomaly", 255: "void"})
    is_mapping = isinstance(values, dict) and all(
        isinstance(v, int) and 0 <= v <= 255 and m in _MEANINGS for v, m in values.items()
    )
    if not is_mapping or not {"normal", "anomaly"} <= set(values.values()):
        raise InputError(
            f"{where}: values: got {values!r}; expected 0..255 to {', '.join(_MEANINGS)}, with at least one "
            f"normal and one anomaly"
        )
    meanings = {int(value): _MEANINGS[meaning] for value, meaning in values.items()}
    return Convention(folder, str(entry.get("name", folder)), meanings, is_benchmark=use == "benchmark")
