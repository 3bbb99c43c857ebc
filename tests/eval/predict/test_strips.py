"""Queries and class scores read in strips against reading them whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logit
from torchvision.transforms import GaussianBlur

from eval.predict.queries import QueryOutputs, pixel_class_scores
from eval.predict.score_names import HEAD_SCORES
from eval.predict.scores import QUERY_SCORES, SCORES
from eval.predict.strips import PixelPrediction, predict_image, predict_pixels, read_queries, resize_in_strips
from eval.predict.windows import SlidingPredictor
from eval.protocol import get_protocol

SIZES = [((16, 12), (64, 48)), ((20, 6), (40, 30)), ((5, 7), (20, 28)), ((9, 9), (30, 31)), ((8, 8), (8, 8))]


def draw(size: tuple[int, int]) -> QueryOutputs:
    generator = torch.Generator().manual_seed(0)
    masks = 4 * torch.randn(2, 7, *size, generator=generator)
    classes = 3 * torch.randn(2, 7, 21, generator=generator)  # 19, a trained outlier class, "no object"
    distances = torch.rand(2, 7, 21, generator=generator)
    maps = {n: torch.randn(2, 1, size[0] // 2, size[1] // 2, generator=generator) for n in HEAD_SCORES}
    return QueryOutputs(masks, classes, 19, distances, 2.0, maps)


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
        expected = QUERY_SCORES[name](queries.resized(high))
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


WINDOW = (24, 32)
IMAGE = np.random.default_rng(0).integers(0, 256, (30, 44, 3), dtype=np.uint8)
NAMES = ("MSP", "NormalizedEntropy", "RbA", "EAM")


def convolve(windows: torch.Tensor) -> torch.Tensor:
    """A network that sees left from right: four classes and a map."""
    kernel = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return F.conv2d(windows.float() / 255, kernel, padding=1).sigmoid()


def predict(name: str, image: np.ndarray = IMAGE) -> PixelPrediction:
    return predict_image(SlidingPredictor(convolve, WINDOW), image, NAMES, get_protocol(name))


def plain(name: str, scale: float = 1.0, image: np.ndarray = IMAGE) -> np.ndarray:
    maps = SlidingPredictor(convolve, WINDOW)(image, scale)
    return (maps[4] if name == "EAM" else SCORES[name](maps[None, :4])[0]).numpy()


def log_odds(name: str, values: np.ndarray) -> np.ndarray:
    largest = {"MSP": 0.75, "NormalizedEntropy": 1.0}
    return logit(values.astype(np.float64) / largest[name]) if name in largest else values


def test_scale_one_alone_is_no_op_to_the_bit():
    for name, score in predict("native+scales-100").scores.items():
        np.testing.assert_array_equal(score, predict("native").scores[name])


def test_a_flip_of_a_flip_is_none():
    mirrored = np.ascontiguousarray(IMAGE[:, ::-1])
    found, other = predict("native+flip"), predict("native+flip", mirrored)
    np.testing.assert_array_equal(found.classes, other.classes[:, ::-1])
    for name, score in found.scores.items():
        np.testing.assert_array_equal(score, other.scores[name][:, ::-1])
        both = (plain(name) + plain(name, image=mirrored)[:, ::-1]) / 2
        np.testing.assert_allclose(score, log_odds(name, both), rtol=1e-4, atol=1e-5)
    assert (found.scores["RbA"] != predict("native").scores["RbA"]).any()


def test_scores_of_several_scales_are_averaged():
    for name, score in predict("native+scales-50-100-150").scores.items():
        mean = sum(plain(name, scale) for scale in (0.5, 1.0, 1.5)) / 3
        np.testing.assert_allclose(score, log_odds(name, mean), rtol=1e-4, atol=1e-5)


def test_smoothing_is_that_of_torchvision():
    for name, score in predict("native+smooth").scores.items():
        smoothed = GaussianBlur(7, sigma=1)(torch.from_numpy(plain(name))[None])[0].numpy()
        np.testing.assert_allclose(score, log_odds(name, smoothed), rtol=1e-4, atol=1e-5)
    assert (predict("native+smooth").classes == predict("native").classes).all()
