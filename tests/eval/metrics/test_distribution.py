from __future__ import annotations

import numpy as np
import pytest

from eval.metrics.distribution import count_scores
from eval.metrics.runs import SortedRuns


def runs_of(scores: np.ndarray, pieces: int) -> SortedRuns:
    return SortedRuns([np.sort(part) for part in np.array_split(scores.astype(np.float32), pieces)])


@pytest.mark.parametrize("pieces", [1, 3])
def test_counts_are_those_of_numpy_whatever_the_pieces(pieces: int) -> None:
    rng = np.random.default_rng(0)
    normal, anomalous = rng.normal(0, 1, 5001), rng.normal(2, 1, 301)
    spread = count_scores(runs_of(anomalous, pieces), runs_of(normal, pieces))
    for counts, scores in ((spread.normal, normal), (spread.anomalous, anomalous)):
        assert counts.tolist() == np.histogram(scores.astype(np.float32), spread.edges)[0].tolist()
        assert counts.sum() == scores.size
    assert spread.edges[0] == pytest.approx(min(normal.min(), anomalous.min()))
    assert spread.gap == pytest.approx(np.median(anomalous) - np.median(normal), abs=1e-6)


def test_equal_and_infinite_scores_are_counted() -> None:
    same = count_scores(SortedRuns([np.full(3, 0.5, np.float32)]), SortedRuns([np.full(4, 0.5, np.float32)]))
    assert (same.normal.sum(), same.anomalous.sum(), same.gap) == (4, 3, 0.0)
    ends = np.array([-np.inf, 0.0, np.inf], np.float32)
    spread = count_scores(SortedRuns([ends]), SortedRuns([ends]))
    assert np.isfinite(spread.edges).all()
    assert spread.normal.sum() == 3
