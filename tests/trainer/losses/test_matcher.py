from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from transformers.models.mask2former.modeling_mask2former import (
    pair_wise_dice_loss,
    pair_wise_sigmoid_cross_entropy_loss,
)

from shards.schema import VOID_ID
from trainer.losses.loss import draw_points
from trainer.losses.matcher import MatchCosts, Matching, _pairwise_bce, _pairwise_dice, match_depths
from trainer.losses.targets import find_segments
from trainer.randomness import sample_generators

COSTS = MatchCosts(mask=5.0, dice=5.0, class_=2.0)
KEYS = ("a", "b")


def match(masks: torch.Tensor, classes: torch.Tensor, label: torch.Tensor, num_points: int) -> Matching:
    """Match one depth, at the points that the loss would draw."""
    generators = sample_generators(0, 0, KEYS[: len(label)], "cpu")
    drawn = draw_points(1, [0] * len(label), num_points, generators, torch.device("cpu"))
    return match_depths([(masks, classes)], find_segments(label), COSTS, drawn.matching)


def test_pairwise_costs_equal_transformers() -> None:
    logits, target = torch.randn(9, 300) * 4, (torch.rand(5, 300) > 0.7).float()
    expected = pair_wise_sigmoid_cross_entropy_loss(logits, target)
    torch.testing.assert_close(_pairwise_bce(logits, target), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(_pairwise_dice(logits, target), pair_wise_dice_loss(logits, target))


def perfect_prediction(label: torch.Tensor, order: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries that predict the label's classes 0, 1, 2 perfectly, in the given order."""
    masks = torch.stack([(label == c).float() * 20 - 10 for c in order], dim=1)
    classes = torch.full((len(label), len(order), 20), -5.0)
    for query, c in enumerate(order):
        classes[:, query, c] = 5.0
    return masks, classes


def test_each_segment_gets_the_query_that_predicts_it() -> None:
    label = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8).repeat_interleave(4, 1).repeat_interleave(4, 2)
    masks, classes = perfect_prediction(label, order=[2, 0, 1])
    matching = match(masks, classes, label, 100)
    assert matching.segment.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert matching.query.tolist() == [[1, 2, 0, 1, 2, 0]]


def test_assignment_is_the_cheapest_one_by_a_direct_computation() -> None:
    torch.manual_seed(3)
    label = torch.randint(0, 4, (1, 16, 16), dtype=torch.uint8)
    masks, classes = torch.randn(1, 6, 16, 16) * 3, torch.randn(1, 6, 20)
    points = torch.rand(1, 64, 2, generator=sample_generators(0, 0, ("a",), "cpu")[0])
    sample = torch.nn.functional.grid_sample
    grid = (2 * points - 1)[:, None]
    logits = sample(masks, grid, align_corners=False)[0, :, 0]
    onehot = torch.stack([(label[0] == c).float() for c in range(4)])[None]
    target = sample(onehot, grid, align_corners=False)[0, :, 0]
    cost = 5 * pair_wise_sigmoid_cross_entropy_loss(logits, target) + 5 * pair_wise_dice_loss(logits, target)
    cost = cost - 2 * classes[0].softmax(-1)[:, :4]
    query, segment = linear_sum_assignment(cost.numpy())
    matching = match(masks, classes, label, 64)
    pairs = zip(matching.segment[0].tolist(), matching.query[0].tolist(), strict=True)
    assert dict(pairs) == dict(zip(segment.tolist(), query.tolist(), strict=True))


def test_nothing_to_match_more_segments_than_queries_and_costs_that_are_not_finite() -> None:
    void = torch.full((1, 8, 8), VOID_ID, dtype=torch.uint8)
    masks, classes = torch.randn(1, 2, 8, 8), torch.randn(1, 2, 20)
    assert match(masks, classes, void, 10).query.shape == (1, 0)
    crowded = torch.arange(16, dtype=torch.uint8).view(1, 4, 4)
    matching = match(masks, classes, crowded, 10)
    assert sorted(matching.query[0].tolist()) == [0, 1]
    diverged = torch.full((1, 2, 8, 8), float("nan"))
    assert match(diverged, classes, torch.zeros_like(void), 10).query.shape == (1, 1)


def test_depths_are_matched_each_for_itself_after_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second image is void, so matrices and images are not one to one."""
    label = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    label[1] = VOID_ID
    depths = [(3 * torch.randn(2, 5, 8, 8), torch.randn(2, 5, 20)) for _ in range(3)]
    points = torch.rand(3, 2, 30, 2)
    segments = find_segments(label)
    transfers = []
    to_cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: transfers.append(tensor) or to_cpu(tensor))
    together = match_depths(depths, segments, COSTS, points)
    assert [tuple(tensor.shape) for tensor in transfers] == [(3, 2, 5, 3)]
    assert together.query.shape == (3, 3)
    for i, (depth, where) in enumerate(zip(depths, points, strict=True)):
        alone = match_depths([depth], segments, COSTS, where[None])
        assert torch.equal(alone.segment[0], together.segment[i])
        assert torch.equal(alone.query[0], together.query[i])
