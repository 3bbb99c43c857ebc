"""What an evaluation yields: a cell per score, test set and protocol."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

from eval.metrics.measure import ImageMetrics, Measurement
from eval.report.figures import Example
from eval.report.record import Record
from eval.report.slices import ErrorAnalysis


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is evaluated, as records name it."""

    model: str
    checkpoint: str
    miou: float | None = None
    miou_ci: tuple[float, float] | None = None
    ece: float | None = None
    ece_ci: tuple[float, float] | None = None

    def sign(self, record: Record) -> Record:
        """Return the record as this subject's."""
        return dataclasses.replace(record, **dataclasses.asdict(self))


class Cell(NamedTuple):
    """One score of one test set under one protocol, with what its record does not say."""

    record: Record
    measurement: Measurement
    images: list[ImageMetrics]
    stems: list[str]
    """By position in the set."""
    folder: str
    """Of the test set, as its convention calls it."""
    gallery: ErrorAnalysis | None = None
    """Pictures and slices, where maps were kept."""


class TestSetResult(NamedTuple):
    """What one test set yields."""

    cells: list[Cell]
    """One per protocol and score."""
    exhibits: list[Example]
    """The frames chosen for the picture."""

    @property
    def records(self) -> list[Record]:
        """The cells' records."""
        return [cell.record for cell in self.cells]
