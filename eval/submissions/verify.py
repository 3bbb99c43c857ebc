"""Verification of packages: names, sizes, types, values, and the right way up of scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from eval.metrics.curve import ImageScores, exact_curve
from eval.sets.frames import image_size
from eval.sets.registry import read_target
from eval.submissions.benchmark import Benchmark, BenchmarkImage, Stored
from eval.submissions.package import BENCHMARKS, DESCRIPTION_NAME, Description, Package, open_package
from shards.errors import InputError
from shards.files import from_json
from shards.schema import ANOMALY, NORMAL

MANY_TIES = 0.01
"""Share of an image's pixels on one value from which on a warning says so."""
_MOST_PIXELS = 200_000
"""Pixels of a labelled image that are ranked to learn which way up scores are."""


@dataclass
class PackageFindings:
    """Report on a package."""

    benchmark: str
    method: str
    counts: Counter[str] = field(default_factory=Counter)
    """Images by part."""
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def verify_package(
    path: Path, find_pictures: Callable[[Benchmark], Sequence[BenchmarkImage]] | None = None
) -> PackageFindings:
    """Read every file of a package; an InputError says that it cannot be opened, or is none.

    Args:
        path: its folder, or a zip or tar of the folder's content.
        find_pictures: which images it should be of; None: those that its `submission.json` names, if it has
            one. Images of parts of which the package has none are not missed.
    """
    with open_package(path) as package:
        benchmark, found = _recognise(package)
        pictures = find_pictures(benchmark) if find_pictures else None
        by_key = {picture.key: picture for picture in pictures or ()}
        methods = sorted({method for _, method in found.values()})
        findings = PackageFindings(benchmark.name, ", ".join(methods))
        if len(methods) > 1:
            findings.problems.append(f"holds several methods ({', '.join(methods)}); one package has one")
        keys = {key for key, _ in found.values()}
        sizes = _expected_sizes(package, pictures, findings, keys)
        examined = _Examined()
        for key in sorted(keys):
            names = benchmark.name_files(key, methods[0])
            if missing := [name for name in names if name not in package.names]:
                findings.problems.append(f"{missing[0]}: is missing")
                continue
            folder = key.split("/")[0] if "/" in key else "images"
            findings.counts[by_key[key].part if key in by_key else folder] += 1
            try:
                stored = benchmark.decode([package.read(name) for name in names], names)
            except InputError as error:
                findings.problems.append(str(error))
            else:
                findings.problems += examine_files(stored, names, sizes.get(key))
                examined.add(stored, by_key.get(key))
    findings.warnings += examined.warnings()
    for part, count in findings.counts.items():
        known = benchmark.known_counts.get(part)
        findings.lines.append(f"{part}: {count} images" + (f", known are {known}" if known else ""))
    return findings


def examine_files(stored: Stored, names: Sequence[str], size: tuple[int, int] | None) -> list[str]:
    """Say what is wrong with an image's decoded files; `size` is (height, width), where it is known."""
    values, problems = stored.anomaly, []
    for array, name in zip((values, stored.classes), names, strict=False):
        if array is not None and array.shape != (size or values.shape):
            (rows, columns), (height, width) = array.shape, size or values.shape
            problems.append(f"{name}: is {columns} x {rows}, its image {width} x {height}")
    if not np.isfinite(values).all():
        problems.append(f"{names[0]}: holds {'NaN' if np.isnan(values).any() else 'infinity'}")
    elif values.size and values.min() == values.max():
        problems.append(f"{names[0]}: the same value {values.min()} at every pixel")
    return problems


def _recognise(package: Package) -> tuple[Benchmark, dict[str, tuple[str, str]]]:
    """Return the benchmark with the most files, and key and method of each; no other file may be there."""
    names = package.names - {DESCRIPTION_NAME}
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for benchmark in BENCHMARKS.values():
        read = ((name, benchmark.read_name(name)) for name in names)
        found[benchmark.name] = {name: what for name, what in read if what is not None}
    best = max(found, key=lambda name: len(found[name]))
    if not found[best]:
        raise InputError(f"{package.path}: no file of a package in it{_hint(names)}")
    if strange := sorted(names - found[best].keys()):
        what = f"{len(strange)} files that {best} does not expect, such as {strange[0]}"
        raise InputError(f"{package.path}: {what}")
    return BENCHMARKS[best], found[best]


def _hint(names: Iterable[str]) -> str:
    """Say where in an archive the package begins, if it lies in a folder of its own."""
    for name in sorted(names):
        parts = name.split("/")
        for depth in range(1, len(parts)):
            inner = "/".join(parts[depth:])
            if any(benchmark.read_name(inner) for benchmark in BENCHMARKS.values()):
                return f"; its files lie in {'/'.join(parts[:depth])}/, and must lie at the top"
    return f"; such as {min(names)}" if names else "; it is empty"


def _expected_sizes(
    package: Package, pictures: Sequence[BenchmarkImage] | None, findings: PackageFindings, keys: set[str]
) -> dict[str, tuple[int, int]]:
    """Return the sizes that images should have, by key, and note keys that are missing or too many."""
    if pictures is not None:
        present = {picture.part for picture in pictures if picture.key in keys}
        if absent := sorted({picture.part for picture in pictures} - present):
            findings.lines.append(f"not in it: {', '.join(absent)}")
        sizes = {picture.key: image_size(picture.image) for picture in pictures if picture.part in present}
    elif DESCRIPTION_NAME in package.names:
        where = f"{package.path}: {DESCRIPTION_NAME}"
        described = from_json(Description, package.read(DESCRIPTION_NAME), where)
        sizes = described.frames
        findings.lines.append(f"model {described.model}, score {described.score}")
    else:
        findings.lines.append("names and sizes of images are not compared: no --datasets, no submission.json")
        return {}
    for what, wrong in (("missing", sizes.keys() - keys), ("of no image", keys - sizes.keys())):
        if wrong:
            findings.problems.append(f"{len(wrong)} of {len(sizes)} images {what}, such as {min(wrong)}")
    return sizes


@dataclass
class _Examined:
    """Measures per image, from which warnings about all images follow."""

    ties: list[float] = field(default_factory=list)
    heights: list[float] = field(default_factory=list)
    """Places of the median between smallest (0) and largest score (1)."""
    aurocs: list[float] = field(default_factory=list)

    def add(self, stored: Stored, picture: BenchmarkImage | None) -> None:
        values = stored.anomaly
        if not np.isfinite(values).all():
            return
        self.ties.append(largest_tie(values))
        low, middle, high = (float(v) for v in np.quantile(values.astype(np.float64), (0, 0.5, 1)))
        self.heights.append((middle - low) / (high - low) if high > low else 0.0)
        if picture is not None and picture.truth is not None:
            target = read_target(*picture.truth)
            if target.shape == values.shape and (area := _auroc(values, target)) is not None:
                self.aurocs.append(area)

    def warnings(self) -> list[str]:
        found = []
        if self.ties and max(self.ties) > MANY_TIES:
            share = 100 * sum(self.ties) / len(self.ties)
            found.append(
                f"ties: {share:.1f} % of an image's pixels have one and the same value on average, "
                f"{100 * max(self.ties):.1f} % at most; FPR95 says little where its threshold falls there"
            )
        if self.aurocs and float(np.mean(self.aurocs)) < 0.5:
            area = f"over {len(self.aurocs)} labelled images AUROC is {np.mean(self.aurocs):.2f}"
            rule = "anomalous pixels must have the higher score (or lower confidence)"
            found.append(f"upside down: {area}; {rule}")
        elif not self.aurocs and self.heights and float(np.median(self.heights)) > 0.5:
            found.append(
                "upside down? most pixels score nearer to the largest than to the smallest score of their "
                "image, while most are normal; no labels to tell"
            )
        return found


def _auroc(values: np.ndarray, target: np.ndarray) -> float | None:
    """Return the area under ROC of an image, from every n-th scored pixel; None: one class only."""
    scored = (target == NORMAL) | (target == ANOMALY)
    anomalous, kept = target[scored] == ANOMALY, values[scored].astype(np.float32)
    step = max(1, kept.size // _MOST_PIXELS)
    positive = kept[anomalous][:: max(1, min(step, int(anomalous.sum()) // 1000))]
    negative = kept[~anomalous][::step]
    if not positive.size or not negative.size:
        return None
    return exact_curve([ImageScores(np.sort(positive), np.sort(negative))]).metrics().auroc


def largest_tie(values: Shaped[np.ndarray, "H W"]) -> float:
    """Return the share of pixels that have the most frequent value."""
    counts = np.unique(values, return_counts=True)[1]
    return float(counts.max()) / values.size
