"""The torchmetrics of one process and of several, beside our own curve, bit for bit."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("torchmetrics")

from eval.metrics.curve import FPR_RULES, ImageScores, exact_curve
from eval.metrics.torchmetric import NAMES, PixelAnomaly
from shards.errors import InputError
from tests.support.forked import run_ranks


def draw(count: int = 6) -> tuple[Tensor, Tensor]:
    """Draw scores with many ties, and labels: void, an image without anomaly, and one of nothing else."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn((count, 20, 30), generator=generator).round(decimals=2)
    target = torch.randint(0, 3, scores.shape, generator=generator).where(scores < 1.5, 1)
    target[target == 2] = 255
    target[0][target[0] == 1] = 0
    target[1] = 1
    return scores, target


def expected(scores: Tensor, target: Tensor, fpr_rule: str = "first-at-least") -> dict[str, float]:
    images = [
        ImageScores(*(np.sort(image[label == value]) for value in (1, 0)))
        for image, label in zip(scores.numpy(), target.numpy(), strict=True)
    ]
    metrics = exact_curve(images).metrics(fpr_rule)
    return {name: getattr(metrics, name) for name in NAMES}


def read(metric: PixelAnomaly) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize("fpr_rule", FPR_RULES)
def test_batches_give_the_bits_of_the_curve(fpr_rule: str) -> None:
    scores, target = draw()
    metric = PixelAnomaly(fpr_rule)
    for batch in (slice(0, 1), slice(1, 4), slice(4, 6)):
        metric.update(scores[batch], target[batch])
    assert read(metric) == expected(scores, target, fpr_rule)
    metric.reset()
    metric.update(scores[3:], target[3:])
    assert read(metric) == expected(scores[3:], target[3:], fpr_rule)


def test_a_state_is_saved_and_merged() -> None:
    scores, target = draw()
    first, second = PixelAnomaly(), PixelAnomaly()
    first.update(scores[:2], target[:2])
    second.update(scores[2:].double(), target[2:])
    merged = pickle.loads(pickle.dumps(second))
    merged.merge_state(first)
    assert read(merged) == expected(scores, target)


def share(arguments: Sequence[str]) -> None:
    """Update one of three processes with every third image, the last with none, and write what all get."""
    torch.distributed.init_process_group("gloo")
    (scores, target), metric, rank = draw(4), PixelAnomaly(), torch.distributed.get_rank()
    if rank < 2:
        metric.update(scores[rank::2], target[rank::2])
    Path(arguments[0], f"{rank}.txt").write_text(repr(read(metric)))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_that_meet_give_the_bits_of_one(tmp_path: Path) -> None:
    run_ranks(share, [str(tmp_path)], tmp_path / "said", ranks=3)
    for rank in range(3):
        assert (tmp_path / f"{rank}.txt").read_text() == repr(expected(*draw(4)))


def test_a_class_without_pixels_is_no_number_and_bad_input_is_refused() -> None:
    scores, target = draw()
    metric = PixelAnomaly()
    assert np.isnan(list(metric(scores[:1], target[:1]).values())).all()  # an image without anomaly
    metric(scores[1:], target[1:])
    assert read(metric) == expected(scores, target)
    with pytest.raises(InputError, match=r"scores of shape \(6, 20, 30\), but labels of \(6, 10, 30\)"):
        metric.update(scores, target[:, :10])
    scores[2, 0, 0], target[2, 0, 0] = float("nan"), 0
    metric.update(scores, target)
    with pytest.raises(InputError, match="1 of .* scores of normal pixels are NaN"):
        metric.compute()
