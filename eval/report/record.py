"""Results as flat records, in JSON and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shards.errors import InputError
from shards.files import from_json, to_json

_FORMULA_STARTS = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One model × score × test set × protocol. Rates are fractions in [0, 1]; None is "not measured"."""

    model: str
    checkpoint: str
    score: str
    temperature: float | None
    """T of softmax(L / T); 1 is the plain score."""
    temperature_from: str | None
    """The data on which the temperature was chosen; None where nothing was chosen."""
    dataset: str
    protocol: str
    num_images: int
    num_pixels: int
    """Scored pixels, normal and anomalous."""
    ap: float | None
    ap_ci: tuple[float, float] | None
    fpr95: float | None
    fpr95_ci: tuple[float, float] | None
    auroc: float | None
    miou: float | None
    auroc_ci: tuple[float, float] | None = None
    miou_ci: tuple[float, float] | None = None
    best_f1: float | None = None
    """Best F1 of pixels."""
    best_f1_ci: tuple[float, float] | None = None
    siou: float | None = None
    """Mean adjusted IoU of true segments; see `eval/metrics/components.py`."""
    siou_ci: tuple[float, float] | None = None
    ppv: float | None = None
    """Mean precision of predicted segments."""
    ppv_ci: tuple[float, float] | None = None
    f1_star: float | None = None
    f1_star_ci: tuple[float, float] | None = None
    ece: float | None = None
    """Calibration error of the closed-set prediction, where the mIoU was measured."""
    ece_ci: tuple[float, float] | None = None
    limit: int | None = None
    """Most images taken of each set, its first; None: all."""
    sees: str = ""
    """Words for how the model saw an image (`eval.predict.windows.Predictor`); empty: not known."""
    miou_images: str = ""
    """Encoding and size of the frames that mIoU and ECE are measured on."""
    miou_unseen: tuple[str, ...] = ()
    """Classes that were predicted and are in no label: each counts in the mIoU with an IoU of 0."""
    pasted: str = ""
    """Words for which anomalies of test sets training may have pasted; empty: not known, or none at all."""

    trained_on: str = ""
    """Names of the sets of scenes that it was trained on; empty: Cityscapes alone, or not known."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise InputError(f"{name} is {value}; a finite number or null is needed")

    @property
    def title(self) -> str:
        """The model, as tables call it; a limited evaluation says so."""
        return f"{self.model} (first {self.limit} frames)" if self.limit else self.model

    @property
    def method(self) -> str:
        """The score, with its temperature where that is not 1."""
        if self.temperature in (None, 1):
            return self.score
        chosen = f" from {self.temperature_from}" if self.temperature_from else ""
        return f"{self.score} (T = {self.temperature:.4g}{chosen})"

    @property
    def rule(self) -> str:
        """The method without the number that a choice gave: the same of all seeds."""
        return f"{self.score} (T from {self.temperature_from})" if self.temperature_from else self.method


def render_json(records: Sequence[Record]) -> str:
    """Render `results.json`: a list of flat objects, missing values null."""
    return to_json(records, allow_nan=False)


def parse_json(text: str, where: str) -> list[Record]:
    """Read `results.json` back; an InputError opens with `where`, its name."""
    return from_json(list[Record], text, where)


def render_csv(records: Sequence[Record]) -> str:
    """Render one line per record, fractions as they are; an interval becomes two columns."""
    rows = []
    for record in records:
        row: dict[str, Any] = {}
        for name, value in dataclasses.asdict(record).items():
            if name.endswith("_ci"):
                row[f"{name}_low"], row[f"{name}_high"] = value or (None, None)
            elif isinstance(value, tuple):
                row[name] = " ".join(value)
            else:
                row[name] = value
        rows.append(row)
    return csv_text([rows[0], *(row.values() for row in rows)]) if rows else ""


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Return lines of CSV; None is empty.

    A text that a spreadsheet would take for a formula gets an apostrophe in front (OWASP, CSV Injection).
    """
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(map(_defuse, row) for row in rows)
    return file.getvalue()


def _defuse(cell: object) -> object:
    if isinstance(cell, str) and {cell[:1], cell.lstrip()[:1]} & _FORMULA_STARTS:
        return f"'{cell}"
    return cell
