"""A sweep against scores computed directly; calibration against the temperature that made the data."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import average_precision_score

from eval.metrics.closed_set import best_likelihood
from eval.predict.predictions import CachedSet, PredictionRecorder, read_frame, write_frame, write_index
from eval.predict.queries import pixel_class_scores
from eval.predict.score_names import DEFAULT_SCORES, OF_SHARES
from eval.sets.benchmarks import require_selection_split
from eval.temperature import Sweep, Variant, list_kinds, table_temperatures
from tests.support.refused import refused

WINDOW = (16, 24)
Predictions = tuple[torch.Tensor, ...]


def write_cached(cache: Path, target: np.ndarray, *frames: Predictions, num_classes: int) -> CachedSet:
    """Save what a network said of frames of one target: mask and class logits, or pixels alone."""
    for position, frame in enumerate(frames):
        recorder = PredictionRecorder(num_classes=num_classes)
        recorder.add(*frame)
        write_frame(cache / "s", position, target, recorder.take())
    stems = tuple(str(i) for i in range(len(frames)))
    cached = CachedSet(folder="s", name="S", is_benchmark=True, window=target.shape, stems=stems)
    write_index(cache, cached)
    return cached


def write_set(cache: Path, kind: str) -> CachedSet:
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, 6, 8, 12), (1, 6, 5)] if kind == "masks" else [(1, 4, *WINDOW)]
    frames = [tuple(3 * torch.randn(s, generator=generator) for s in shapes) for _ in range(2)]
    target = np.random.default_rng(1).choice(np.array([0, 1, 255], np.uint8), WINDOW, p=[0.7, 0.2, 0.1])
    return write_cached(cache, target, *frames, num_classes=4)


def plain_score(name: str, class_scores: torch.Tensor) -> np.ndarray:
    """In float64: nearly equal pixels tie in float32."""
    p = class_scores[0].double().softmax(dim=0).numpy()
    if name == "RbA":
        return -np.tanh(class_scores[0].double().numpy()).sum(axis=0)
    return 1 - p.max(axis=0) if name == "MSP" else entropy(p)


@pytest.mark.parametrize("score", ["MSP", "MaxEntropy", "RbA"])
@pytest.mark.parametrize("level", ["pixel", "query"])
def test_metrics_are_those_of_scores_computed_directly(tmp_path, score, level):
    sweep = Sweep(tmp_path, write_set(tmp_path, "masks"))
    sweep.measure(Variant(score, level, t) for t in (0.5, 3.0))
    for temperature in (0.5, 3.0):
        truth, values = [], []
        for position in range(2):
            target, found = read_frame(tmp_path / "s", position)
            query_t, pixel_t = (temperature, 1.0) if level == "query" else (1.0, temperature)
            class_scores = (
                pixel_class_scores(found.masks.float(), found.classes / query_t, WINDOW, 4) / pixel_t
            )
            truth.append(target[target != 255])
            values.append(plain_score(score, class_scores)[target != 255])
        expected = average_precision_score(np.concatenate(truth), np.concatenate(values))
        assert sweep.metrics[Variant(score, level, temperature)].ap == pytest.approx(expected, abs=1e-6)


def test_refining_is_no_worse_than_the_grid(tmp_path):
    sweep = Sweep(tmp_path, write_set(tmp_path, "pixels"))
    best = sweep.refine([("MSP", "pixel")], (0.5, 1.0, 4.0))["MSP", "pixel"]
    assert len(sweep.scanned) > 5
    sweep.measure(sweep.scanned)
    found = sweep.metrics[Variant("MSP", "pixel", best)].ap
    assert found == max(metrics.ap for metrics in sweep.metrics.values())


def test_a_best_end_of_the_grid_is_passed_and_told(tmp_path, caplog):
    """Anomalies differ by the margin of the two largest classes only, which T -> 0 alone reads off."""
    rng = np.random.default_rng(0)
    target = (rng.random(WINDOW) < 0.2).astype(np.uint8)
    class_scores = torch.from_numpy(rng.random((1, 19, *WINDOW))).float() * 0.5
    margin = torch.from_numpy(np.where(target, 0.01, 0.03)).float()
    class_scores[0, 0], class_scores[0, 1] = 0.6 + margin, 0.6
    sweep = Sweep(tmp_path, write_cached(tmp_path, target, (class_scores,), num_classes=19))
    best = sweep.refine([("MSP", "pixel")], (0.5, 1.0, 4.0))["MSP", "pixel"]
    assert 1e-3 <= best < 0.1
    assert sweep.metrics[Variant("MSP", "pixel", best)].ap > 0.99
    assert sweep.at_end == {("MSP", "pixel"): 0.5}
    assert "S: MSP: the best T is at the end of the grid, 0.5 of 0.5 to 4; trying further" in caplog.text


@pytest.mark.parametrize("kind", ["masks", "pixels"])
def test_a_scan_is_near_what_is_measured(tmp_path, kind):
    """At both levels, for more query temperatures than are computed at once."""
    sweep = Sweep(tmp_path, write_set(tmp_path, kind))
    kinds = list_kinds(kind == "masks", (*DEFAULT_SCORES, *(OF_SHARES if kind == "masks" else ())))
    variants = [Variant(*k, t) for k in kinds for t in (0.25, 0.5, 1.0, 3.0, 5.0, 12.0)]
    sweep.scan(variants)
    sweep.measure(variants)
    for variant in variants:
        found, expected = sweep.scanned[variant], sweep.metrics[variant]
        assert found[:3] == pytest.approx(expected[:3], abs=1e-2), variant  # of 700 pixels, each counts


@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["masks", "logits"])
def test_half_precision_is_near_float32_on_a_drawn_frame(tmp_path, scale):
    """Evidence of a mask model, about [0, 1], or logits; anomalies are less sure, some pixels void."""
    generator = torch.Generator().manual_seed(0)
    target = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (400, 700), p=[0.9, 0.05, 0.05])
    class_scores = 0.02 * torch.rand(19, *target.shape, generator=generator)
    sure = 0.9 + 0.1 * torch.randn(target.shape, generator=generator)
    sure[torch.from_numpy(target == 1)] *= 0.7
    winner = torch.randint(0, 19, (1, *target.shape), generator=generator)
    class_scores.scatter_add_(0, winner, sure[None])
    sweep = Sweep(tmp_path, write_cached(tmp_path, target, (scale * class_scores[None],), num_classes=19))
    variants = [Variant(name, "pixel", t) for name in DEFAULT_SCORES for t in (0.5, 1.0, 12.0)]
    sweep.scan(variants)
    sweep.measure(variants)
    for variant in variants:
        found, exact = sweep.scanned[variant], sweep.metrics[variant]
        assert 0.5 < exact.auroc < 1
        for name, tolerance in (("ap", 1e-3), ("auroc", 1e-4), ("fpr95", 5e-3)):
            assert getattr(found, name) == pytest.approx(getattr(exact, name), abs=tolerance), variant


def test_very_sure_and_equal_pixels_are_counted(tmp_path):
    class_scores = torch.zeros(19, 2, 2)
    class_scores[3, 0] = torch.tensor([1e4, 6e4])
    target = np.array([[0, 0], [1, 255]], np.uint8)
    sweep = Sweep(tmp_path, write_cached(tmp_path, target, (class_scores[None],), num_classes=19))
    sweep.scan(Variant(name, "pixel", t) for name in DEFAULT_SCORES for t in (0.1, 5.0))
    assert [metrics.ap for metrics in sweep.scanned.values()] == [1] * 8


def test_max_logit_has_no_pixel_temperature_and_pixel_networks_no_queries():
    assert ("MaxLogit", "pixel") not in list_kinds(has_queries=True)
    assert ("MaxLogit", "query") in list_kinds(has_queries=True)
    assert list_kinds(True, ("NormalizedMSP",)) == [("NormalizedMSP", "query")]
    with refused("--scores: NormalizedMSP is of mask models; the cache holds logits"):
        list_kinds(False, ("NormalizedMSP",))
    with refused("--scores: LikelihoodRatio is of an outlier head; the cache's model has none"):
        list_kinds(True, ("LikelihoodRatio",))
    assert list_kinds(has_queries=False) == [("MSP", "pixel"), ("MaxEntropy", "pixel"), ("RbA", "pixel")]


def test_the_entropic_scale_of_isomax_is_a_query_temperature_of_every_table():
    assert table_temperatures("query", 10.0)[10.0] == "entropic scale"
    assert set(table_temperatures("pixel", 10.0)) == set(table_temperatures("query")) == {1.0, 0.5, 0.75, 1.1}


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_calibration_temperature_is_that_which_made_the_labels(temperature):
    generator = torch.Generator().manual_seed(0)
    class_scores = 2 * torch.randn(40_000, 5, generator=generator)
    labels = torch.multinomial((class_scores / temperature).softmax(dim=1), 1, generator=generator)[:, 0]
    assert best_likelihood(class_scores, labels) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("kind", ["masks", "pixels"])
def test_query_temperatures_that_share_masks_are_those_computed_one_by_one(tmp_path, kind):
    write_set(tmp_path, kind)
    _, found = read_frame(tmp_path / "s", 0)
    stacked = found.class_scores(WINDOW, WINDOW, (0.5, 1.0, 3.0))
    for t, class_scores in zip((0.5, 1.0, 3.0), stacked, strict=True):
        if kind == "masks":
            expected = pixel_class_scores(found.masks.float(), found.classes / t, WINDOW, 4)[0]
        else:
            expected = found.logits[0].float()
        torch.testing.assert_close(class_scores, expected, rtol=1e-5, atol=1e-6)


def test_nothing_is_chosen_on_masks_of_a_benchmark(tmp_path):
    benchmark = write_set(tmp_path, "pixels")
    mine = dataclasses.replace(benchmark, folder="t", name="Mine", is_benchmark=False)
    shutil.copytree(tmp_path / "s", tmp_path / "t")
    with refused("--validation t: shares 1 masks with S, a benchmark, on which nothing"):
        require_selection_split(tmp_path, mine, [benchmark, mine])
    require_selection_split(tmp_path, mine, [mine])
