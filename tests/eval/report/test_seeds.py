"""Mean and spread over seeds, against the standard library; one row per setting and method."""

from __future__ import annotations

import math
import statistics

import pytest

from eval.report.record import Record
from eval.report.seeds import SeedGroup, SeedRun, build_seed_tables, compare_seeds, estimate
from eval.report.tables import MISSING, markdown_tables
from tests.support.records import make_record


def record(ap: float | None, **changes: object) -> Record:
    return make_record(model="m", ap=ap, fpr95=ap, **changes)


def test_mean_and_spread_are_those_of_the_standard_library() -> None:
    values = [0.31, 0.52, 0.4]
    found = estimate([*values, None, float("nan")])
    assert found is not None
    assert found.mean == pytest.approx(statistics.mean(values))
    assert found.spread == pytest.approx(statistics.stdev(values))


def test_one_value_has_no_spread_and_supports_nothing_and_none_has_no_mean() -> None:
    assert str(estimate([0.5])) == "50.00"
    assert str(estimate([0.5, 0.6])) == "55.00 ± 7.07"
    assert estimate([None, math.nan]) is None
    assert not compare_seeds([9.0], [1.0]).is_supported


def test_a_group_is_a_row_per_method_and_the_best_mean_is_marked() -> None:
    seeds = SeedGroup(
        "lora",
        [SeedRun([record(0.2, miou=0.5), record(0.1, score="RbA")]), SeedRun([record(0.4, miou=0.7)])],
    )
    alone = SeedGroup("heads", [SeedRun([record(0.35)])])
    (table,) = build_seed_tables([seeds, alone])
    assert [tuple(entry.text for entry in row) for row in table.rows] == [
        ("lora (2 seeds)", "MSP", "60.00 ± 14.14", "30.00 ± 14.14", "30.00 ± 14.14"),
        ("lora", "RbA", MISSING, "10.00", "10.00"),
        ("heads", "MSP", MISSING, "35.00", "35.00"),
    ]
    best = [[i for i, entry in enumerate(row) if entry.is_best] for row in table.rows]
    assert best == [[], [4], [3]]
    assert "mean ± standard deviation over seeds; protocol native" in table.footnote
    assert "| lora (2 seeds) | MSP | 60.00 ± 14.14 |" in markdown_tables([table])


def test_protocols_are_never_mixed_and_unknown_sets_get_columns() -> None:
    tables = build_seed_tables([SeedGroup("m", [SeedRun([record(0.5, dataset="Mine")])])])
    assert tables[0].header[-2:] == ("Mine AuPRC", "Mine FPR95")
    other = record(0.1, protocol="smiyc")
    assert len(build_seed_tables([SeedGroup("m", [SeedRun([record(0.5)]), SeedRun([other])])])) == 2


def test_pairs_are_needed() -> None:
    with pytest.raises(ValueError, match="as many numbers of both methods are needed, got 2 and 1"):
        compare_seeds([1.0, 2.0], [1.0])
