"""Writing of packages image by image, so that a killed export goes on; the folder is complete or absent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from eval.sets.frames import read_picture
from eval.submissions.benchmark import BENCHMARKS, Benchmark
from eval.submissions.package import DESCRIPTION_NAME, Description
from eval.submissions.picture import BenchmarkImage, PictureAnswer
from eval.submissions.verify import PackageFindings, examine_files, verify_package
from shards.errors import InputError
from shards.files import read_json, remove_partials, to_json, write_atomically
from shards.output import make_folder, publish, require_free
from shards.progress import Progress

logger = logging.getLogger(__name__)

Answer = Callable[[UInt8[np.ndarray, "H W 3"]], PictureAnswer]
"""An image to its score map and predicted classes."""


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
        answered = answer(read_picture(picture.image, picture.overlay))
        for name, content in zip(names, _encode(picture, names, description, answered), strict=True):
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
        stored = benchmark.decode([path.read_bytes() for path in paths], names)
    except InputError as error:
        logger.warning("%s; predicted again", error)
        return False
    return stored.anomaly.shape == size


def _encode(
    picture: BenchmarkImage, names: Sequence[str], description: Description, answered: PictureAnswer
) -> tuple[bytes, ...]:
    if not np.isfinite(answered.score).all():
        kind = "NaN" if np.isnan(answered.score).any() else "infinity"
        raise InputError(f"{picture.image}: the model answers {kind} as {description.score}")
    benchmark = BENCHMARKS[description.benchmark]
    contents = benchmark.encode(description.score, answered)
    if problems := examine_files(benchmark.decode(contents, names), names, description.frames[picture.key]):
        raise InputError(f"{picture.image}: what the model answers cannot be submitted: {problems[0]}")
    return contents
