"""Declared uses of test sets: what a user says of his own, and the guard of benchmarks.

Nothing is chosen on a benchmark, no checkpoint, no temperature, no end of a run. A user's own sets are
described in a few lines of YAML:

my_night_drives:              # folder, with images/ and labels_masks/ as the others
  name: Night drives          # in tables; default: the folder's name
  values: {0: normal, 7: anomaly, 255: void}    # default: 0, 1, 255
  use: validation             # benchmark (default): nothing may be chosen on it
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.sets.registry import EXTRA_SETS, TEST_SETS, Convention, official_places
from shards.errors import InputError, shorten
from shards.schema import ANOMALY, NORMAL, VOID
from shards.yaml_file import read_yaml

_UNREAD_BENCHMARKS = (
    "LostAndFound",
    "RoadObstacle21",
    "SegmentMeIfYouCan",
    "Fishyscapes",
    "bravo",
    "ACDC",
    "StreetHazards",
)
"""Folders of benchmarks that we do not read, or read under another name."""
_MEANINGS = {"normal": NORMAL, "anomaly": ANOMALY, "void": VOID}
_USES = ("benchmark", "validation")
_KEYS = ("name", "values", "use")


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def find_benchmark(path: Path) -> str | None:
    """Return the benchmark whose name `path`, the folder above it, or something directly in it bears.

    Names are compared without case and punctuation, as beginnings: `lost_and_found-000000.tar` is one of Lost
    and Found, `RoadAnomaly` is not found in `no-RoadAnomaly`.
    """
    names = [path.name, path.parent.name]
    if path.is_dir():
        names += sorted(entry.name for entry in path.iterdir())
    benchmarks = (*TEST_SETS, *EXTRA_SETS, *official_places(), *_UNREAD_BENCHMARKS)
    found = (b for name in map(_plain, names) for b in benchmarks if name.startswith(_plain(b)))
    return next(found, None)


def require_no_benchmark(place: str, setting: str) -> None:
    """Check that a validation set (path, pattern or URL) is none of the benchmarks, as far as names tell."""
    if benchmark := find_benchmark(Path(place)):
        told = f"{setting} {place}: {benchmark} is a benchmark, on which nothing may be chosen"
        raise InputError(f"{told}; validation takes Cityscapes val, or what jobs.paste_validation wrote")


def read_own_sets(path: Path, setting: str = "--sets") -> tuple[Convention, ...]:
    """Read the user's own sets from a YAML file."""
    entries = read_yaml(path, setting)
    if not isinstance(entries, dict) or not entries:
        raise InputError(
            f"{setting} {path}: expected folders and what is known of each, got {shorten(entries)}"
        )
    where = f"{setting} {path}"
    return tuple(_parse(str(name), entry or {}, f"{where}: {name}") for name, entry in entries.items())


def _parse(folder: str, entry: Any, where: str) -> Convention:
    if folder in TEST_SETS or folder in EXTRA_SETS:
        raise InputError(f"{where}: is the name of a known test set; rename the folder")
    if not isinstance(entry, dict) or not set(entry) <= set(_KEYS):
        given = ", ".join(map(str, entry)) if isinstance(entry, dict) else shorten(entry)
        raise InputError(f"{where}: got {given}; allowed keys are {', '.join(_KEYS)}")
    use = entry.get("use", "benchmark")
    if use not in _USES:
        raise InputError(f"{where}: use: got {shorten(use)}; allowed are {', '.join(_USES)}")
    values = entry.get("values", {0: "normal", 1: "anomaly", 255: "void"})
    is_mapping = isinstance(values, dict) and all(
        isinstance(v, int) and 0 <= v <= 255 and m in _MEANINGS for v, m in values.items()
    )
    if not is_mapping or not {"normal", "anomaly"} <= set(values.values()):
        expected = f"expected 0..255 to {', '.join(_MEANINGS)}, with at least one normal and one anomaly"
        raise InputError(f"{where}: values: got {shorten(values)}; {expected}")
    meanings = {int(value): _MEANINGS[meaning] for value, meaning in values.items()}
    return Convention(folder, str(entry.get("name", folder)), meanings, is_benchmark=use == "benchmark")
