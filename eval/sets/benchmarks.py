"""Declared uses of test sets: the guard of benchmarks, and what a user says of sets of his own.

Nothing is chosen on a benchmark, no checkpoint, no temperature, no end of a run. A set is one by its name, by
the places that its files lead to, and by its frames, which `eval/sets/fingerprint.py` compares with known
ones and with those of the benchmarks beside it; docs/evaluation.md says what that catches. A user's own sets
are described in a few lines of YAML:

my_night_drives:              # folder, with images/ and labels_masks/ as the others
  name: Night drives          # in tables; default: the folder's name
  values: {0: normal, 7: anomaly, 255: void}    # default: 0, 1, 255
  use: validation             # benchmark (default): nothing may be chosen on it
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from eval.predict.predictions import CLOSED_SET, CachedSet
from eval.predict.predictions import read_target as read_cached_target
from eval.sets.fingerprint import find_original, known_originals, list_originals
from eval.sets.registry import (
    EXTRA_SETS,
    TEST_SETS,
    VALIDATION_SETS,
    Convention,
    TestSet,
    official_places,
    read_image,
    read_target,
)
from shards.errors import InputError, shorten
from shards.files import require_name, require_title
from shards.reader import ShardReader
from shards.scene import decode_scene
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
_SCENES = 32
"""Labelled scenes that are compared, evenly spread: a benchmark among them is there as a whole."""

_MEANINGS = {"normal": NORMAL, "anomaly": ANOMALY, "void": VOID}
_USES = ("benchmark", "validation")
_KEYS = ("name", "values", "use")


def _plain(name: str) -> str:
    """Return the letters and digits of a name, in lower case, by which names are compared."""
    return "".join(c for c in name.lower() if c.isalnum())


def find_benchmark(path: Path) -> str | None:
    """Return the benchmark whose name `path`, the folder above it, or something directly in it bears.

    Names are compared as beginnings: `lost_and_found-000000.tar` is one of Lost and Found, `RoadAnomaly` is
    not found in `no-RoadAnomaly`. Links are followed.
    """
    names = [name for place in (path, path.resolve()) for name in (place.name, place.parent.name)]
    if path.is_dir():
        names += sorted(entry.name for entry in path.iterdir())
    return _find_name(names)


def _find_name(names: Iterable[str]) -> str | None:
    benchmarks = (*TEST_SETS, *EXTRA_SETS, *official_places(), *_UNREAD_BENCHMARKS)
    found = (b for name in map(_plain, names) for b in benchmarks if name.startswith(_plain(b)))
    return next(found, None)


def require_no_benchmark(place: str, setting: str) -> None:
    """Check that a validation set (path, pattern or URL) is none of the benchmarks, as far as names tell."""
    if benchmark := find_benchmark(Path(place)):
        _refuse(f"{setting} {place}: {benchmark}")


def require_own_sets(test_sets: Sequence[TestSet], setting: str) -> None:
    """Check that no set on which something may be chosen is a benchmark, or holds a frame of one.

    Reads all frames of such sets, and of the benchmarks beside them.
    """
    validation = [each for each in test_sets if not each.convention.is_benchmark]
    for each in validation:
        if each.convention.folder not in VALIDATION_SETS and (benchmark := _find_name(_names_of(each))):
            _refuse(f"{setting}: {each.convention.folder}: {benchmark}")
    if not validation:
        return
    beside = [list_originals(each) for each in test_sets if each.convention.is_benchmark]
    originals = [*known_originals(), *(original for of_set in beside for original in of_set)]
    for each in validation:
        for frame in each.frames:
            target = read_target(frame, each.convention)
            if original := find_original(read_image(frame), target, originals):
                _refuse(f"{setting}: {frame.image}: shows what {original}, shows, which")


def _names_of(test_set: TestSet) -> Iterator[str]:
    """List the names of a set's folder, and of the folders that its files lead to outside of it."""
    folder = test_set.frames[0].image.parents[1]
    real = folder.resolve()
    yield from (folder.name, real.name)
    for frame in test_set.frames:
        for path in (frame.image.resolve(), frame.mask.resolve()):
            if not path.is_relative_to(real):
                yield from (parent.name for parent in path.parents[:5])


def require_no_benchmark_scenes(reader: ShardReader, setting: str) -> None:
    """Check that labelled scenes, on which something is chosen or calibrated, show no benchmark's images."""
    for index in np.unique(np.linspace(0, len(reader) - 1, _SCENES).round().astype(int)).tolist():
        scene = decode_scene(reader, index)
        nothing = np.full_like(scene.label, NORMAL)
        if original := find_original(scene.image, nothing, known_originals()):
            _refuse(f"{setting}: {reader.keys[index]}: shows what {original}, shows, which")


def _refuse(what: str) -> NoReturn:
    told = f"{what} is a benchmark, on which nothing may be chosen"
    raise InputError(f"{told}; validation takes Cityscapes val, or what jobs.paste_validation wrote")


def read_own_sets(path: Path) -> tuple[Convention, ...]:
    """Read the user's own sets from a YAML file; their folders and titles are names, and nobody else's."""
    where = f"--sets {path}"
    entries = read_yaml(path, "--sets")
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{where}: expected folders and what is known of each, got {shorten(entries)}")
    found: list[Convention] = []
    taken = _known_names()
    for name, entry in entries.items():
        convention = _parse(str(name), {} if entry is None else entry, f"{where}: {name!s:.120}")
        for given in (convention.folder, convention.name):
            if _plain(given) in taken:
                raise InputError(f"{where}: {name}: {given} is the name of {taken[_plain(given)]}")
        taken |= dict.fromkeys(map(_plain, (convention.folder, convention.name)), f"set {name} of this file")
        found.append(convention)
    return tuple(found)


def _known_names() -> dict[str, str]:
    """Return the names that folders, files and columns have already, as they are compared, and whose."""
    names = {CLOSED_SET: "Cityscapes val", "mIoU": "a column of the tables"}
    names |= dict.fromkeys(official_places(), "the download of a known test set")
    for row in (TEST_SETS | EXTRA_SETS | VALIDATION_SETS).values():
        names |= dict.fromkeys((row.folder, row.name, row.smiyc), "a known test set")
    return {_plain(name): whose for name, whose in names.items() if name}


def _parse(folder: str, entry: Any, where: str) -> Convention:
    require_name(folder, where)
    if folder.endswith((".npz", ".")):
        raise InputError(f"{where}: the name of a folder that ends neither in .npz nor in a dot is needed")
    if not isinstance(entry, dict) or not set(entry) <= set(_KEYS):
        given = ", ".join(map(str, entry)) if isinstance(entry, dict) else shorten(entry)
        raise InputError(f"{where}: got {given:.200}; allowed keys are {', '.join(_KEYS)}")
    title = entry.get("name", folder)
    require_title(title, f"{where}: name")
    use = entry.get("use", "benchmark")
    if use not in _USES:
        raise InputError(f"{where}: use: got {shorten(use)}; allowed are {', '.join(_USES)}")
    values = entry.get("values", {0: "normal", 1: "anomaly", 255: "void"})
    is_mapping = isinstance(values, dict) and all(
        type(v) is int and 0 <= v <= 255 and isinstance(m, str) and m in _MEANINGS for v, m in values.items()
    )
    if not is_mapping or not {"normal", "anomaly"} <= set(values.values()):
        expected = f"expected 0..255 to {', '.join(_MEANINGS)}, with at least one normal and one anomaly"
        raise InputError(f"{where}: values: got {shorten(values)}; {expected}")
    meanings = {value: _MEANINGS[meaning] for value, meaning in values.items()}
    return Convention(folder, title, meanings, is_benchmark=use == "benchmark")


def require_selection_split(cache: Path, cached: CachedSet, sets: Sequence[CachedSet]) -> None:
    """Refuse a benchmark, and a set with masks of one of `sets`: no temperature may be chosen on it."""
    masks = _hash_masks(cache, cached)
    for other in sets:
        if other.is_benchmark and not cached.is_benchmark and (shared := _hash_masks(cache, other) & masks):
            common = f"shares {len(shared)} masks with {other.name}, a benchmark"
            raise InputError(f"--validation {cached.folder}: {common}, on which nothing may be chosen")
    if cached.is_benchmark:
        raise InputError(
            f"--validation {cached.folder}: is a benchmark; what is chosen on it must not be reported on it. "
            f"Choose on a validation split, or see each benchmark's own best, so labelled, by --oracle True"
        )


def _hash_masks(cache: Path, cached: CachedSet) -> set[bytes]:
    targets = (read_cached_target(cache / cached.folder, position) for position in range(len(cached.stems)))
    return {hashlib.sha256(target.tobytes()).digest() for target in targets if (target == ANOMALY).any()}
