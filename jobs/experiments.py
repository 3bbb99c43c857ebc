"""The demo's comparison of losses over several seeds: a choice on validation data, and its test numbers.

    python -m jobs.experiments --out experiments --seeds 0 1 2

One world, drawn once. For each seed a baseline from scratch, every method of `jobs.demo` on top of it, and
their evaluations on pasted validation data and on the test sets. Run again, it goes on where it stopped.
Method and score are chosen on PastedVal alone: val frames with objects of another world's photographs.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from eval.report.seeds import SeedRun, estimate, read_run
from eval.sketch import Resampled, compare_resampled, read_sketch, resample_sketch, sketch_path
from jobs.demo import (
    BASELINE,
    CONFIGS,
    CONTROL,
    METHODS,
    NATURAL_SCORES,
    SMOKE,
    Scale,
    evaluate,
    make_data,
    run_job,
    train_and_evaluate,
)
from jobs.demo import SCORES as DEMO_SCORES
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
SCORES = (*DEMO_SCORES, *NATURAL_SCORES)
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
Runs = Mapping[str, Sequence[SeedRun]]
"""Method -> its run of each seed, on the same sets."""
Way = tuple[str, str]
"""Method and score."""


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
        for seed, folder in zip(options.seeds, folders, strict=True):
            train_and_evaluate(options.out, folder, seed, scale, tuple(METHODS), SCORES)
            for name in (BASELINE, *METHODS):
                evaluate(folder / name, "pasted", SCORES, "--datasets", options.out / "pasted")
        tests, pasted = (_read_runs(folders, name) for name in ("eval", "pasted"))
        report = render_numbers(tests) + render_choice(tests, pasted)
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


def _read_runs(folders: Sequence[Path], evaluation: str) -> Runs:
    """Read an evaluation of all runs, `evaluation` the name of its folder."""
    return {
        name: [read_run(folder / name / evaluation / "results.json") for folder in folders]
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


def render_numbers(runs: Runs) -> str:
    """Render mean ± spread of every method and score; means over the test sets, in percent."""
    scores = list(dict.fromkeys((*SCORES, *(own for method in METHODS.values() for own in method.scores))))
    count = len(runs[BASELINE])
    lines = [
        f"Mean ± standard deviation over {count} seeds; AP / FPR95 in percent, mean of the test sets.",
        "",
        f"| method | mIoU | {' | '.join(scores)} |",
        f"|---|---:|{'---:|' * len(scores)}",
    ]
    for name, of_method in runs.items():
        mious = [run.records[0].miou for run in of_method]
        cells = [_cell(runs, (name, score)) for score in scores]
        lines.append(f"| {name} | {estimate(mious)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def choose_scores(pasted: Runs) -> dict[str, str]:
    """Choose each method's score by mean AP on PastedVal, and order the methods by it, best first."""
    best: dict[str, tuple[float, str]] = {}
    for name, of_method in pasted.items():
        scores = dict.fromkeys(record.score for record in of_method[0].records)
        best[name] = max((float(np.mean(_read(pasted, (name, score), "ap"))), score) for score in scores)
    return {name: best[name][1] for name in sorted(best, key=lambda name: best[name], reverse=True)}


def render_choice(tests: Runs, pasted: Runs) -> str:
    """Render each method with the score that PastedVal chose for it, there and on every test set."""
    chosen = choose_scores(pasted)
    datasets = list(dict.fromkeys(record.dataset for record in tests[BASELINE][0].records))
    method, score = next(iter(chosen.items()))
    lines = [
        f"\nChosen on PastedVal: {method} with {score}. The score of each method, and the order of methods, "
        "are by mean AP over the seeds on PastedVal; no test set has a say. Its objects are of other "
        "photographs than those that training pastes, but of the same categories, sizes and blending.",
        "",
        f"| method | chosen score | PastedVal | {' | '.join(datasets)} | mean |",
        f"|---|---|{'---:|' * (len(datasets) + 2)}",
    ]
    for way in chosen.items():
        cells = [_cell(pasted, way), *(_cell(tests, way, dataset) for dataset in datasets), _cell(tests, way)]
        lines.append(f"| {' | '.join((*way, *cells))} |")
    return "\n".join(lines) + "\n"


def list_comparisons(tests: Runs, pasted: Runs) -> Iterator[tuple[Way, Way]]:
    """Yield what is compared: the choice with the other methods' choices, methods, and scores of a method."""
    first, *others = choose_scores(pasted).items()
    yield from ((first, other) for other in others)
    yield from (((a, score), (b, score)) for a, b in COMPARISONS for score in COMPARED_SCORES)
    yield from (((name, a), (name, b)) for name in tests for a, b in SCORE_COMPARISONS)


def render_differences(tests: Runs, pairs: Sequence[tuple[Way, Way]]) -> str:
    """Render differences of the means over the test sets, with intervals over seeds and images."""

    @functools.cache
    def resample(path: Path) -> Resampled:
        return resample_sketch(read_sketch(path))

    def read_sets(way: Way) -> list[list[Resampled]]:
        kept = [[(run.folder, r) for r in run.records if r.score == way[1]] for run in tests[way[0]]]
        return [
            [resample(sketch_path(folder or Path(), r.dataset, r.protocol, r.score)) for folder, r in of_run]
            for of_run in kept
        ]

    count = len(tests[BASELINE])
    lines = [
        f"\nDifferences of the means, with 95 % interval over {count} seeds and all images (two-level "
        "bootstrap). An interval that holds 0 does not support the difference; of many, some exclude it by "
        "chance.",
        "",
        "| A | B | AP of A - B | | FPR95 of A - B | |",
        "|---|---|---:|---|---:|---|",
    ]
    for first, second in pairs:
        cells = [" with ".join(way) for way in (first, second)]
        for metric in ("ap", "fpr95"):
            found = compare_resampled(read_sets(first), read_sets(second), metric)
            cells.append(f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]")
            cells.append("supported" if found.is_supported else "not supported")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(runs: Runs, way: Way, dataset: str = "") -> str:
    """Return AP / FPR95, mean ± spread over seeds; nothing where the method lacks the score."""
    pair = [estimate(_read(runs, way, metric, dataset)) for metric in ("ap", "fpr95")]
    return "" if None in pair else " / ".join(map(str, pair))


def _read(runs: Runs, way: Way, metric: str, dataset: str = "") -> list[float]:
    """Return one number per seed: of a set, or the mean of all."""
    values = [
        [getattr(r, metric) for r in run.records if r.score == way[1] and dataset in ("", r.dataset)]
        for run in runs[way[0]]
    ]
    return [float(np.mean(of_seed)) for of_seed in values if of_seed]


if __name__ == "__main__":
    run_program(main)
