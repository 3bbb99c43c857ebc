"""The compared forms of softmax scores against 60 digits of mpmath: the same order, without ties."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from eval.predict.log_odds import FORMS, OF_LOGARITHM, compared_scores
from eval.predict.scores import SCORES
from eval.predict.strips import compare_at, predict_classes, predict_pixels

SCALES = [1e-2, 0.3, 1.0, 30.0, 1e4]


def draw(scale: float, count: int = 40, classes: int = 19, seed: int = 0) -> torch.Tensor:
    """Evidence of `count` pixels in a row: in [0, scale] as a mask model's, or logits for scales above 1."""
    generator = torch.Generator().manual_seed(seed)
    make = torch.rand if scale <= 1 else torch.randn
    return scale * make(1, classes, 1, count, generator=generator)


def exact(name: str, class_scores: torch.Tensor) -> np.ndarray:
    """Each form from its definition, one pixel at a time."""
    with mpmath.workdps(60):
        pixels = class_scores[0, :, 0].T.double().tolist()
        if name in OF_LOGARITHM:
            pixels = [[mpmath.log(max(value, 1e-30)) for value in values] for values in pixels]
            name = {"NormalizedMSP": "MSP", "NormalizedEntropy": "MaxEntropy"}[name]
        return np.array([float(_exact(name, sorted(values, reverse=True))) for values in pixels])


def _exact(name: str, values: list[float]) -> mpmath.mpf:
    weights = [mpmath.exp(mpmath.mpf(value) - values[0]) for value in values]
    others, num = mpmath.fsum(weights[1:]), len(weights)
    if name == "Energy":
        return -(values[0] + mpmath.log1p(others) - mpmath.log(num))
    if name == "MSP":
        share = others / (num - 1)
    else:
        log_p = [mpmath.mpf(value) - values[0] - mpmath.log1p(others) for value in values]
        share = -mpmath.fsum(mpmath.exp(x) * x for x in log_p) / mpmath.log(num)
    return mpmath.log(share) - mpmath.log1p(-share)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", FORMS)
def test_forms_equal_their_definitions_and_keep_the_order(name, scale):
    class_scores = draw(scale).abs() if name in OF_LOGARITHM else draw(scale)
    expected, got = exact(name, class_scores), compared_scores(class_scores, [name])[name][0, 0].numpy()
    # log C - H is a difference where all classes are nearly equal, see eval/predict/log_odds.py
    is_near = name == "MaxEntropy" and scale < 1
    tolerance = 1e-5 / scale if is_near else 1e-6 * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)
    assert (np.diff(got[np.argsort(expected)]) >= -2 * tolerance).all()
    assert len(np.unique(got)) == len(np.unique(expected))


@pytest.mark.parametrize(
    ("name", "scale"),
    [("MSP", 0.05), ("MaxEntropy", 0.05), ("Energy", 0.05), ("MSP", 200), ("MaxEntropy", 200)],
)
def test_pixels_that_tie_in_the_plain_score_are_told_apart(name, scale):
    class_scores = draw(scale, count=90_000)
    plain, form = SCORES[name](class_scores).unique(), compared_scores(class_scores, [name])[name].unique()
    assert len(form) > 1.5 * len(plain)


@pytest.mark.parametrize("name", FORMS)
def test_half_precision_keeps_the_average_precision(name):
    """Evidence as EoMT's: one class near 1 where the pixel is known, none above a half where it is not."""
    generator = torch.Generator().manual_seed(1)
    truth = torch.rand(30_000, generator=generator) < 0.05
    class_scores = 0.02 * torch.rand(1, 19, 1, 30_000, generator=generator)
    class_scores[0, 3, 0] += torch.where(truth, 0.5, 0.8) + 0.15 * torch.randn(30_000, generator=generator)
    class_scores.clamp_(min=0)
    form, plain = compared_scores(class_scores, [name])[name], SCORES[name](class_scores)
    exact_ap, ours, theirs = (
        average_precision_score(truth, score[0, 0].double()) for score in (form, form.half(), plain.half())
    )
    assert abs(ours - exact_ap) < 2e-3
    if name not in OF_LOGARITHM:  # whose values are not crowded here
        assert abs(theirs - exact_ap) > 2 * abs(ours - exact_ap)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_forms_are_finite(scale):
    class_scores = draw(scale)
    class_scores[..., 0] = scale  # all classes equal
    for name, form in compared_scores(class_scores.abs(), list(FORMS)).items():
        assert form.isfinite().all(), name


def test_the_pass_returns_the_compared_forms():
    class_scores = draw(1.0, count=90).reshape(19, 9, 10).repeat(1, 8, 1)
    predicted = predict_pixels(class_scores, ["RbA", *FORMS, "MaxLogit"])
    for name, found in predicted.scores.items():
        whole = compared_scores(class_scores[None], [name])[name]
        np.testing.assert_allclose(found, whole[0], rtol=1e-5)
        np.testing.assert_array_equal(found, compare_at(class_scores, [name], 1.0)[name])
    np.testing.assert_array_equal(predicted.classes, class_scores.argmax(dim=0))


@pytest.mark.parametrize("name", FORMS)
def test_a_sure_pixel_changes_none_of_its_strip(name):
    """It makes the whole strip take the other way to the same sums."""
    class_scores = draw(1.0)
    sure = torch.cat([class_scores, draw(1e4, count=1)], dim=3)
    alone, together = (
        compared_scores(each, [name])[name][0, 0, :40].numpy() for each in (class_scores, sure.abs())
    )
    np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_the_first_of_equal_classes_is_predicted():
    class_scores = torch.randint(0, 4, (19, 30, 30), generator=torch.Generator().manual_seed(0)).float()
    np.testing.assert_array_equal(predict_classes(class_scores), class_scores.numpy().argmax(axis=0))
