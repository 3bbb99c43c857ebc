"""A record of results for tests, with what a test says about it."""

from __future__ import annotations

import dataclasses

from eval.report.record import Record

EXAMPLE = Record(
    model="run_a", checkpoint="runs/run_a", score="MSP", temperature=1.0, temperature_from=None,
    dataset="SMIYC RA-21", protocol="native", num_images=10, num_pixels=9_000_000, ap=0.74386, ap_ci=None,
    fpr95=0.3372, fpr95_ci=None, auroc=0.93, miou=None,
)  # fmt: skip


def make_record(**changes: object) -> Record:
    """Return `EXAMPLE` with other values."""
    return dataclasses.replace(EXAMPLE, **changes)  # type: ignore[arg-type]
