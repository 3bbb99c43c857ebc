"""The choice of a method and its score on validation data, and the test numbers of all over seeds."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from eval.report.seeds import SeedRun, estimate
from eval.sketch import Resampled, compare_resampled, read_sketch, resample_sketch, sketch_path

Runs = Mapping[str, Sequence[SeedRun]]
"""Method -> its run of each seed, on the same sets."""
Way = tuple[str, str]
"""Method and score."""


def render_numbers(runs: Runs, scores: Sequence[str]) -> str:
    """Render mean ± spread of every method and score; means over the test sets, in percent."""
    count = max(map(len, runs.values()))
    over = f"Mean ± standard deviation over {count} seeds" if count > 1 else "One seed"
    lines = [
        f"{over}; AP / FPR95 in percent, mean of the test sets.",
        "",
        f"| method | mIoU | {' | '.join(scores)} |",
        f"|---|---:|{'---:|' * len(scores)}",
    ]
    for name, of_method in runs.items():
        mious = [run.records[0].miou for run in of_method]
        cells = [_cell(runs, (name, score)) for score in scores]
        lines.append(f"| {name} | {estimate(mious)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def part_runs(runs: Runs, dataset: str) -> tuple[Runs, Runs]:
    """Part the results of runs: those of all other sets, and those of one set."""

    def keep(run: SeedRun, is_kept: bool) -> SeedRun:
        return run._replace(records=[r for r in run.records if (r.dataset == dataset) is is_kept])

    others, own = ({n: [keep(run, k) for run in of] for n, of in runs.items()} for k in (False, True))
    return others, own


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
    datasets = list(
        dict.fromkeys(record.dataset for of_method in tests.values() for record in of_method[0].records)
    )
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

    count = max(map(len, tests.values()))
    drawn = f"{count} seeds and all images (two-level bootstrap)" if count > 1 else "images (bootstrap)"
    lines = [
        f"\nDifferences of the means, with 95 % interval over {drawn}. An interval that holds 0 does not "
        "support the difference; of many, some exclude it by chance.",
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
