"""Records, tables and curves of a temperature sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from eval.metrics.closed_set import mean_iou, unseen_classes
from eval.predict.predictions import CachedSet, CacheInfo
from eval.report.plots import plot_temperatures
from eval.report.record import Record, csv_text, render_csv, render_json
from eval.report.tables import MISSING, Table, build_tables, latex_tables, markdown_row, markdown_tables
from eval.temperature import Kind, Sweep, Variant
from shards.schema import CITYSCAPES

_PRECISION = (
    "Predictions read back from half precision. Numbers here are measured in float32; the search for a best "
    "T, and the curves, count scores in half precision.\n"
)
_ORACLE = """\
Oracle: chosen on the very test set that it is reported on. An upper bound, no result.

| Test set | Method | AuPRC at T = 1 | at chosen T | oracle T | oracle AuPRC | oracle FPR95 |
|---|---|---:|---:|---:|---:|---:|
"""


@dataclass(frozen=True, kw_only=True)
class TemperatureReport:
    """The sweeps of all sets of a cache, and the temperatures that were best."""

    info: CacheInfo
    sweeps: Sequence[Sweep]
    reported: Mapping[Kind, Sequence[tuple[float, str | None]]]
    """Temperatures of the tables, and where each is from."""
    validation: CachedSet | None
    """The set on which temperatures were chosen."""
    chosen: Mapping[Kind, float]
    """Empty without `validation`."""
    oracle: Mapping[tuple[str, Kind], float]
    """Best temperature on the very set, by its name; empty where nobody asked for it."""
    calibration: float | None
    """Temperature of least NLL on the closed set."""
    confusion: Mapping[float, Int64[np.ndarray, "C C"]]
    """Pixels of the closed set per true and predicted class, by query temperature; empty without that set."""
    calibrated_on: str = "Cityscapes val"
    """Name of the closed set."""

    def render(self, all_columns: bool) -> dict[str, str | bytes]:
        """Render all files, by name; `all_columns` as of `eval.report.tables.list_columns`."""
        records = self._records()
        tables = build_tables(records, all_columns)
        return {
            "results.json": render_json(records),
            "results.csv": render_csv(records),
            "results.tex": latex_tables(tables),
            "temperature.md": self._markdown(tables),
            "sweep.csv": self._csv(),
            "temperature.png": self._plot(),
        }

    def _records(self) -> list[Record]:
        """List the reported temperatures; never an oracle."""
        return [
            self._record(sweep, Variant(*kind, t), source)
            for kind, wanted in self.reported.items()
            for t, source in wanted
            for sweep in self.sweeps
        ]

    def _record(self, sweep: Sweep, variant: Variant, source: str | None) -> Record:
        metrics, confusion = sweep.metrics[variant], self.confusion.get(variant.divisors[0])
        names = self.info.classes or CITYSCAPES.names
        return Record(
            model=self.info.model,
            checkpoint=self.info.checkpoint,
            score=variant.label,
            temperature=variant.temperature,
            temperature_from=source,
            dataset=sweep.cached.name,
            protocol="native",
            num_images=len(sweep.cached.stems),
            num_pixels=sweep.num_pixels,
            ap=metrics.ap,
            ap_ci=None,
            fpr95=metrics.fpr95,
            fpr95_ci=None,
            auroc=metrics.auroc,
            miou=None if confusion is None else float(mean_iou(confusion)),
            best_f1=metrics.best_f1,
            limit=sweep.cached.limit,
            sees=sweep.cached.sees,
            miou_unseen=() if confusion is None else unseen_classes(confusion, names),
        )

    def _markdown(self, tables: Sequence[Table]) -> str:
        parts = [markdown_tables(tables), _PRECISION]
        if self.validation is not None:
            name = self.validation.name
            parts.append(f"Best temperatures were chosen by AP on {name}, which is no test set.\n")
        if self.calibration is not None:
            criterion = f"least NLL of the closed set on {self.calibrated_on}"
            parts.append(f"Calibration temperature ({criterion}): {self.calibration:.3g}.\n")
        for sweep in self.sweeps:
            for kind, end in sweep.at_end.items():
                what = f"{Variant(*kind, end).label} on {sweep.cached.name}"
                parts.append(
                    f"Warning: {what}: best at the end of the grid (T = {end:g}), and searched past it.\n"
                )
        if self.oracle:
            parts.append(_ORACLE + "".join(self._oracle_row(*key) + "\n" for key in self.oracle))
        return "\n".join(parts)

    def _oracle_row(self, dataset: str, kind: Kind) -> str:
        """Lay out what a leak would gain: the test set's own best temperature beside the honest ones."""
        metrics = next(sweep.metrics for sweep in self.sweeps if sweep.cached.name == dataset)
        temperature = self.oracle[dataset, kind]
        plain, best = metrics[Variant(*kind, 1.0)], metrics[Variant(*kind, temperature)]
        honest = f"{100 * metrics[Variant(*kind, self.chosen[kind])].ap:.2f}" if self.chosen else MISSING
        numbers = [f"{100 * plain.ap:.2f}", honest, f"{temperature:.3g}"]
        numbers += [f"{100 * best.ap:.2f}", f"{100 * best.fpr95:.2f}"]
        return markdown_row([dataset, Variant(*kind, 1.0).label, *numbers])

    def _csv(self) -> str:
        """Render every variant that was tried; `oracle` marks a set's own best temperature."""
        metrics = ("ap", "fpr95", "auroc")
        rows: list[list[object]] = []
        for sweep in self.sweeps:
            use = "validation" if sweep.cached == self.validation else "test"
            for variant, m in sorted(sweep.known.items()):
                precision = "float32" if variant in sweep.metrics else "float16"
                best = self.oracle.get((sweep.cached.name, (variant.score, variant.level)))
                mark = "best" if best == variant.temperature else ""
                rows.append([sweep.cached.name, use, *variant, m.ap, m.fpr95, m.auroc, precision, mark])
        header = ["dataset", "use", "score", "level", "temperature", *metrics, "precision", "oracle"]
        return csv_text([header, *rows])

    def _plot(self) -> bytes:
        curves: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
        for sweep in self.sweeps:
            lines = curves.setdefault(sweep.cached.name, {})
            for variant, metrics in sweep.known.items():
                lines.setdefault(variant.label, []).append((variant.temperature, metrics.ap, metrics.fpr95))
        return plot_temperatures(curves)
