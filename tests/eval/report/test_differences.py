"""Differences from the best of a column, against all pixels of resampled images and against scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_curve

from eval.metrics.bootstrap import draw_weights
from eval.report.differences import Difference, find_differences, list_differences, mark_tables
from eval.report.record import Record
from eval.report.seeds import SeedGroup, SeedRun, build_seed_tables
from tests.support.records import make_record, write_counts

NUM_IMAGES = 8
Scores = list[NDArray[np.float32]]


def record(ap: float, fpr95: float = 0.5, **changes: object) -> Record:
    return make_record(model="m", dataset="Mine", ap=ap, fpr95=fpr95, **changes)


def draw(shift: float, seed: int) -> tuple[Scores, Scores]:
    """Scores of anomalous and of normal pixels, an array per image; images differ in how hard they are."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(0, 0.5, NUM_IMAGES)
    anomalous = [rng.normal(shift - h, 1, 20).astype(np.float32) for h in hard]
    return anomalous, [rng.normal(0, 1, 60).astype(np.float32) for _ in hard]


def find(groups: list[SeedGroup], metric: str = "Mine AuPRC") -> list[Difference]:
    return [found for found in find_differences(groups) if found.column == metric]


def metrics_of(scores: tuple[Scores, Scores], times: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    """The metric of sets in which the images occur so many times, of all pixels; the first is sklearn's."""
    images = np.repeat(range(NUM_IMAGES), [len(image) for image in scores[0]])
    images = np.r_[images, np.repeat(range(NUM_IMAGES), [len(image) for image in scores[1]])]
    values = np.concatenate([*scores[0], *scores[1]])
    truth = np.arange(values.size) < sum(map(len, scores[0]))
    order = np.argsort(-values)
    weights, labels = times[:, images[order]], truth[order]
    true, false = np.cumsum(weights * labels, axis=1), np.cumsum(weights * ~labels, axis=1)
    if metric == "ap":
        precision = true / np.maximum(true + false, 1)
        found = (weights * labels * precision).sum(axis=1) / true[:, -1]
        expected = average_precision_score(truth, values)
    else:
        at = (true >= 0.95 * true[:, -1:]).argmax(axis=1)
        found = false[np.arange(len(at)), at] / false[:, -1]
        fpr, tpr, _ = roc_curve(truth, values, drop_intermediate=False)
        expected = fpr[np.argmax(tpr >= 0.95)]
    assert found[0] == pytest.approx(expected)
    return found


def draw_sets() -> NDArray[np.float64]:
    """How often each image occurs in the set as it is, then in each resampled one."""
    return np.concatenate([np.ones((1, NUM_IMAGES)), draw_weights(NUM_IMAGES, 1000)])


@pytest.mark.parametrize(("metric", "title"), [("ap", "Mine AuPRC"), ("fpr95", "Mine FPR95")])
def test_the_interval_over_images_is_that_of_all_pixels_of_resampled_sets(
    tmp_path: Path, metric: str, title: str
) -> None:
    sides = {"good": draw(1.6, 0), "poor": draw(1.0, 1)}
    values = {name: metrics_of(side, draw_sets(), metric) for name, side in sides.items()}
    groups = [
        SeedGroup(
            name, [SeedRun([record(ap, fpr)], folder=write_counts(tmp_path / name, "Mine", *sides[name]))]
        )
        for name, ap, fpr in (("poor", 0.1, 0.9), ("good", 0.2, 0.8))
    ]
    (found,) = find(groups, title)
    differences = values["good"] - values["poor"]
    expected = np.quantile(differences[1:], [0.025, 0.975])
    assert (found.best_row, found.row, found.seeds, found.images) == (2, 1, 1, NUM_IMAGES)
    assert found.difference == pytest.approx(differences[0], abs=1e-6)
    np.testing.assert_allclose((found.low, found.high), expected, atol=1e-3)
    excludes = expected[0] > 0 if metric == "ap" else expected[1] < 0
    assert found.verdict == ("supported" if excludes else "not supported")


def test_seeds_are_paired_by_their_number_and_judged_as_scipy_does() -> None:
    first, second = {0: 0.60, 1: 0.70, 2: 0.65, 9: 0.9}, {2: 0.55, 0: 0.48, 1: 0.59}
    groups = [
        SeedGroup(name, [SeedRun([record(ap, 1 - ap)], seed) for seed, ap in values.items()])
        for name, values in (("a", first), ("b", second))
    ]
    pairs = [(first[seed], second[seed]) for seed in range(3)]
    interval = scipy.stats.ttest_rel(*np.transpose(pairs)).confidence_interval(0.95)
    (found,) = find(groups)
    np.testing.assert_allclose((found.low, found.high), (interval.low, interval.high))
    assert found.difference == pytest.approx(0.11)
    assert (found.seeds, found.images, found.verdict) == (3, 0, "supported")
    (lower,) = find(groups, "Mine FPR95")
    np.testing.assert_allclose((lower.low, lower.high), (-interval.high, -interval.low))
    assert lower.verdict == "supported"


def test_seeds_with_counts_per_image_are_tested_over_both(tmp_path: Path) -> None:
    """Against all pixels, drawing the images of all runs alike, and two of three seeds beside them."""
    groups, values = [], []
    for name, shift, first in (("poor", 1.0, 10), ("good", 1.6, 20)):
        sides = [draw(shift, first + seed) for seed in range(3)]
        values.append([metrics_of(side, draw_sets(), "ap") for side in sides])
        folders = [write_counts(tmp_path / f"{name}{i}", "Mine", *side) for i, side in enumerate(sides)]
        groups.append(SeedGroup(name, [SeedRun([record(shift / 2)], i, f) for i, f in enumerate(folders)]))
    (found,) = find(groups)
    differences = np.subtract(values[1], values[0])  # seeds x resamples
    seeds = draw_weights(3, 1000, seed=1, drawn=2)
    resampled = [float(row @ of_images) / 2 for row, of_images in zip(seeds, differences.T[1:], strict=True)]
    assert (found.seeds, found.images) == (3, NUM_IMAGES)
    assert found.difference == pytest.approx(float(differences[:, 0].mean()), abs=1e-6)
    np.testing.assert_allclose((found.low, found.high), np.quantile(resampled, [0.025, 0.975]), atol=1e-3)
    over_images = np.quantile(differences[:, 1:].mean(axis=0), [0.025, 0.975])
    assert found.high - found.low > over_images[1] - over_images[0]  # as seeds differ, too
    assert "3 seeds, 8 images" in list_differences([found])


def test_a_best_mean_that_the_common_seeds_contradict_is_not_supported() -> None:
    first = [SeedRun([record(ap)], seed) for seed, ap in ((0, 0.50), (1, 0.51), (2, 0.99))]
    second = [SeedRun([record(ap)], seed) for seed, ap in ((0, 0.60), (1, 0.61))]
    (found,) = find([SeedGroup("a", first), SeedGroup("b", second)])
    assert found.high is not None
    assert found.high < 0
    assert (found.best_row, found.verdict) == (1, "not supported")


def reason_of(groups: list[SeedGroup], metric: str = "Mine AuPRC") -> str:
    (found,) = find(groups, metric)
    assert (found.verdict, found.images, found.difference, found.low) == ("no test", None, None, None)
    return found.reason


def test_what_cannot_be_tested_says_why(tmp_path: Path) -> None:
    folder = write_counts(tmp_path / "a", "Mine", *draw(1, 0))
    best = SeedGroup("best", [SeedRun([record(0.9, miou=0.5)], 0, folder)])

    def against(*runs: SeedRun, metric: str = "Mine AuPRC") -> str:
        return reason_of([best, SeedGroup("other", runs)], metric)

    assert against(SeedRun([record(0.1)], 0, tmp_path)) == "other has no sketch of MSP"
    others = write_counts(tmp_path / "b", "Mine", *draw(1, 0), first=1)
    assert against(SeedRun([record(0.1)], 0, others)) == "other images: 8 and 8 whose names differ"
    assert against(SeedRun([record(0.1)], 0), SeedRun([record(0.2)], 1)) == (
        "1 and 2 runs with 1 seeds in common; two are needed"
    )
    closed = against(SeedRun([record(0.1, miou=0.4)], 0, folder), metric="mIoU")
    assert closed == "one run each, and no counts per image are kept of the mIoU"
    single = write_counts(tmp_path / "c", "Mine", *(side[:5] for side in draw(1, 0)))
    pair = [SeedGroup(name, [SeedRun([record(ap)], 0, single)]) for name, ap in (("a", 0.1), ("b", 0.2))]
    assert reason_of(pair) == "5 images; at least 6 are needed"
    hot = SeedRun([record(0.2), record(0.1, temperature=2.0)], 0, folder)
    assert reason_of([SeedGroup("hot", [hot])]) == (
        "hot has MSP at several temperatures, and sketches do not say which; " * 2
    ).removesuffix("; ")


def test_rows_of_one_group_are_not_compared_in_the_miou_they_share() -> None:
    run = SeedRun([record(0.2, miou=0.5), record(0.1, miou=0.5, temperature=2.0)], 0)
    assert find([SeedGroup("a", [run])], "mIoU") == []


def test_a_table_without_differences_is_left_as_it_is() -> None:
    groups = [SeedGroup("a", [SeedRun([record(0.2)], 0)])]
    tables = build_seed_tables(groups)
    assert mark_tables(tables, find_differences(groups)) == tables
    assert list_differences([]) == ""
