"""Mean and spread over seeds, against the standard library; one row per setting and method."""

from __future__ import annotations

import statistics

import pytest

from eval.report.record import MISSING, Record, markdown_tables
from eval.report.seeds import SeedGroup, SeedRun, build_seed_tables, estimate


def record(
    ap: float | None, *, dataset: str = "SMIYC RA-21", score: str = "MSP", miou: float | None = None
) -> Record:
    return Record(
        model="m", checkpoint="c", score=score, temperature=1.0, temperature_from=None, dataset=dataset,
        protocol="native", num_images=1, num_pixels=4, ap=ap, ap_ci=None, fpr95=ap, fpr95_ci=None, auroc=None,
        miou=miou,
    )  # fmt: skip


def test_mean_and_spread_are_those_of_the_standard_library() -> None:
    values = [0.31, 0.52, 0.4]
    found = estimate([*values, None, float("nan")])
    assert found is not None
    assert found.mean == pytest.approx(statistics.mean(values))
    assert found.spread == pytest.approx(statistics.stdev(values))


def test_one_value_has_no_spread_and_none_has_no_mean() -> None:
    assert str(estimate([0.5])) == "50.00"
    assert str(estimate([0.5, 0.6])) == "55.00 ± 7.07"
    assert estimate([None]) is None


def test_a_group_is_a_row_per_method_and_the_best_mean_is_marked() -> None:
    seeds = SeedGroup(
        "lora",
        [SeedRun([record(0.2, miou=0.5), record(0.1, score="RbA")]), SeedRun([record(0.4, miou=0.7)])],
    )
    alone = SeedGroup("heads", [SeedRun([record(0.35)])])
    (table,) = build_seed_tables([seeds, alone])
    assert [row[:5] for row in table.rows] == [
        ("lora (2 seeds)", "MSP", "60.00 ± 14.14", "30.00 ± 14.14", "30.00 ± 14.14"),
        ("lora", "RbA", MISSING, "10.00", "10.00"),
        ("heads", "MSP", MISSING, "35.00", "35.00"),
    ]
    assert table.best == (frozenset(), frozenset({4}), frozenset({3}))
    assert "mean ± standard deviation over seeds; protocol native" in table.footnote
    assert "| lora (2 seeds) | MSP | 60.00 ± 14.14 |" in markdown_tables([table])


def test_protocols_are_never_mixed_and_unknown_sets_get_columns() -> None:
    tables = build_seed_tables([SeedGroup("m", [SeedRun([record(0.5, dataset="Mine")])])])
    assert tables[0].header[-2:] == ("Mine AuPRC", "Mine FPR95")
    other = Record(**{**record(0.1).__dict__, "protocol": "smiyc"})
    assert len(build_seed_tables([SeedGroup("m", [SeedRun([record(0.5)]), SeedRun([other])])])) == 2
