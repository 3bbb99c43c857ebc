"""The demo's comparison of losses over several seeds, and which differences the spread supports.

    python -m jobs.experiments --out experiments --seeds 0 1 2

One world, drawn once. For each seed a baseline from scratch, every method of `jobs.demo` on top of it, and
their evaluations: 16 to 20 minutes a seed on one CPU core. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from eval.report.record import Record
from eval.report.seeds import compare_seeds, estimate
from jobs.demo import BASELINE, CONTROL, METHODS, NATURAL_SCORES, SMOKE, Scale, make_data, train_and_evaluate
from jobs.demo import SCORES as DEMO_SCORES
from shards.errors import InputError
from shards.files import write_atomically
from shards.output import claimed, make_folder, require_free
from shards.program import run_program
from shards.settings import parse_options, read_settings

logger = logging.getLogger(__name__)

WORLD_SEED = 0
COMPARISONS = (
    *((name, CONTROL) for name in METHODS if name != CONTROL),
    ("sole_claim", "rba"),
    ("sole_claim", "paste_only"),
    ("class_claim", "rba"),
    ("class_claim", "sole_claim"),
    ("class_claim", "paste_only"),
)
SCORES = (*DEMO_SCORES, *NATURAL_SCORES)
BASELINE_SCORES = ("MSP", "NormalizedEntropy")
OWN_SCORES = ("SoleClaim", "ClassClaim", "EntropyLogMax", "SoleClaimEntropy", "ClassClaimEntropy")
SCORE_COMPARISONS = (
    ("SoleClaim", "RbA"),
    ("NormalizedEntropy", "MSP"),
    *((own, other) for own in OWN_SCORES for other in BASELINE_SCORES),
)
Records = Mapping[int, Sequence[Record]]
"""Seed -> records of all its runs."""


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
        data, methods = options.out, tuple(METHODS)
        records = {
            seed: train_and_evaluate(data, data / f"seed-{seed}", seed, scale, methods, SCORES)
            for seed in options.seeds
        }
        report = render_report(records)
        write_atomically(options.out / "results.md", report)
    print(report, end="")


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


def render_report(records: Records) -> str:
    """Render mean ± spread of every method and score, and the differences between methods.

    Numbers are means over the test sets, in percent; `records` are of at least two seeds with the same runs.
    """
    scores = list(dict.fromkeys((*SCORES, *(own for method in METHODS.values() for own in method.scores))))
    lines = [
        f"Mean ± standard deviation over {len(records)} seeds; AP / FPR95 in percent, mean of the test sets.",
        "",
        f"| method | mIoU | {' | '.join(scores)} |",
        f"|---|---:|{'---:|' * len(scores)}",
    ]
    for name in (BASELINE, *METHODS):
        cells = [str(estimate(_read(records, name, SCORES[0], "miou")))]
        for score in scores:
            pair = [estimate(_read(records, name, score, metric)) for metric in ("ap", "fpr95")]
            cells.append("" if None in pair else " / ".join(map(str, pair)))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Differences over {len(records)} paired seeds, with 95 % interval (Student's t). An interval that "
        "holds 0 does not support the difference.",
        "",
        "| comparison | score | AP | | FPR95 | |",
        "|---|---|---:|---|---:|---|",
    ]
    pairs = [(f"{a} - {b} | {score}", (a, score), (b, score)) for a, b in COMPARISONS for score in SCORES]
    for name in (BASELINE, *METHODS):
        pairs += [(f"{name} | {a} - {b}", (name, a), (name, b)) for a, b in SCORE_COMPARISONS]
    lines += [f"| {title} | {_differences(records, first, second)} |" for title, first, second in pairs]
    return "\n".join(lines) + "\n"


def _differences(records: Records, first: tuple[str, str], second: tuple[str, str]) -> str:
    """Compare two methods and scores, (method, score) each."""
    cells = []
    for metric in ("ap", "fpr95"):
        found = compare_seeds(_read(records, *first, metric), _read(records, *second, metric))
        cells.append(f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]")
        cells.append("supported" if found.is_supported else "not supported")
    return " | ".join(cells)


def _read(records: Records, model: str, score: str, metric: str) -> list[float]:
    """Return one number per seed, the mean over the test sets; nothing where the method lacks the score."""
    values = [
        [getattr(r, metric) for r in runs if r.model == model and r.score == score]
        for runs in records.values()
    ]
    return [float(np.mean(of_seed)) for of_seed in values if of_seed]


if __name__ == "__main__":
    run_program(main)
