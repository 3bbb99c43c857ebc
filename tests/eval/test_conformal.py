"""Thresholds with a bounded risk: cases by hand, and the promises over random splits of kept counts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.conformal import RiskBound, choose_threshold, p_value


def test_in_the_mean_one_more_frame_is_lost_whole():
    bound = RiskBound(0.05)
    assert bound.least_frames() == 19
    assert bound.allows(0.0, 19)
    assert not bound.allows(0.0, 18)
    assert bound.allows(4 / 99, 99)  # (4 + 1) / 100
    assert not bound.allows(4.1 / 99, 99)


def test_with_confidence_frames_without_a_loss_are_a_power():
    bound = RiskBound(0.05, 0.1)
    assert bound.least_frames() == 45  # 0.95 ** 45 = 0.0994
    assert p_value(0.0, 45, 0.05) == pytest.approx(0.95**45)
    assert (bound.allows(0.0, 45), bound.allows(0.0, 44)) == (True, False)


def test_the_p_value_is_the_smaller_of_two():
    # 100 frames, mean loss 0.02, alpha 0.1: by hand
    divergence = 0.02 * math.log(0.02 / 0.1) + 0.98 * math.log(0.98 / 0.9)
    hoeffding = math.exp(-100 * divergence)
    tail = sum(math.comb(100, k) * 0.1**k * 0.9 ** (100 - k) for k in range(3))
    assert p_value(0.02, 100, 0.1) == pytest.approx(min(hoeffding, math.e * tail))
    assert p_value(0.1, 100, 0.1) == 1
    values = [p_value(mean, 100, 0.1) for mean in np.linspace(0, 0.1, 41)]
    assert values == sorted(values)


@pytest.mark.parametrize("delta", [None, 0.3, 0.01])
@pytest.mark.parametrize("alpha", [0.5, 0.1, 0.01, 0.003])
def test_the_number_of_frames_is_the_least(alpha, delta):
    bound = RiskBound(alpha, delta)
    least = bound.least_frames()
    assert bound.allows(0.0, least)
    assert least == 1 or not bound.allows(0.0, least - 1)


def test_the_threshold_is_the_largest_allowed():
    # Twenty frames of one anomalous pixel each, with scores 1 .. 20: at 1 and above, one is missed.
    scores = np.arange(1, 21)

    def mean_loss(threshold: float) -> float:
        return float((scores <= threshold).mean())

    ends = (0.0, 20.0)
    found = choose_threshold(mean_loss, 20, RiskBound(0.25), ends)  # (l + 1) / 21 <= 0.25: four may be missed
    assert found == pytest.approx(5, abs=1e-5)
    assert found < 5
    assert choose_threshold(mean_loss, 20, RiskBound(0.04), ends) is None  # 1 / 21 > 0.04
    assert choose_threshold(lambda _: 0.0, 20, RiskBound(0.25), ends) == 20


FRAMES, THRESHOLDS, CALIBRATED, SPLITS = 1500, 200, 120, 1000
ALPHA, DELTA = 0.1, 0.1


@pytest.fixture(scope="module")
def kept_losses() -> np.ndarray:
    """Return the share of missed pixels of each frame at each threshold, (FRAMES, THRESHOLDS).

    Frames are easy or hard: of a few, nearly everything is missed at once, as of real sets.
    """
    generator = np.random.default_rng(0)
    middle = np.where(generator.random(FRAMES) < 0.1, 0.15, 0.7) + 0.1 * generator.normal(size=FRAMES)
    width = generator.uniform(0.01, 0.2, FRAMES)
    grid = np.linspace(0, 1, THRESHOLDS)
    losses = 1 / (1 + np.exp((middle[:, None] - grid) / width[:, None]))
    losses -= losses[:, :1]
    assert (np.diff(losses, axis=1) >= 0).all()
    return losses


@pytest.mark.parametrize("delta", [None, DELTA])
def test_promises_hold_over_random_splits(kept_losses, delta):
    bound, generator = RiskBound(ALPHA, delta), np.random.default_rng(1)
    sums, risks = kept_losses.sum(axis=0), []
    for _ in range(SPLITS):
        mine = kept_losses[generator.choice(FRAMES, CALIBRATED, replace=False)].sum(axis=0)
        means = (mine / CALIBRATED).tolist()
        ends = (0.0, THRESHOLDS - 1.0)
        chosen = choose_threshold(lambda t, means=means: means[int(t)], CALIBRATED, bound, ends)
        assert chosen is not None
        risks.append((sums - mine)[int(chosen)] / (FRAMES - CALIBRATED))
    if delta is None:
        assert np.mean(risks) <= ALPHA + 0.005
        assert np.mean(risks) > ALPHA - 0.03  # and it is no empty promise
    else:
        assert np.mean(np.array(risks) > ALPHA) <= delta + 0.01
        assert np.mean(risks) > ALPHA / 3
