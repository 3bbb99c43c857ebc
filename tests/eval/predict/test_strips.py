"""Queries and class scores read in strips against reading them whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eval.predict.queries import QueryOutputs, pixel_class_scores
from eval.predict.scores import QUERY_SCORES, SCORES
from eval.predict.strips import predict_pixels, read_queries, resize_in_strips

SIZES = [((16, 12), (64, 48)), ((20, 6), (40, 30)), ((5, 7), (20, 28)), ((9, 9), (30, 31)), ((8, 8), (8, 8))]


def draw(size: tuple[int, int]) -> QueryOutputs:
    generator = torch.Generator().manual_seed(0)
    masks = 4 * torch.randn(2, 7, *size, generator=generator)
    classes = 3 * torch.randn(2, 7, 21, generator=generator)  # 19, a trained outlier class, "no object"
    return QueryOutputs(masks, classes, 19, torch.rand(2, 7, 21, generator=generator), 2.0)


@pytest.mark.parametrize(("low", "high"), SIZES)
def test_strips_are_the_rows_of_the_whole_to_the_last_bit(low, high):
    masks = draw(low).mask_logits
    whole = F.interpolate(masks, size=high, mode="bilinear", align_corners=False)
    joined = torch.full_like(whole, torch.nan)
    for rows, strip in resize_in_strips(masks, high):
        joined[..., rows, :] = strip
    assert torch.equal(joined, whole)


@pytest.mark.parametrize(("low", "high"), SIZES)
def test_all_scores_of_the_pass_equal_their_functions(low, high):
    queries = draw(low)
    names = ("UNO", "MSP", *(name for name in QUERY_SCORES if name != "UNO"))
    answer = read_queries(queries, high, names)
    class_scores = pixel_class_scores(queries.mask_logits, queries.class_logits, high, 19)
    torch.testing.assert_close(answer[:, :19], class_scores, rtol=1e-6, atol=1e-7)
    for i, name in enumerate(name for name in names if name in QUERY_SCORES):
        expected = QUERY_SCORES[name](queries, high)
        torch.testing.assert_close(answer[:, 19 + i], expected, rtol=1e-6, atol=1e-6)


def test_maps_of_query_scores_stand_behind_the_class_scores():
    maps = torch.randn(5, 70, 9, generator=torch.Generator().manual_seed(0))
    predicted = predict_pixels(maps, ["UNO", "RbA", "EAM"])
    assert list(predicted.scores) == ["UNO", "RbA", "EAM"]
    np.testing.assert_array_equal(predicted.scores["UNO"], maps[3])
    np.testing.assert_array_equal(predicted.scores["EAM"], maps[4])
    expected = SCORES["RbA"](maps[None, :3])[0]
    np.testing.assert_allclose(predicted.scores["RbA"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(predicted.classes, maps[:3].argmax(dim=0))
