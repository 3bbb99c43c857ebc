"""Packages of a model's predictions, written image by image, and reports on packages."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from eval.predict.strips import PixelPrediction, plain_scores, predict_pixels
from eval.predict.windows import ModelSource
from eval.sets.frames import image_size, read_picture
from eval.submissions.benchmark import Benchmark, BenchmarkImage
from eval.submissions.bravo import BRAVO, OF_EVIDENCE
from eval.submissions.package import BENCHMARKS, DESCRIPTION_NAME, Description
from eval.submissions.smiyc import SMIYC, require_h5py
from eval.submissions.verify import PackageFindings, examine_files, verify_package
from shards.errors import InputError, and_more
from shards.files import read_json, remove_partials, to_json, write_atomically
from shards.output import claimed, make_folder, publish, require_free
from shards.progress import Progress

logger = logging.getLogger(__name__)

Answer = Callable[[UInt8[np.ndarray, "H W 3"]], PixelPrediction]
"""An image to its one score, as `eval.predict.scores` defines it, and predicted classes."""


def write_predictions(
    open_model: Callable[[BenchmarkImage], ModelSource],
    out: Path,
    *,
    benchmark: str,
    datasets: Path,
    parts: Sequence[str],
    score: str,
    method: str,
) -> str:
    """Predict the images of a benchmark and write its package; return what is to be printed.

    Args:
        open_model: called with the first picture, when everything else was checked; built for the score.
        out: new or empty folder.
        parts: parts of the benchmark; none named: all that are there.
    """
    require_free(out)
    _require_method(method)
    if benchmark == SMIYC.name:
        require_h5py()
    pictures = BENCHMARKS[benchmark].choose_pictures(datasets, parts)
    with claimed(out):
        model = open_model(pictures[0])
        predictor = model.load()
        if benchmark == BRAVO.name and predictor.has_evidence and score in OF_EVIDENCE:
            asked, score = score, OF_EVIDENCE[score]
            logger.info("--score %s: a mask model's probability is a share of its evidence: %s", asked, score)
        description = Description(
            benchmark=benchmark,
            method=method,
            model=model.name,
            fingerprint=model.fingerprint,
            score=score,
            frames={picture.key: image_size(picture.image) for picture in pictures},
        )
        predict = partial(predict_pixels, names=[score], compute=plain_scores)
        findings = write_package(out, description, pictures, lambda image: predict(predictor(image)))
    return _render(out, findings)


def _require_method(method: str) -> None:
    """Check that a method's name can be the name of a folder anywhere."""
    if not re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*", method):
        allowed = "a method's name has letters, digits, _ - + and dots only"
        raise InputError(f"--method: got {method!r}; {allowed}")


def unfinished_folder(folder: Path) -> Path:
    """Return where a package grows until it is complete: beside `folder`, so that a rename finishes it."""
    folder = folder.absolute()
    return folder.parent / f".{folder.name}.unfinished"


def write_package(
    folder: Path, description: Description, pictures: Sequence[BenchmarkImage], answer: Answer
) -> PackageFindings:
    """Predict every image, read everything back, and rename the folder to its name.

    Images that an interrupted call with the same description has finished are kept, where they read well. An
    answer that is not finite or does not fit is an InputError.

    Args:
        folder: new or empty.
        pictures: those whose sizes `description` names.
    """
    require_free(folder)
    growing = unfinished_folder(folder)
    _begin(growing, description)
    benchmark = BENCHMARKS[description.benchmark]
    kept = 0
    for picture in Progress(pictures, desc=description.benchmark, unit="image"):
        names = benchmark.name_files(picture.key, description.method)
        if _is_finished(growing, benchmark, names, description.frames[picture.key]):
            kept += 1
            continue
        found = answer(read_picture(picture.image, picture.overlay))
        for name, content in zip(names, _encode(picture, names, description, found), strict=True):
            (growing / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(growing / name, content)
    if kept:
        logger.info("%s: %d of %d images were there already", folder, kept, len(pictures))
    findings = verify_package(growing, lambda _: pictures)
    if findings.problems:
        raise InputError(f"{growing}: {findings.problems[0]}")
    publish(growing, folder)
    return findings


def _begin(growing: Path, description: Description) -> None:
    path = growing / DESCRIPTION_NAME
    if growing.is_dir():
        remove_partials(growing)
    if not path.is_file():
        require_free(growing)
        make_folder(growing)
        write_atomically(path, to_json(description))
        return
    begun = asdict(read_json(Description, path))
    if differing := [name for name, value in asdict(description).items() if value != begun[name]]:
        held = f"holds an unfinished package that differs in {', '.join(differing)}"
        raise InputError(f"{growing}: {held}; delete it or choose another --out")


def _is_finished(growing: Path, benchmark: Benchmark, names: Sequence[str], size: tuple[int, int]) -> bool:
    paths = [growing / name for name in names]
    if not all(path.is_file() for path in paths):
        return False
    try:
        return benchmark.decode([path.read_bytes() for path in paths], names).anomaly.shape == size
    except InputError as error:
        logger.warning("%s; predicted again", error)
        return False


def _encode(
    picture: BenchmarkImage, names: Sequence[str], description: Description, found: PixelPrediction
) -> tuple[bytes, ...]:
    values, benchmark = found.scores[description.score], BENCHMARKS[description.benchmark]
    if not np.isfinite(values).all():
        kind = "NaN" if np.isnan(values).any() else "infinity"
        raise InputError(f"{picture.image}: the model answers {kind} as {description.score}")
    contents = benchmark.encode(description.score, found)
    if problems := examine_files(benchmark.decode(contents, names), names, description.frames[picture.key]):
        raise InputError(f"{picture.image}: what the model answers cannot be submitted: {problems[0]}")
    return contents


def report_package(path: Path, datasets: Path | None, parts: Sequence[str]) -> None:
    """Print what a package is, and raise what is wrong with it.

    Args:
        datasets: folder with the benchmark's images, to compare names, sizes and labels; None: go without.
        parts: which of the benchmark's parts the package should be of.
    """
    find = None if datasets is None else (lambda benchmark: benchmark.choose_pictures(datasets, parts))
    findings = verify_package(path, find)
    print(_render(path, findings), end="")
    if findings.problems:
        raise InputError(f"{path}: {findings.problems[0]}{and_more(findings.problems)}")
    print("\n  no problem found")


def _render(path: Path, findings: PackageFindings) -> str:
    """Render what is known of a package as lines for a terminal."""
    method = f", method {findings.method}" if findings.method else ""
    lines = [f"{path}: {sum(findings.counts.values())} images for {findings.benchmark}{method}"]
    lines += [f"  {line}" for line in findings.lines]
    lines += [f"  warning: {line}" for line in findings.warnings]
    lines += [f"  problem: {line}" for line in findings.problems]
    return "\n".join(lines) + "\n"
