"""The official Cityscapes download, as samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.errors import InputError, and_more
from shards.prepare.plan import FolderPlan
from shards.prepare.scenes import SceneEncoding, SceneFiles, SceneFrame, Split, plan_scenes
from shards.scene import decode_label_ids
from shards.schema import LABEL_ENCODING
from shards.source import FolderSource, Source, ZipSource

_IMAGE_END = "_leftImg8bit.png"
_LABEL_END = "_gtFine_labelIds.png"
_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")  # no dot: webdataset cuts a key at the first one


def open_cityscapes(root: Path, setting: str = "--root") -> SceneFiles:
    """Find both halves of the download; an unpacked folder is preferred to the zip file beside it."""
    if not root.is_dir():
        raise InputError(f"{setting} {root}: is no folder; one that holds leftImg8bit/ and gtFine/ is needed")
    return SceneFiles(_open_half(root, "leftImg8bit", setting), _open_half(root, "gtFine", setting))


def list_frames(files: SceneFiles, split: Split) -> list[SceneFrame]:
    """Return the frames of one split, sorted by key."""
    images = _by_key(files.images, f"leftImg8bit/{split}/*/*{_IMAGE_END}", _IMAGE_END)
    labels = _by_key(files.labels, f"gtFine/{split}/*/*{_LABEL_END}", _LABEL_END)
    if not images and not labels:
        where = files.images.locate(f"leftImg8bit/{split}/*/*{_IMAGE_END}")
        raise InputError(f"split {split!r} is empty: no file {where}")
    halves = {"image": (files.images, images), "label": (files.labels, labels)}
    places = {"image": ("leftImg8bit", _IMAGE_END), "label": ("gtFine", _LABEL_END)}
    for half, other in (("image", "label"), ("label", "image")):
        (source, names), (folder, end) = halves[half], places[half]
        if missing := sorted(names.keys() - halves[other][1].keys()):
            name = names[missing[0]]
            place = name.removeprefix(folder).removesuffix(end)
            absent = halves[other][0].locate(f"{places[other][0]}{place}{places[other][1]}")
            raise InputError(f"{half} {source.locate(name)} has no {other} {absent}{and_more(missing)}")
    return [SceneFrame(key, images[key], labels[key]) for key in sorted(images)]


def plan_cityscapes(root: Path, *, splits: Sequence[Split] = ("train", "val"), **encoded: Any) -> FolderPlan:
    """Distribute the frames of `splits` over shards, in the order of their keys.

    `encoded` are fields of `SceneEncoding`.
    """
    files, encoding = open_cityscapes(root), SceneEncoding(**encoded)
    frames = {split: list_frames(files, split) for split in splits}
    shards, report = plan_scenes(files, frames, decode_label_ids, encoding, "cityscapes")
    options = {"splits": splits, **encoding.options(splits)}
    return FolderPlan("cityscapes", LABEL_ENCODING, encoding.image_encoding, options, shards, report)


def _open_half(root: Path, name: str, setting: str) -> Source:
    archive = f"{name}_trainvaltest.zip"
    if (root / name).is_dir():
        return FolderSource(root)
    if (root / archive).is_file():
        return ZipSource(root / archive)
    raise InputError(f"{setting} {root}: holds neither a folder {name}/ nor {archive}")


def _by_key(source: Source, pattern: str, end: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for name in source.match(pattern):
        key = name.rsplit("/", 1)[-1].removesuffix(end)
        if not _KEY.fullmatch(key):
            allowed = f"the part before {end} may hold only letters, digits, _ and -"
            raise InputError(f"{source.locate(name)}: {allowed}")
        if key in names:
            raise InputError(f"{source.locate(name)}: the same frame is also at {source.locate(names[key])}")
        names[key] = name
    return names
