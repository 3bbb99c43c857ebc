"""Temperatures of one cache: measured, chosen, reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from eval.metrics.closed_set import best_likelihood
from eval.predict.predictions import CLOSED_SET, CachedSet, CacheInfo, read_cache, read_frame, read_frames
from eval.predict.score_names import RATIO
from eval.report.temperatures import TemperatureReport
from eval.sets.benchmarks import require_selection_split
from eval.temperature import (
    STRIDE,
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
from shards.schema import ANOMALY, VOID


def sweep(options: TemperatureOptions) -> str:
    """Sweep, choose, write everything, and return the table."""
    require_free(options.out)
    info, sets = read_cache(options.cache)
    validation = _find_validation(options.cache, sets, options.validation)
    scored = [cached for cached in sets if cached.folder != CLOSED_SET]
    if not scored:
        raise InputError(f"--cache {options.cache}: no anomaly test set in it")
    closed = next((cached for cached in sets if cached.folder == CLOSED_SET), None)
    first = read_frame(options.cache / scored[0].folder, 0)[1]
    kinds = list_kinds(first.masks is not None, options.scores, ratio=first.ratio is not None)
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
    by_nll = {} if calibration is None else {calibration: f"{calibrated_on} by NLL"}
    reported = {kind: _list_temperatures(kind, options, info, validation, by_nll) for kind in kinds}
    kinds = [kind for kind in kinds if kind[0] != RATIO]  # whose order no T changes
    for each in sweeps:
        each.measure(Variant(*kind, t) for kind in reported for t, _ in reported[kind])
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
    queries = {Variant(*kind, t).divisors[0] for kind in reported for t, _ in reported[kind]}
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


def _list_temperatures(
    kind: Kind,
    options: TemperatureOptions,
    info: CacheInfo,
    validation: CachedSet | None,
    by_nll: Mapping[float, str],
) -> list[tuple[float, str | None]]:
    """List the temperatures of a table that do not depend on a search, and where each is from."""
    if kind[0] == RATIO:
        judge = [] if validation is None else [validation]
        return [(1.0, None), *((_calibrate_ratio(options.cache, c), f"{c.name} by NLL") for c in judge)]
    found = list(table_temperatures(kind[1], info.entropic_scale).items())
    return [*found, *by_nll.items()] if kind[1] == "pixel" else found


def _calibrate_ratio(cache: Path, cached: CachedSet) -> float:
    """Return the T of sigmoid(r / T) of least NLL on a set's anomalies; both kinds of pixels count alike."""
    ratios, targets = [], []
    for target, predictions in read_frames(cache, cached):
        counted = (seen := target[::STRIDE, ::STRIDE]) != VOID
        ratio = predictions.ratio_at(target.shape, cached.window)[::STRIDE, ::STRIDE]
        ratios.append(ratio[torch.from_numpy(counted)])
        targets.append(torch.from_numpy(seen[counted] == ANOMALY).long())
    ratio, labels = torch.cat(ratios), torch.cat(targets)
    weight = 1 / labels.bincount(minlength=2).clamp(min=1).double()
    return best_likelihood(torch.stack((torch.zeros_like(ratio), ratio), dim=1), labels, weight)


def _find_validation(cache: Path, sets: Sequence[CachedSet], name: str | None) -> CachedSet | None:
    if name is None:
        return None
    by_folder = {cached.folder: cached for cached in sets if cached.folder != CLOSED_SET}
    if name not in by_folder:
        raise InputError(f"--validation {name}: not in the cache, which holds {', '.join(by_folder)}")
    require_selection_split(cache, by_folder[name], sets)
    return by_folder[name]
