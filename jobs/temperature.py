"""Sweep the temperature of the scores over saved predictions; no network runs.

python -m jobs.evaluate --checkpoint RUN --datasets SETS --sets own.yaml --cache CACHE --out RUN/eval
python -m jobs.temperature --cache CACHE --validation my_val --out RUN/temperature

A best temperature is chosen on the declared validation split, and reported on all other sets. `--oracle True`
shows, in a column of that name, the temperature that would have been best on each test set itself: no result.

What the tables report is measured exactly. The search, and the curves, count scores in half precision, which
moves AP by up to 1e-3 (see `eval.temperature.Sweep`); sweep.csv says of each row which it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.predict.score_names import DEFAULT_SCORES, OF_SHARES, RATIO
from shards.errors import InputError
from shards.program import run_program
from shards.settings import parse_options

GRID = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.1, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0)


@dataclass(frozen=True, kw_only=True)
class TemperatureOptions:
    """Sweep temperatures over saved predictions."""

    cache: Path
    """Folder that `jobs.evaluate --cache` wrote."""
    out: Path
    """New or empty folder for results.*, sweep.csv, temperature.png and temperature.md."""
    validation: str | None = None
    """Folder name of the cached set on which the best temperature is chosen; without, none is chosen."""
    oracle: bool = False
    """Also show each test set's own best temperature, in a column labelled oracle."""
    name: str = ""
    """Model's name in the tables; empty takes the one that jobs.evaluate gave it."""
    all_columns: bool = False
    """Show mIoU and all five benchmarks in the tables, whether measured or not."""
    scores: tuple[str, ...] = DEFAULT_SCORES
    """Which scores: MSP, MaxLogit, MaxEntropy, RbA; of mask models, at query level, NormalizedMSP,
    NormalizedEntropy and EntropyLogMax; of an outlier head LikelihoodRatio, in the same order at every T."""
    grid: tuple[float, ...] = GRID
    """Temperatures of the curves; choices are refined around the best, and past an end that is best, with a
    warning. 0.5, 0.75, 1 and 1.1 are added."""

    def __post_init__(self) -> None:
        for value in self.grid:
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"--grid: got {value}; temperatures are above 0")
        allowed = (*DEFAULT_SCORES, *OF_SHARES, RATIO)
        unknown = [name for name in self.scores if name not in allowed]
        if unknown or not self.scores:
            given = unknown[0] if unknown else "nothing"
            raise InputError(f"--scores: got {given}; allowed are {', '.join(allowed)}")


def main(arguments: Sequence[str]) -> None:
    """Sweep from the command line and print the table."""
    options: TemperatureOptions = parse_options(TemperatureOptions, arguments, program="jobs.temperature")
    from jobs.work.temperature import sweep

    print(sweep(options), end="")


if __name__ == "__main__":
    run_program(main)
