"""Folders of pictures and label maps with a table of classes, as samples."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import numpy as np
from jaxtyping import UInt8

from shards.errors import InputError, and_more
from shards.prepare.plan import FolderPlan
from shards.prepare.scenes import SceneEncoding, SceneFiles, SceneFrame, Split, plan_scenes
from shards.prepare.segments import PICTURE_SUFFIXES, read_ids
from shards.schema import ClassTable
from shards.settings import build_config, read_settings
from shards.source import FolderSource, Source, list_near

DEPTH = 4
"""Folders are searched to this depth."""
LABEL_ENCODING = "train-id"
LONGEST_KEY = 80
Place = tuple[Path, str]
"""A folder, and what the names of its files end with besides what pictures and labels share."""


def plan_folders(
    images: Place,
    labels: Place,
    classes: ClassTable,
    encoding: SceneEncoding,
    *,
    split: Split = "train",
    name: str = "scenes",
) -> FolderPlan:
    """Pair pictures with their labels and distribute them over shards, in the order of their keys.

    Args:
        images: folder of pictures; empty ending: their suffix is left out.
        classes: names each number of the label files.
        split: of all pictures, unless they lie in folders train, val and test.
        name: the set's, for results.
    """
    files = SceneFiles(_open_folder(images[0], "--images"), _open_folder(labels[0], "--labels"))
    frames = _pair(files, images[1], labels[1], split)
    shards, report = plan_scenes(files, frames, partial(read_label, classes), encoding, "scenes")
    options: dict[str, Any] = {"name": name, "image_ending": images[1], "label_ending": labels[1]}
    options |= {"splits": list(frames), **asdict(classes), **encoding.options(list(frames))}
    lines = [str(classes), *report]
    return FolderPlan("scenes", LABEL_ENCODING, encoding.image_encoding, options, shards, lines)


def read_classes(path: Path) -> ClassTable:
    """Read a table of classes from a YAML file: the fields of `ClassTable`, colours as ids too.

    An InputError names what is missing, unknown, given twice or out of range.
    """
    where = f"--classes {path}"
    table = build_config(ClassTable, _pack(read_settings(path)), where)
    if empty := [entry.name for entry in table.classes if not entry.ids]:
        needed = "its numbers in the label files are needed"
        raise InputError(f"{where}: classes: {empty[0]}: has no ids; {needed}{and_more(empty)}")
    return table


def read_label(classes: ClassTable, content: bytes, where: str) -> UInt8[np.ndarray, "H W"]:
    """Decode a label map of numbers, or of colours as numbers, to train ids."""
    return classes.to_train_ids(read_ids(content, where), where)


def _pack(settings: Any, name: Any = "") -> Any:
    """Replace each colour [R, G, B] among ids by its number, R + 256 G + 65536 B, as a label holds it."""
    if isinstance(settings, Mapping):
        return {key: _pack(value, key) for key, value in settings.items()}
    if not isinstance(settings, list):
        return settings
    if name in ("ids", "void", "outlier"):
        return [_number(item) for item in settings]
    return [_pack(item) for item in settings]


def _number(item: Any) -> Any:
    is_color = isinstance(item, list) and len(item) == 3 and all(type(part) is int for part in item)
    if not is_color or not all(0 <= part <= 255 for part in item):
        return item  # a number, or what the table refuses
    return item[0] + 256 * item[1] + 65536 * item[2]


def _open_folder(path: Path, setting: str) -> FolderSource:
    if not path.is_dir():
        raise InputError(f"{setting} {path}: is no folder")
    return FolderSource(path)


def _pair(
    files: SceneFiles, image_ending: str, label_ending: str, split: Split
) -> dict[Split, list[SceneFrame]]:
    """Return the frames of each split, sorted by key."""
    images = _by_stem(files.images, image_ending, "--images")
    labels = _by_stem(files.labels, label_ending, "--labels")
    for half, other, (source, names), (_, others) in (
        ("picture", "label", (files.images, images), (files.labels, labels)),
        ("label", "picture", (files.labels, labels), (files.images, images)),
    ):
        if missing := sorted(names.keys() - others.keys()):
            name = source.locate(names[missing[0]])
            ends = "--image_ending and --label_ending say what follows the name that both share"
            raise InputError(f"{half} {name} has no {other}{and_more(missing)}; {ends}")
    tops = {stem.partition("/")[0] for stem in images if "/" in stem}
    is_split = all("/" in stem for stem in images) and tops <= {*get_args(Split)}
    frames: dict[Split, list[SceneFrame]] = defaultdict(list)
    keys: dict[str, str] = {}
    for stem, image in images.items():
        key = re.sub(r"[^A-Za-z0-9_-]", "_", stem)
        if len(key) > LONGEST_KEY:
            raise InputError(f"{files.images.locate(image)}: {LONGEST_KEY} characters at most are allowed")
        if key in keys:
            same = f"{files.images.locate(keys[key])} would share the key {key}"
            raise InputError(f"{files.images.locate(image)}: {same}; rename one")
        keys[key] = image
        place = next((top for top in get_args(Split) if is_split and stem.startswith(f"{top}/")), split)
        frames[place].append(SceneFrame(key, image, labels[stem]))
    return {place: sorted(frames[place]) for place in get_args(Split) if place in frames}


def _by_stem(source: Source, ending: str, setting: str) -> dict[str, str]:
    """Return the files of a source by what is left of their names without `ending`, or without a suffix."""
    found: dict[str, str] = {}
    for name in list_near(source, DEPTH):
        if not name.endswith(ending) or PurePosixPath(name).suffix.lower() not in PICTURE_SUFFIXES:
            continue
        stem = name.removesuffix(ending) if ending else str(PurePosixPath(name).with_suffix(""))
        if stem in found:
            raise InputError(f"{source.locate(name)}: {source.locate(found[stem])} has the same name")
        found[stem] = name
    if not found:
        wanted = f"*{ending}" if ending else "picture"
        raise InputError(f"{setting} {source.path}: holds no {wanted} down to {DEPTH} folders")
    return found
