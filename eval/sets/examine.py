"""Examination of official downloads, beside the counts that their authors give: `jobs.doctor dataset`.

Known counts: Cityscapes (Cordts et al., CVPR 2016), COCO 2017 (cocodataset.org) and the five anomaly sets as
the archive of the Mask2Anomaly authors holds them (counts, sizes and shares of pixels as measured there).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from eval.sets.frames import Frame, HiddenLabelsError, read_picture
from eval.sets.registry import TEST_SETS, TestSet, find_test_sets, read_image, read_target, require_same_size
from eval.submissions.bravo import BRAVO, NUM_IMAGES, SUBSETS
from eval.submissions.package import BENCHMARKS
from shards.errors import InputError, and_more
from shards.files import hash_file
from shards.picture import decode_picture
from shards.prepare.annotations import read_instances
from shards.prepare.cityscapes import list_frames, open_cityscapes
from shards.prepare.coco import find_picture
from shards.prepare.scenes import SceneFrame, Split
from shards.scene import decode_label_ids
from shards.schema import ANOMALY, CITYSCAPES, NORMAL, VOID_ID
from shards.source import list_visible, open_source

T = TypeVar("T")
Size = tuple[int, int]
"""(height, width)."""

CITYSCAPES_COUNTS: dict[Split, int] = {"train": 2975, "val": 500, "test": 1525}
CITYSCAPES_SIZE = (1024, 2048)
COCO_COUNTS = {"train2017": (118_287, 860_001), "val2017": (5_000, 36_781)}
"""Photographs and annotated instances."""
COCO_CATEGORIES = 80
SHARE_TOLERANCE = 0.002
"""The known shares have three digits."""


@dataclass
class Findings:
    """Report on one data set."""

    name: str
    lines: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    """From what is known; a part of a data set, or another edition, is no mistake."""
    problems: list[str] = field(default_factory=list)

    def compare(self, name: str, found: int | str, known: int | str | None) -> None:
        """Note a number, and where it differs from the known one, if there is one."""
        self.lines.append(f"{name}: {found}")
        if known not in (None, found):
            self.differences.append(f"{name}: {found}, known are {known}")

    @contextmanager
    def noting_problems(self) -> Iterator[None]:
        """Turn an InputError into a problem."""
        try:
            yield
        except InputError as error:
            self.problems.append(str(error))

    def read(
        self, items: Iterable[T], read: Callable[[T], np.ndarray], name: str = "", size: Size | None = None
    ) -> tuple[list[T], Int64[np.ndarray, "N 256"]]:
        """Return the pictures or labels that can be read, and how often each value occurs in each of them.

        Their sizes become line `name`, beside the known size.
        """
        readable, counts, sizes = [], [np.zeros((0, 256), np.int64)], Counter[Size]()
        for item in items:
            with self.noting_problems():
                pixels = read(item)
                readable.append(item)
                counts.append(np.bincount(pixels.ravel(), minlength=256)[None])
                sizes[pixels.shape[0], pixels.shape[1]] += 1
        if name:
            known = _render_sizes(Counter({size: len(readable)})) if size else None
            self.compare(name, _render_sizes(sizes), known)
        return readable, np.concatenate(counts)


def report_dataset(root: Path, limit: int, *, strict: bool) -> None:
    """Print the content of the downloads below `root`, and raise what is wrong with the first of them.

    Args:
        limit: pictures decoded of each part; 0: all. Names are compared for all in any case.
        strict: whether a difference from what is known is wrong, too.
    """
    found = list(examine_datasets(root, limit))
    if not found:
        sets = f"nor an anomaly set ({', '.join(TEST_SETS)}, or as published) is in it"
        raise InputError(f"{root}: neither Cityscapes (leftImg8bit and gtFine), COCO (annotations) {sets}")
    print(root)
    for findings in found:
        lines = [*findings.lines, *(f"differs: {line}" for line in findings.differences)]
        lines += [f"problem: {line}" for line in findings.problems]
        print("\n    ".join([f"\n  {findings.name}", *lines]))
    wrong = [line for findings in found for line in findings.problems]
    wrong += [line for findings in found for line in findings.differences if strict]
    if wrong:
        raise InputError(f"{root}: {wrong[0]}{and_more(wrong)}")
    print("\n  no problem found")


def examine_datasets(root: Path, limit: int = 0) -> Iterable[Findings]:
    """Look at every data set that is recognised below `root`, and decode `limit` pictures of each part."""
    if not root.is_dir():
        raise InputError(f"{root}: is no folder")
    if any((root / name).exists() for name in ("leftImg8bit", "leftImg8bit_trainvaltest.zip")):
        yield _examine_cityscapes(root, limit)
    for path in list_visible(root / "annotations", "instances_*.json"):
        yield _examine_coco(root, path, limit)
    try:
        for test_set in find_test_sets(root):
            yield _examine_test_set(test_set, limit)
    except HiddenLabelsError:
        pass
    except InputError as error:
        if "no test set in it" not in str(error):
            yield Findings("anomaly sets", problems=[str(error)])
    yield from _examine_unlabelled(root, limit)


def _examine_unlabelled(root: Path, limit: int) -> Iterable[Findings]:
    """Look at images that benchmarks want predicted and whose labels are not published."""
    for benchmark in BENCHMARKS.values():
        try:
            pictures = [p for p in benchmark.find_pictures(root, ()) if p.truth is None]
        except InputError as error:
            yield Findings(f"{benchmark.name}, images to predict", problems=[str(error)])
            continue
        parts = dict.fromkeys(picture.part for picture in pictures)
        for part in parts:
            findings = Findings(f"{part} ({benchmark.name}, images to predict, without labels here)")
            images = [picture.image for picture in pictures if picture.part == part]
            findings.lines.append(f"images: {len(images)}")
            findings.read(images[: limit or None], read_picture, "sizes")
            yield findings
        if benchmark is BRAVO and len(parts) == len(SUBSETS):
            findings = Findings("BRAVO, all subsets")
            findings.compare("images", len(pictures), NUM_IMAGES)
            yield findings


def _examine_cityscapes(root: Path, limit: int) -> Findings:
    findings = Findings("Cityscapes")

    def read(frame: SceneFrame) -> np.ndarray:
        picture = decode_picture(files.images.read(frame.image), files.images.locate(frame.image))
        where = files.labels.locate(frame.label)
        label = decode_label_ids(files.labels.read(frame.label), where)
        if picture.shape[:2] != label.shape:
            raise InputError(f"{where}: differs in size from its picture")
        return label

    with findings.noting_problems():
        files = open_cityscapes(root, "dataset")
        for split, known in CITYSCAPES_COUNTS.items():
            try:
                frames = list_frames(files, split)
            except InputError as error:
                (findings.lines if "is empty" in str(error) else findings.problems).append(str(error))
                continue
            findings.compare(f"{split} frames", len(frames), known)
            _, counts = findings.read(frames[: limit or None], read, f"{split} sizes", CITYSCAPES_SIZE)
            shares = counts.sum(0) / max(1, counts.sum())
            names = dict(enumerate(CITYSCAPES.names)) | {VOID_ID: "void"}
            line = ", ".join(f"{name} {shares[i]:.4f}" for i, name in names.items())
            findings.lines.append(f"{split} shares: {line}")
    return findings


def _examine_coco(root: Path, annotations: Path, limit: int) -> Findings:
    name = annotations.stem.removeprefix("instances_")
    findings = Findings(f"COCO {name}")
    try:
        content = read_instances(annotations)
    except InputError as error:
        findings.problems.append(str(error))
        return findings
    images = {image["file_name"]: (image["height"], image["width"]) for image in content.images}
    known_images, known_objects = COCO_COUNTS.get(name, (0, 0))
    findings.compare("photographs", len(content.images), known_images)
    findings.compare("objects", sum(map(len, content.annotations.values())), known_objects)
    findings.compare("categories", len(content.categories), COCO_CATEGORIES)
    with findings.noting_problems():
        source = open_source(root / name if (root / name).is_dir() else root / f"{name}.zip", "dataset")
        here = {name: files[0] for name in images if (files := find_picture(source, name))}
        if missing := sorted(images.keys() - here.keys()):
            findings.problems.append(f"{len(missing)} photographs are missing, such as {missing[0]}")

        def read(file: str) -> np.ndarray:
            data, where = source.read(here[file]), source.locate(here[file])
            picture = decode_picture(data, where)
            if picture.shape[:2] != images[file]:
                raise InputError(f"{where}: has another size than the annotations say")
            return picture

        findings.read([file for file in list(images)[: limit or None] if file in here], read)
    return findings


def _examine_test_set(test_set: TestSet, limit: int) -> Findings:
    findings = Findings(f"{test_set.convention.folder} ({test_set.name})")
    known = test_set.convention.known
    findings.compare("frames", len(test_set), known.num_frames if known else None)
    _note_static_version(findings, test_set)

    def read(frame: Frame) -> np.ndarray:
        image, target = read_image(frame), read_target(frame, test_set.convention)
        require_same_size(frame, image, target)
        return target

    size = known.size if known else None
    frames, counts = findings.read(test_set.frames[: limit or None], read, "sizes", size)
    shares = counts.sum(0) / max(1, counts.sum())
    published = (known.anomalous, known.normal) if known else (None, None)
    for name, value, expected in zip(("anomalous", "normal"), (ANOMALY, NORMAL), published, strict=True):
        findings.lines.append(f"{name} pixels: {shares[value]:.4f}")
        if expected is not None and abs(shares[value] - expected) > SHARE_TOLERANCE:
            findings.differences.append(f"{name} pixels: {shares[value]:.4f}, known are {expected}")
    if without := [frame.stem for frame, count in zip(frames, counts[:, ANOMALY], strict=True) if not count]:
        findings.lines.append(f"frames without anomaly: {len(without)} ({', '.join(without[:5])})")
    return findings


def _note_static_version(findings: Findings, test_set: TestSet) -> None:
    """Note the version of Fishyscapes Static, as its zip file proves or its folder claims."""
    overlay, known = test_set.frames[0].overlay, test_set.convention.known
    if overlay is None:
        if test_set.convention.folder == "fs_static":
            findings.lines.append("version: unknown, images come rendered; versions give other numbers")
        return
    archive = next((path for path in overlay.parents if path.suffix == ".zip"), None)
    if archive is None:
        findings.lines.append(f"version: {overlay.parent.name}, by the folder's name")
    else:
        findings.compare(f"MD5 of {archive.name}", hash_file(archive, "md5"), known.md5 if known else None)


def _render_sizes(sizes: Counter[Size]) -> str:
    return ", ".join(f"{width} x {height} ({count})" for (height, width), count in sizes.most_common(4))
