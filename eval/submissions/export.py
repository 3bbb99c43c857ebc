"""Packages of a model's predictions, and reports on packages, for programs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from eval.predict.windows import ModelSource
from eval.sets.frames import image_size
from eval.submissions import bravo, smiyc
from eval.submissions.benchmark import BENCHMARKS, choose_pictures
from eval.submissions.package import Description
from eval.submissions.picture import BenchmarkImage, predict_from_class_scores, require_method
from eval.submissions.verify import PackageFindings, verify_package
from eval.submissions.writing import write_package
from shards.errors import InputError, and_more
from shards.output import claimed, require_free

logger = logging.getLogger(__name__)


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
    require_method(method, "--method")
    if benchmark == smiyc.NAME:
        smiyc.require_h5py()
    pictures = choose_pictures(BENCHMARKS[benchmark], datasets, parts)
    with claimed(out):
        model = open_model(pictures[0])
        predictor = model.load()
        if benchmark == bravo.NAME and predictor.has_evidence and score in bravo.OF_EVIDENCE:
            asked, score = score, bravo.OF_EVIDENCE[score]
            logger.info("--score %s: a mask model's probability is a share of its evidence: %s", asked, score)
        description = Description(
            benchmark=benchmark,
            method=method,
            model=model.name,
            fingerprint=model.fingerprint,
            score=score,
            frames={picture.key: image_size(picture.image) for picture in pictures},
        )
        findings = write_package(
            out, description, pictures, lambda image: predict_from_class_scores(predictor(image), score)
        )
    return render_findings(out, findings)


def report_package(path: Path, datasets: Path | None, parts: Sequence[str]) -> None:
    """Print what a package is, and raise what is wrong with it.

    Args:
        datasets: folder with the benchmark's images, to compare names, sizes and labels; None: go without.
        parts: which of the benchmark's parts the package should be of.
    """
    find = None if datasets is None else (lambda benchmark: choose_pictures(benchmark, datasets, parts))
    findings = verify_package(path, find)
    print(render_findings(path, findings), end="")
    if findings.problems:
        raise InputError(f"{path}: {findings.problems[0]}{and_more(findings.problems)}")
    print("\n  no problem found")


def render_findings(path: Path, findings: PackageFindings) -> str:
    """Render what is known of a package as lines for a terminal."""
    method = f", method {findings.method}" if findings.method else ""
    lines = [f"{path}: {sum(findings.counts.values())} images for {findings.benchmark}{method}"]
    lines += [f"  {line}" for line in findings.lines]
    lines += [f"  warning: {line}" for line in findings.warnings]
    lines += [f"  problem: {line}" for line in findings.problems]
    return "\n".join(lines) + "\n"
