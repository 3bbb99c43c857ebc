"""Sweep the temperature of the scores over saved predictions; no network runs.

python -m jobs.evaluate --checkpoint RUN --datasets SETS --sets own.yaml --cache CACHE --out RUN/eval
python -m jobs.temperature --cache CACHE --validation my_val --out RUN/temperature

A best temperature is chosen on the declared validation split, and reported on all other sets. `--oracle True`
shows, in a column of that name, the temperature that would have been best on each test set itself: no result.

What the tables report is measured exactly. The search, and the curves, count scores in half precision, which
moves AP by up to 1e-3 (see `eval.temperature.Sweep`); sweep.csv says of each row which it is.
"""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.predict.predictions import CLOSED_SET, CachedSet, CacheInfo, read_cache, read_frame
from eval.predict.scores import DEFAULT_SCORES
from eval.report.figures import plot_temperatures
from eval.report.record import Record, render_csv, render_json
from eval.report.tables import MISSING, render_latex, render_markdown
from eval.temperature import Kind, Sweep, Variant, fit_calibration, list_kinds, require_selection_split
from shards.errors import InputError
from shards.files import require_free, staged_folder
from shards.settings import parse_options, run_program

logger = logging.getLogger(__name__)

SEED_TEMPERATURES = (0.5, 0.75, 1.1)
"""Of the table that every report on these test sets shows, beside 1 and the best."""
_PRECISION = (
    "Predictions read back from half precision. Numbers here are measured in float32; the search for a best "
    "T, and the curves, count scores in half precision.\n"
)


@dataclass(frozen=True, kw_only=True)
class TemperatureOptions:
    """Sweep temperatures of MSP, MaxLogit, MaxEntropy and RbA over saved predictions."""

    cache: Path
    """Folder that `jobs.evaluate --cache` wrote."""
    out: Path
    """New or empty folder for results.*, sweep.csv, temperature.png and temperature.md."""
    validation: str | None = None
    """Folder name of the cached set on which the best temperature is chosen; without, none is chosen."""
    oracle: bool = False
    """Also show each test set's own best temperature, in a column labelled oracle."""
    scores: tuple[str, ...] = DEFAULT_SCORES
    """Which scores."""
    grid: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.1, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0)
    """Temperatures of the curves; choices are refined around the best. 0.5, 0.75, 1 and 1.1 are added."""

    def __post_init__(self) -> None:
        for value in self.grid:
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"--grid: got {value}; temperatures are above 0")
        unknown = [name for name in self.scores if name not in DEFAULT_SCORES]
        if unknown or not self.scores:
            given = unknown[0] if unknown else "nothing"
            raise InputError(f"--scores: got {given}; allowed are {', '.join(DEFAULT_SCORES)}")


def main(arguments: Sequence[str]) -> None:
    """Sweep from the command line and print the table."""
    options: TemperatureOptions = parse_options(TemperatureOptions, arguments, program="jobs.temperature")
    print(sweep(options), end="")


def sweep(options: TemperatureOptions) -> str:
    """Sweep, choose, write everything, and return the table.

    Raises:
        InputError: an option is wrong, the cache is none, or the validation split is missing or a benchmark.
    """
    require_free(options.out)
    info, sets = read_cache(options.cache)
    validation = _find_validation(sets, options)
    scored = [cached for cached in sets if cached.folder != CLOSED_SET]
    if not scored:
        raise InputError(f"--cache {options.cache}: no anomaly test set in it")
    has_queries = read_frame(options.cache / scored[0].folder, 0)[1].masks is not None
    kinds = list_kinds(has_queries, options.scores)
    grid = tuple(sorted({*options.grid, *SEED_TEMPERATURES, 1.0}))
    with staged_folder(options.out) as folder:
        sweeps = [Sweep(options.cache, cached, folder) for cached in scored]
        for each in sweeps:
            logger.info("%s: %d variants", each.cached.name, len(kinds) * len(grid))
            each.scan(Variant(*kind, t) for kind in kinds for t in grid)
            each.measure(Variant(*kind, t) for kind in kinds for t in (1.0, *SEED_TEMPERATURES))
        chosen = {}
        if validation is not None:
            judge = next(each for each in sweeps if each.cached == validation)
            chosen = {kind: judge.refine(*kind, grid) for kind in kinds}
            for each in sweeps:
                each.measure(Variant(*kind, chosen[kind]) for kind in kinds)
        oracle = {}
        if options.oracle:
            oracle = {
                (e.cached.name, k): e.refine(*k, grid)
                for e in sweeps
                if e.cached != validation
                for k in kinds
            }
        records = _records(info, sweeps, kinds, chosen, validation)
        calibrated = next((cached for cached in sets if cached.folder == CLOSED_SET), None)
        nll = fit_calibration(options.cache, calibrated) if calibrated else None
        report = _report(records, sweeps, oracle, chosen, validation, nll)
        for name, text in (
            ("results.json", render_json(records)),
            ("results.csv", render_csv(records)),
            ("results.tex", render_latex(records)),
            ("temperature.md", report),
            ("sweep.csv", _sweep_csv(sweeps, oracle, validation)),
        ):
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "temperature.png").write_bytes(plot_temperatures(_curves(sweeps)))
    return report


def _find_validation(sets: Sequence[CachedSet], options: TemperatureOptions) -> CachedSet | None:
    if options.validation is None:
        return None
    for cached in sets:
        if cached.folder == options.validation and cached.folder != CLOSED_SET:
            require_selection_split(cached)
            return cached
    present = ", ".join(cached.folder for cached in sets if cached.folder != CLOSED_SET)
    raise InputError(f"--validation {options.validation}: not in the cache, which holds {present}")


def _records(
    info: CacheInfo,
    sweeps: Sequence[Sweep],
    kinds: Sequence[Kind],
    chosen: dict[Kind, float],
    validation: CachedSet | None,
) -> list[Record]:
    """List the fixed temperatures of the seed's table, then the chosen one; never an oracle."""
    records = []
    for score, level in kinds:
        wanted: list[tuple[float, str | None]] = [(t, None) for t in (1.0, *SEED_TEMPERATURES)]
        if validation is not None:
            wanted.append((chosen[score, level], validation.name))
        for temperature, source in wanted:
            variant = Variant(score, level, temperature)
            records += [_record(info, each, variant, source) for each in sweeps]
    return records


def _record(info: CacheInfo, each: Sweep, variant: Variant, source: str | None) -> Record:
    metrics = each.metrics[variant]
    return Record(
        model=info.model,
        checkpoint=info.checkpoint,
        score=variant.label,
        temperature=variant.temperature,
        temperature_from=source,
        dataset=each.cached.name,
        protocol="native",
        num_images=len(each.cached.stems),
        num_pixels=each.num_pixels,
        ap=metrics.ap,
        ap_ci=None,
        fpr95=metrics.fpr95,
        fpr95_ci=None,
        auroc=metrics.auroc,
        miou=None,
        best_f1=metrics.best_f1,
    )


def _report(
    records: Sequence[Record],
    sweeps: Sequence[Sweep],
    oracle: dict[tuple[str, Kind], float],
    chosen: dict[Kind, float],
    validation: CachedSet | None,
    nll: float | None,
) -> str:
    parts = [render_markdown(records), _PRECISION]
    if validation is not None:
        parts.append(f"Best temperatures were chosen by AP on {validation.name}, which is no test set.\n")
    if nll is not None:
        parts.append(f"Calibration temperature (least NLL of the closed set on Cityscapes val): {nll:.3g}.\n")
    if oracle:
        parts.append(_oracle_table(sweeps, oracle, chosen, validation))
    return "\n".join(parts)


def _oracle_table(
    sweeps: Sequence[Sweep],
    oracle: dict[tuple[str, Kind], float],
    chosen: dict[Kind, float],
    validation: CachedSet | None,
) -> str:
    """Lay out what a leak would gain: the test set's own best temperature beside the honest ones."""
    lines = [
        "Oracle: chosen on the very test set that it is reported on. An upper bound, no result.",
        "",
        "| Test set | Method | AuPRC at T = 1 | at chosen T | oracle T | oracle AuPRC | oracle FPR95 |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for each in sweeps:
        for (dataset, kind), temperature in oracle.items():
            if dataset != each.cached.name:
                continue
            plain = each.metrics[Variant(*kind, 1.0)]
            best = each.metrics[Variant(*kind, temperature)]
            honest = MISSING
            if validation is not None:
                variant = Variant(*kind, chosen[kind])
                honest = f"{100 * each.metrics[variant].ap:.2f}"
            label = Variant(*kind, 1.0).label
            lines.append(
                f"| {dataset} | {label} | {100 * plain.ap:.2f} | {honest} | {temperature:.3g} | "
                f"{100 * best.ap:.2f} | {100 * best.fpr95:.2f} |"
            )
    return "\n".join(lines) + "\n"


def _sweep_csv(
    sweeps: Sequence[Sweep], oracle: dict[tuple[str, Kind], float], validation: CachedSet | None
) -> str:
    """Render every variant that was tried; `oracle` marks a set's own best temperature."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    metrics = ("ap", "fpr95", "auroc")
    writer.writerow(["dataset", "use", "score", "level", "temperature", *metrics, "precision", "oracle"])
    for each in sweeps:
        use = "validation" if each.cached == validation else "test"
        for variant, m in sorted((each.scanned | each.metrics).items()):
            precision = "float32" if variant in each.metrics else "float16"
            best = oracle.get((each.cached.name, (variant.score, variant.level)))
            mark = "best" if best == variant.temperature else ""
            writer.writerow([each.cached.name, use, *variant, m.ap, m.fpr95, m.auroc, precision, mark])
    return file.getvalue()


def _curves(sweeps: Sequence[Sweep]) -> dict[str, dict[str, list[tuple[float, float, float]]]]:
    found: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for each in sweeps:
        lines = found.setdefault(each.cached.name, {})
        for variant, metrics in (each.scanned | each.metrics).items():
            lines.setdefault(variant.label, []).append((variant.temperature, metrics.ap, metrics.fpr95))
    return found


if __name__ == "__main__":
    run_program(main)
