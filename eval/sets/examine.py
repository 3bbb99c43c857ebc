"""What `jobs.doctor dataset` finds in official downloads, beside what their authors say is in them.

Known counts: Cityscapes (Cordts et al., CVPR 2016), COCO 2017 (cocodataset.org) and the five anomaly sets as
the archive of the Mask2Anomaly authors holds them (counts, sizes and shares of pixels as measured there).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eval.sets.frames import HiddenLabelsError, read_picture
from eval.sets.registry import TEST_SETS, TestSet, find_test_sets, read_image, read_target, require_same_size
from eval.submissions import bravo
from eval.submissions.benchmark import BENCHMARKS
from shards.errors import InputError
from shards.picture import picture_size
from shards.prepare.cityscapes import (
    CityscapesFiles,
    Frame,
    Split,
    decode_label,
    list_frames,
    open_cityscapes,
)
from shards.schema import ANOMALY, CITYSCAPES_CLASSES, NORMAL
from shards.source import decode_bgr, open_source

CITYSCAPES_COUNTS: dict[Split, int] = {"train": 2975, "val": 500, "test": 1525}
CITYSCAPES_SIZE = (1024, 2048)
COCO_COUNTS = {"train2017": (118_287, 860_001), "val2017": (5_000, 36_781)}
"""Photographs and annotated instances."""
COCO_CATEGORIES = 80


STATIC_MD5 = {
    "fs_val_v1.zip": "79fb134419c83f2f20b575955efa9d20",
    "fs_val_v2.zip": "5088c63497927200d935c41d54b1cb23",
    "fs_val_v3.zip": "0dc11db9e57088c5bb18de4c55a53f3a",
}
"""MD5 of the versions of Fishyscapes Static, as pytorch-ood checks them."""
BRAVO_IMAGES = 3901
"""Of all subsets: half of the 7802 files that BRAVO's README counts in a submission."""
SHARE_TOLERANCE = 0.002
"""The known shares have three digits."""


@dataclass
class Findings:
    """What was found in one data set."""

    name: str
    lines: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    """From what is known; a part of a data set, or another edition, is no mistake."""
    problems: list[str] = field(default_factory=list)

    def compare(self, what: str, found: int | float | str, known: int | float | str) -> None:
        """Note a count, and where it differs from the known one."""
        self.lines.append(f"{what}: {found}")
        if found != known:
            self.differences.append(f"{what}: {found}, known are {known}")

    def compare_sizes(self, what: str, found: Counter[tuple[int, int]], known: tuple[int, int]) -> None:
        """Note (height, width) of pictures, and that they are not all the known one."""
        self.compare(what, _told(found), _told(Counter({known: sum(found.values())})))


def report_dataset(root: Path, limit: int, *, strict: bool) -> None:
    """Print what is in the downloads below `root`.

    Raises:
        InputError: none was recognised, or one is damaged; with `strict` also one that differs.
    """
    found = list(examine_datasets(root, limit))
    if not found:
        raise InputError(
            f"{root}: neither Cityscapes (leftImg8bit and gtFine), COCO (annotations) nor an anomaly set "
            f"({', '.join(TEST_SETS)}, or as published) is in it"
        )
    print(root)
    for findings in found:
        print(f"\n  {findings.name}")
        for kind, lines in (("", findings.lines), ("differs: ", findings.differences)):
            print("".join(f"    {kind}{line}\n" for line in lines), end="")
        print("".join(f"    problem: {line}\n" for line in findings.problems), end="")
    wrong = [line for findings in found for line in findings.problems]
    wrong += [line for findings in found for line in findings.differences if strict]
    if wrong:
        raise InputError(f"{root}: {wrong[0]}" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))
    print("\n  no problem found")


def examine_datasets(root: Path, limit: int = 0) -> Iterable[Findings]:
    """Look at every data set that is recognised below `root`.

    Args:
        limit: decode so many pictures of each part; 0: all. Names are compared for all in any case.
    """
    if not root.is_dir():
        raise InputError(f"{root}: is no folder")
    if any((root / name).exists() for name in ("leftImg8bit", "leftImg8bit_trainvaltest.zip")):
        yield examine_cityscapes(root, limit)
    annotations = sorted((root / "annotations").glob("instances_*.json")) if root.is_dir() else []
    for path in annotations:
        yield examine_coco(root, path, limit)
    yield from _examine_test_sets(root, limit)
    yield from examine_unlabelled(root, limit)


def _examine_test_sets(root: Path, limit: int) -> Iterable[Findings]:
    try:
        sets = find_test_sets(root)
    except HiddenLabelsError:
        return
    except InputError as error:
        if "no test set in it" not in str(error):
            yield Findings("anomaly sets", problems=[str(error)])
        return
    for test_set in sets:
        yield examine_test_set(test_set, limit)


def examine_unlabelled(root: Path, limit: int = 0) -> Iterable[Findings]:
    """Look at images that benchmarks want predicted and whose labels are not published."""
    for benchmark in BENCHMARKS.values():
        try:
            pictures = [p for p in benchmark.find_pictures(root, ()) if p.truth is None]
        except InputError as error:
            yield Findings(f"{benchmark.name}, images to predict", problems=[str(error)])
            continue
        parts = Counter(picture.part for picture in pictures)
        for part, count in parts.items():
            findings = Findings(f"{part} ({benchmark.name}, images to predict, without labels here)")
            findings.lines.append(f"images: {count}")
            sizes: Counter[tuple[int, int]] = Counter()
            for picture in [p for p in pictures if p.part == part][: limit or None]:
                try:
                    height, width = read_picture(picture.image).shape[:2]
                except InputError as error:
                    findings.problems.append(str(error))
                    continue
                sizes[height, width] += 1
            findings.lines.append(f"sizes: {_told(sizes)}")
            yield findings
        if benchmark.name == bravo.NAME and len(parts) == len(bravo.SUBSETS):
            findings = Findings("BRAVO, all subsets")
            findings.compare("images", len(pictures), BRAVO_IMAGES)
            yield findings


def examine_cityscapes(root: Path, limit: int = 0) -> Findings:
    """Look at Cityscapes: frames per split, sizes, label ids, class shares."""
    findings = Findings("Cityscapes")
    try:
        files = open_cityscapes(root, "dataset")
    except InputError as error:
        findings.problems.append(str(error))
        return findings
    for split, known in CITYSCAPES_COUNTS.items():
        try:
            frames = list_frames(files, split)
        except InputError as error:
            (findings.lines if "is empty" in str(error) else findings.problems).append(str(error))
            continue
        findings.compare(f"{split} frames", len(frames), known)
        sizes: Counter[tuple[int, int]] = Counter()
        pixels = np.zeros(256, np.int64)
        for frame in frames[: limit or None]:
            try:
                label = _decode_frame(files, frame)
            except InputError as error:
                findings.problems.append(str(error))
                continue
            sizes[(label.shape[0], label.shape[1])] += 1
            pixels += np.bincount(label.ravel(), minlength=256)
        findings.compare_sizes(f"{split} sizes", sizes, CITYSCAPES_SIZE)
        findings.lines.append(f"{split} shares: {_class_shares(pixels)}")
    return findings


def examine_coco(root: Path, annotations: Path, limit: int = 0) -> Findings:
    """Look at one COCO annotation file and the pictures it names."""
    name = annotations.stem.removeprefix("instances_")
    findings = Findings(f"COCO {name}")
    known_images, known_objects = COCO_COUNTS.get(name, (0, 0))
    try:
        content = json.loads(annotations.read_bytes())
        images, objects = content["images"], content["annotations"]
        categories = content["categories"]
        entries = {str(entry["file_name"]): (int(entry["height"]), int(entry["width"])) for entry in images}
    except (ValueError, KeyError, TypeError) as error:
        findings.problems.append(f"{annotations}: is no COCO annotation file ({error!r})")
        return findings
    findings.compare("photographs", len(images), known_images)
    findings.compare("objects", len(objects), known_objects)
    findings.compare("categories", len(categories), COCO_CATEGORIES)
    place = root / name if (root / name).is_dir() else root / f"{name}.zip"
    try:
        source = open_source(place, "dataset")
    except InputError as error:
        findings.problems.append(str(error))
        return findings
    here = {path.rpartition("/")[2]: path for path in [*source.match("*"), *source.match("*/*")]}
    if missing := sorted(entries.keys() - here.keys()):
        findings.problems.append(f"{len(missing)} photographs are missing, such as {missing[0]}")
    for file, size in list(entries.items())[: limit or None]:
        if file not in here:
            continue
        where = source.locate(here[file])
        try:
            data = source.read(here[file])
            decode_bgr(data, where)
        except InputError as error:
            findings.problems.append(str(error))
            continue
        if picture_size(data) not in (size, None):
            findings.problems.append(f"{where}: has another size than the annotations say")
    return findings


def examine_test_set(test_set: TestSet, limit: int = 0) -> Findings:
    """Look at one anomaly set: frames, sizes, label values, share of anomalous and normal pixels."""
    findings = Findings(f"{test_set.convention.folder} ({test_set.name})")
    known = test_set.convention.known
    if known is None:
        findings.lines.append(f"frames: {len(test_set)}")
    else:
        findings.compare("frames", len(test_set), known.num_frames)
    _tell_static_version(findings, test_set)
    sizes: Counter[tuple[int, int]] = Counter()
    pixels = np.zeros(256, np.int64)
    without: list[str] = []
    for frame in test_set.frames[: limit or None]:
        try:
            image, target = read_image(frame), read_target(frame, test_set.convention)
            require_same_size(frame, image, target)
        except InputError as error:
            findings.problems.append(str(error))
            continue
        counts = np.bincount(target.ravel(), minlength=256)
        pixels += counts
        sizes[(target.shape[0], target.shape[1])] += 1
        if not counts[ANOMALY]:
            without.append(frame.stem)
    if known is None:
        findings.lines.append(f"sizes: {_told(sizes)}")
    else:
        findings.compare_sizes("sizes", sizes, known.size)
    total = max(1, int(pixels.sum()))
    shares = (known.anomalous, known.normal) if known else (None, None)
    for name, value, expected in zip(("anomalous", "normal"), (ANOMALY, NORMAL), shares, strict=True):
        share = float(pixels[value]) / total
        findings.lines.append(f"{name} pixels: {share:.4f}")
        if expected is not None and abs(share - expected) > SHARE_TOLERANCE:
            findings.differences.append(f"{name} pixels: {share:.4f}, known are {expected}")
    if without:
        findings.lines.append(f"frames without anomaly: {len(without)} ({', '.join(without[:5])})")
    return findings


def _tell_static_version(findings: Findings, test_set: TestSet) -> None:
    """Say which version of Fishyscapes Static lies there, as its zip file proves or its folder claims."""
    overlay = test_set.frames[0].overlay
    if overlay is None:
        if test_set.convention.folder == "fs_static":
            findings.lines.append("version: unknown, images come rendered; versions give other numbers")
        return
    archive = next((path for path in overlay.parents if path.suffix == ".zip"), None)
    if archive is None:
        findings.lines.append(f"version: {overlay.parent.name}, by the folder's name")
        return
    with archive.open("rb") as file:
        digest = hashlib.md5(usedforsecurity=False)
        while block := file.read(1 << 20):
            digest.update(block)
    findings.compare(f"MD5 of {archive.name}", digest.hexdigest(), STATIC_MD5[archive.name])


def _decode_frame(files: CityscapesFiles, frame: Frame) -> np.ndarray:
    picture = decode_bgr(files.images.read(frame.image), files.images.locate(frame.image))
    where = files.labels.locate(frame.label)
    label = decode_label(files.labels.read(frame.label), where)
    if picture.shape[:2] != label.shape:
        raise InputError(f"{where}: differs in size from its picture")
    return label


def _told(sizes: Counter[tuple[int, int]]) -> str:
    return ", ".join(f"{width} x {height} ({count})" for (height, width), count in sizes.most_common(4))


def _class_shares(pixels: np.ndarray) -> str:
    total = max(1, int(pixels.sum()))
    shares = [f"{entry.name} {pixels[i] / total:.4f}" for i, entry in enumerate(CITYSCAPES_CLASSES)]
    return ", ".join([*shares, f"void {pixels[255] / total:.4f}"])
