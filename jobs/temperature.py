"""Sweep the temperature of the scores over saved predictions; no network runs.

python -m jobs.evaluate --checkpoint RUN --datasets SETS --sets own.yaml --cache CACHE --out RUN/eval
python -m jobs.temperature --cache CACHE --validation my_val --out RUN/temperature

A best temperature is chosen on the declared validation split, and reported on all other sets. `--oracle True`
shows, in a column of that name, the temperature that would have been best on each test set itself: no result.

What the tables report is measured exactly. The search, and the curves, count scores in half precision, which
moves AP by up to 1e-3 (see `eval.temperature.Sweep`); sweep.csv says of each row which it is.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.predict.predictions import CLOSED_SET, CachedSet, CacheInfo, read_cache, read_frame
from eval.predict.scores import DEFAULT_SCORES
from eval.report.temperatures import TemperatureReport
from eval.sets.benchmarks import require_selection_split
from eval.temperature import (
    OF_SHARES,
    TABLE_TEMPERATURES,
    Kind,
    Sweep,
    Variant,
    count_confusion,
    fit_calibration,
    list_kinds,
    table_temperatures,
)
from shards.errors import InputError
from shards.files import write_atomically
from shards.output import require_free, staged_folder
from shards.program import run_program
from shards.settings import parse_options

logger = logging.getLogger(__name__)

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
    NormalizedEntropy and EntropyLogMax."""
    grid: tuple[float, ...] = GRID
    """Temperatures of the curves; choices are refined around the best, and past an end that is best, with a
    warning. 0.5, 0.75, 1 and 1.1 are added."""

    def __post_init__(self) -> None:
        for value in self.grid:
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"--grid: got {value}; temperatures are above 0")
        allowed = (*DEFAULT_SCORES, *OF_SHARES)
        unknown = [name for name in self.scores if name not in allowed]
        if unknown or not self.scores:
            given = unknown[0] if unknown else "nothing"
            raise InputError(f"--scores: got {given}; allowed are {', '.join(allowed)}")


def main(arguments: Sequence[str]) -> None:
    """Sweep from the command line and print the table."""
    options: TemperatureOptions = parse_options(TemperatureOptions, arguments, program="jobs.temperature")
    print(sweep(options), end="")


def sweep(options: TemperatureOptions) -> str:
    """Sweep, choose, write everything, and return the table."""
    require_free(options.out)
    info, sets = read_cache(options.cache)
    validation = _find_validation(options.cache, sets, options.validation)
    scored = [cached for cached in sets if cached.folder != CLOSED_SET]
    if not scored:
        raise InputError(f"--cache {options.cache}: no anomaly test set in it")
    closed = next((cached for cached in sets if cached.folder == CLOSED_SET), None)
    has_queries = read_frame(options.cache / scored[0].folder, 0)[1].masks is not None
    kinds = list_kinds(has_queries, options.scores)
    info = dataclasses.replace(info, model=options.name or info.model)
    with staged_folder(options.out) as folder:
        sweeps = [Sweep(options.cache, cached, folder) for cached in scored]
        report = _measure(options, info, sweeps, kinds, validation, closed)
        files = report.render(options.all_columns)
        for name, content in files.items():
            write_atomically(folder / name, content)
    return str(files["temperature.md"])


def _measure(
    options: TemperatureOptions,
    info: CacheInfo,
    sweeps: Sequence[Sweep],
    kinds: Sequence[Kind],
    validation: CachedSet | None,
    closed: CachedSet | None,
) -> TemperatureReport:
    """Choose temperatures, and measure those of the tables on all sets; `closed` is the labelled one."""
    grid = tuple(sorted({*options.grid, *TABLE_TEMPERATURES}))
    calibration = fit_calibration(options.cache, closed) if closed else None
    reported = {kind: list(table_temperatures(kind[1], info.entropic_scale).items()) for kind in kinds}
    if calibration is not None:
        for kind in (kind for kind in kinds if kind[1] == "pixel"):
            reported[kind].append((calibration, "Cityscapes val by NLL"))
    for each in sweeps:
        each.measure(Variant(*kind, t) for kind in kinds for t, _ in reported[kind])
        each.scan(Variant(*kind, t) for kind in kinds for t in grid)
    chosen = {}
    for judge in (each for each in sweeps if each.cached == validation):
        chosen = judge.refine(kinds, grid)
        for kind, temperature in chosen.items():
            reported[kind].append((temperature, judge.cached.name))
    for each in sweeps:
        each.measure(Variant(*kind, temperature) for kind, temperature in chosen.items())
    tested = [each for each in sweeps if options.oracle and each.cached != validation]
    oracle = {each.cached.name: each.refine(kinds, grid) for each in tested}
    queries = {Variant(*kind, t).divisors[0] for kind in kinds for t, _ in reported[kind]}
    return TemperatureReport(
        info=info,
        sweeps=sweeps,
        reported=reported,
        validation=validation,
        chosen=chosen,
        oracle={(name, kind): t for name, best in oracle.items() for kind, t in best.items()},
        calibration=calibration,
        confusion=count_confusion(options.cache, closed, sorted(queries)) if closed else {},
    )


def _find_validation(cache: Path, sets: Sequence[CachedSet], name: str | None) -> CachedSet | None:
    if name is None:
        return None
    by_folder = {cached.folder: cached for cached in sets if cached.folder != CLOSED_SET}
    if name not in by_folder:
        raise InputError(f"--validation {name}: not in the cache, which holds {', '.join(by_folder)}")
    require_selection_split(cache, by_folder[name], sets)
    return by_folder[name]


if __name__ == "__main__":
    run_program(main)
