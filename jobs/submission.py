"""Answers of a model as a package for a benchmark, and what is told of a package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.sets.frames import image_size
from eval.submissions import smiyc
from eval.submissions.benchmark import BENCHMARKS, choose_pictures
from eval.submissions.package import Description
from eval.submissions.picture import BenchmarkImage, require_method
from eval.submissions.verify import PackageFindings, verify_package
from eval.submissions.writing import write_package
from jobs.answerer import Answerer
from shards.errors import InputError
from shards.files import require_free


@dataclass(frozen=True, kw_only=True)
class PackageOptions:
    """Which package is written."""

    benchmark: str
    out: Path
    datasets: Path
    parts: tuple[str, ...]
    score: str
    method: str


def write_answers(make_answerer: Callable[[BenchmarkImage], Answerer], options: PackageOptions) -> str:
    """Predict the images of a benchmark and write its package; return what is to be printed.

    Args:
        make_answerer: called with the first picture, when everything else was checked.

    Raises:
        InputError: see `eval.submissions.writing.write_package`, or an option is wrong.
    """
    require_free(options.out)
    require_method(options.method, "--method")
    if options.benchmark == smiyc.NAME:
        smiyc.require_h5py()
    benchmark = BENCHMARKS[options.benchmark]
    pictures = choose_pictures(benchmark, options.datasets, options.parts)
    answerer = make_answerer(pictures[0])
    description = Description(
        benchmark=options.benchmark,
        method=options.method,
        model=answerer.name,
        fingerprint=answerer.fingerprint,
        score=options.score,
        frames={picture.key: image_size(picture.image) for picture in pictures},
    )
    return render_findings(options.out, write_package(options.out, description, pictures, answerer.load()))


def report_package(path: Path, datasets: Path | None, parts: Sequence[str]) -> None:
    """Print what a package is.

    Args:
        datasets: folder with the benchmark's images, to compare names, sizes and labels; None: go without.
        parts: which of the benchmark's parts the package should be of.

    Raises:
        InputError: it is none, or something is wrong with it.
    """
    if datasets is None:
        findings = verify_package(path)
    else:
        root = datasets
        findings = verify_package(path, lambda benchmark: choose_pictures(benchmark, root, parts))
    print(render_findings(path, findings), end="")
    if findings.problems:
        more = f" (and {len(findings.problems) - 1} more)" if len(findings.problems) > 1 else ""
        raise InputError(f"{path}: {findings.problems[0]}{more}")
    print("\n  no problem found")


def render_findings(path: Path, findings: PackageFindings) -> str:
    """Render what is known of a package as lines for a terminal."""
    method = f", method {findings.method}" if findings.method else ""
    lines = [f"{path}: {sum(findings.counts.values())} images for {findings.benchmark}{method}"]
    lines += [f"  {line}" for line in findings.lines]
    lines += [f"  warning: {line}" for line in findings.warnings]
    lines += [f"  problem: {line}" for line in findings.problems]
    return "\n".join(lines) + "\n"
