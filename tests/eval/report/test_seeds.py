"""Mean and spread over seeds, against the standard library and scipy; one row per setting and method."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import scipy.stats

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


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_is_that_of_the_paired_t_test(count: int) -> None:
    rng = np.random.default_rng(count)
    first, second = rng.normal(1, 1, count), rng.normal(0, 1, count)
    expected = scipy.stats.ttest_rel(first, second)
    found = compare_seeds(first.tolist(), second.tolist())
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose((found.low, found.high), (interval.low, interval.high), rtol=1e-9)
    assert found.is_supported is bool(expected.pvalue < 0.05)


def test_a_shared_shift_is_supported_although_each_method_spreads_more() -> None:
    first, second = [12.0, 32.1, 51.9], [10.0, 30.0, 50.0]
    assert statistics.stdev(first) > 10
    assert compare_seeds(first, second).is_supported


def test_pairs_are_needed() -> None:
    with pytest.raises(ValueError, match="as many numbers of both methods are needed, got 2 and 1"):
        compare_seeds([1.0, 2.0], [1.0])
