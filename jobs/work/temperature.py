"""Temperatures of one cache: measured, chosen, reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from eval.predict.predictions import CLOSED_SET, CachedSet, CacheInfo, read_cache, read_frame
from eval.report.temperatures import TemperatureReport
from eval.sets.benchmarks import require_selection_split
from eval.temperature import (
    TABLE_TEMPERATURES,
    Kind,
    Sweep,
    Variant,
    count_confusion,
    fit_calibration,
    list_kinds,
    table_temperatures,
)
from jobs.temperature import TemperatureOptions
from shards.errors import InputError
from shards.files import write_atomically
from shards.output import require_free, staged_folder


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
    calibrated_on = closed.name if closed else ""
    reported = {kind: list(table_temperatures(kind[1], info.entropic_scale).items()) for kind in kinds}
    if calibration is not None:
        for kind in (kind for kind in kinds if kind[1] == "pixel"):
            reported[kind].append((calibration, f"{calibrated_on} by NLL"))
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
        calibrated_on=calibrated_on,
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
