"""Results as flat records, in JSON and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shards.errors import InputError


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

    @property
    def method(self) -> str:
        """The score, with its temperature where that is not 1."""
        if self.temperature in (None, 1):
            return self.score
        chosen = f" from {self.temperature_from}" if self.temperature_from else ""
        return f"{self.score} (T = {self.temperature:g}{chosen})"


FIELDS = tuple(field.name for field in dataclasses.fields(Record))
_INTERVALS = tuple(name for name in FIELDS if name.endswith("_ci"))
_NEEDED = frozenset(f.name for f in dataclasses.fields(Record) if f.default is dataclasses.MISSING)


def render_json(records: Sequence[Record]) -> str:
    """Render `results.json`: a list of flat objects, missing values null."""
    return json.dumps([dataclasses.asdict(record) for record in records], indent=1, allow_nan=False) + "\n"


def parse_json(text: str, where: str) -> list[Record]:
    """Read `results.json` back; `where` is its name, for messages.

    Raises:
        InputError: the text is no list of records.
    """
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error}") from None
    if not isinstance(entries, list):
        raise InputError(f"{where}: expected a list of records, got {type(entries).__name__}")
    return [parse_record(entry, f"{where}: record {i}") for i, entry in enumerate(entries)]


def parse_record(entry: Any, where: str) -> Record:
    """Read one object of `results.json`; `where` is file and position, for messages.

    Raises:
        InputError: it is no record.
    """
    if not isinstance(entry, dict) or not _NEEDED <= set(entry) <= set(FIELDS):
        wrong = (_NEEDED - set(entry)) | (set(entry) - set(FIELDS)) if isinstance(entry, dict) else set()
        given = ", ".join(sorted(wrong)) if isinstance(entry, dict) else repr(entry)
        raise InputError(f"{where}: fields differ from the format ({given}); expected {', '.join(FIELDS)}")
    intervals = {name: tuple(entry[name]) if entry.get(name) else None for name in _INTERVALS}
    return Record(**{**entry, **intervals})


def render_csv(records: Sequence[Record]) -> str:
    """Render one line per record, fractions as they are; an interval becomes two columns."""
    rows = []
    for record in records:
        row: dict[str, Any] = {}
        for name, value in dataclasses.asdict(record).items():
            if name in _INTERVALS:
                row[f"{name}_low"], row[f"{name}_high"] = value or (None, None)
            else:
                row[name] = value
        rows.append(row)
    file = io.StringIO()
    if rows:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return file.getvalue()
