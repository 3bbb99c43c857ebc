"""The demo's comparison of losses over several seeds: a choice on validation data, and its test numbers.

    python -m jobs.experiments --out experiments --seeds 0 1 2

One world, drawn once. For each seed a baseline from scratch, every method of `jobs.demo` on top of it, and
their evaluations on pasted validation data and on the test sets. Run again, it goes on where it stopped.
Method and score are chosen on PastedVal alone: val frames with objects of another world's photographs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from eval.report.choice import (
    Runs,
    Way,
    choose_scores,
    part_runs,
    render_choice,
    render_differences,
    render_numbers,
)
from eval.report.seeds import read_run
from jobs.demo import (
    BASELINE,
    CONFIGS,
    CONTROL,
    METHODS,
    PASTED_TITLE,
    SMOKE,
    Scale,
    find_results,
    make_data,
    train_and_evaluate,
)
from jobs.work.steps import link_sets, run_job
from shards.errors import InputError
from shards.files import write_atomically
from shards.output import claimed, make_folder, require_free
from shards.program import run_program
from shards.settings import parse_options, read_settings

logger = logging.getLogger(__name__)

WORLD_SEED, PASTED_WORLD_SEED = 0, 1
COMPARISONS = (
    *((name, CONTROL) for name in METHODS if name != CONTROL),
    ("class_claim", "rba"),
    ("class_claim", "paste_only"),
)
SCORES = (
    *("MSP", "MaxLogit", "MaxEntropy", "RbA", "NormalizedMSP", "NormalizedEntropy", "EntropyLogMax"),
    *("EAM", "SoleClaim", "ClassClaim", "ClassClaimEntropy", "MinDistance", "LikelihoodRatio"),
)
BASELINE_SCORES = ("MSP", "NormalizedEntropy")
OWN_SCORES = ("SoleClaim", "ClassClaim", "EntropyLogMax", "ClassClaimEntropy")
SCORE_COMPARISONS = (
    ("SoleClaim", "RbA"),
    ("NormalizedEntropy", "MSP"),
    *((own, other) for own in OWN_SCORES for other in BASELINE_SCORES),
)
COMPARED_SCORES = (
    "MSP",
    "NormalizedEntropy",
    "SoleClaim",
    "ClassClaim",
    "EntropyLogMax",
    "ClassClaimEntropy",
)
"""Those under which methods are compared with each other."""


@dataclass(frozen=True, kw_only=True)
class ExperimentsOptions:
    """Compare the losses on the synthetic world, over several seeds."""

    out: Path
    """New or empty folder, or that of the same experiments, which are continued."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs; at least two, each once. The world has always the same."""
    smoke: bool = False
    """Only check that the chain holds together; the numbers mean nothing then."""

    def __post_init__(self) -> None:
        if len(self.seeds) < 2 or len(set(self.seeds)) < len(self.seeds):
            given = " ".join(map(str, self.seeds))
            needed = "at least two, each once, are needed for a spread"
            raise InputError(f"--seeds: got {given or 'none'}; {needed}")
        if any(not 0 <= seed < 2**32 for seed in self.seeds):
            raise InputError(f"--seeds: got {min(self.seeds)}..{max(self.seeds)}; allowed are 0..{2**32 - 1}")


def main(arguments: Sequence[str]) -> None:
    """Run the experiments from the command line."""
    options: ExperimentsOptions = parse_options(ExperimentsOptions, arguments, program="jobs.experiments")
    with claimed(options.out):
        _require_same_experiments(options)
        scale = SMOKE if options.smoke else Scale()
        make_data(options.out, WORLD_SEED, scale)
        _paste_validation(options.out, scale)
        folders = [options.out / f"seed-{seed}" for seed in options.seeds]
        link_sets(options.out / "sets", options.out / "pasted", options.out / "world" / "anomaly")
        for seed, folder in zip(options.seeds, folders, strict=True):
            make_folder(folder)
            train_and_evaluate(options.out, folder, seed, scale, tuple(METHODS), SCORES, options.out / "sets")
        tests, pasted = part_runs(_read_runs(dict(zip(options.seeds, folders, strict=True))), PASTED_TITLE)
        report = render_numbers(tests, SCORES) + render_choice(tests, pasted)
        report += render_differences(tests, [*list_comparisons(tests, pasted)])
        write_atomically(options.out / "results.md", report)
    print(report, end="")


def _paste_validation(out: Path, scale: Scale) -> None:
    """Paste objects of another world's photographs, which no run sees, onto all val frames."""
    other, shards = out / "other", out / "shards"
    if not (other / "world").exists():
        few = ("--train", 1, "--val", 1, "--anomaly_images", 1)
        run_job("synthesize", "--out", other / "world", "--seed", PASTED_WORLD_SEED, *(scale.world or few))
    if not (other / "cutouts").exists():
        coco = other / "world" / "coco"
        places = ("--images", coco / "train2017", "--annotations", coco / "annotations")
        run_job("prepare", "coco", *places, "--out", other / "cutouts")
    if not (out / "pasted").exists():
        banks = ("--paste.bank", shards / "cutouts", "--bank", other / "cutouts")
        frames = ("--data.shards", shards / "cityscapes", "--frames", 0)
        run_job("paste_validation", CONFIGS / "demo_rba.yaml", "--out", out / "pasted", *frames, *banks)


def _read_runs(folders: Mapping[int, Path]) -> Runs:
    """Read the results of all runs by seed."""
    return {
        name: [read_run(find_results(folder, seed, name), name) for seed, folder in folders.items()]
        for name in (BASELINE, *METHODS)
    }


def _require_same_experiments(options: ExperimentsOptions) -> None:
    """Take a new folder, or one of the same experiments; seeds may have been added."""
    marker = options.out / "experiments.yaml"
    if marker.is_file():
        smoke = read_settings(marker).get("smoke")
        if smoke is not options.smoke:
            raise InputError(f"--out {options.out}: holds experiments with --smoke {smoke}")
        return
    require_free(options.out)
    make_folder(options.out)
    write_atomically(marker, yaml.safe_dump({"smoke": options.smoke}))


def list_comparisons(tests: Runs, pasted: Runs) -> Iterator[tuple[Way, Way]]:
    """Yield what is compared: the choice with the other methods' choices, methods, and scores of a method."""
    first, *others = choose_scores(pasted).items()
    yield from ((first, other) for other in others)
    yield from (((a, score), (b, score)) for a, b in COMPARISONS for score in COMPARED_SCORES)
    yield from (((name, a), (name, b)) for name in tests for a, b in SCORE_COMPARISONS)


if __name__ == "__main__":
    run_program(main)
