"""Outlier terms against a loop over pixels, their presets, and what they leave out."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss

from eval.predict.queries import QueryOutputs
from models.eomt import Prediction
from shards.batch import Batch
from shards.schema import OUTLIER_ID, VOID_ID
from trainer.losses.loss import build_loss
from trainer.losses.options import LossConfig, LossOptions, MaskOptions
from trainer.losses.outlier import (
    OUTLIER_TERMS,
    ClassClaim,
    Energy,
    Mask2Anomaly,
    OutlierTerm,
    PixelTerm,
    Rba,
)
from trainer.losses.targets import StepTotals, count_totals, weigh_outliers
from trainer.randomness import sample_generators

Q, C = 6, 19
TERMS: dict[str, OutlierTerm] = {name: term() for name, term in OUTLIER_TERMS.items()}
PIXEL_TERMS: dict[str, PixelTerm] = {term.name: term for term in (Rba(), Energy(), Mask2Anomaly())}


def make_case(depths: int = 1, columns: int = C + 1) -> tuple[Prediction, Batch, StepTotals]:
    generator = torch.Generator().manual_seed(4)
    masks = tuple(2 * torch.randn(2, Q, 4, 4, generator=generator) for _ in range(depths))
    classes = tuple(3 * torch.randn(2, Q, columns, generator=generator) for _ in range(depths))
    label = torch.randint(0, C, (2, 8, 8), generator=generator).to(torch.uint8)
    label[:, :2], label[0, 4:, 3:] = VOID_ID, OUTLIER_ID
    batch = Batch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), label, ("a", "b"))
    return Prediction(masks, classes), batch, StepTotals(*count_totals([label]).tolist())


def class_scores_of_pixel(prediction: Prediction, image: int, row: int, column: int) -> np.ndarray:
    class_scores = np.zeros(C)
    for q in range(Q):
        p = scipy.special.softmax(prediction.class_logits[-1][image, q].double().numpy())
        class_scores += p[:C] * scipy.special.expit(float(prediction.mask_logits[-1][image, q, row, column]))
    return class_scores


def score_of_pixel(name: str, class_scores: np.ndarray) -> float:
    scores = {"rba": -np.tanh(class_scores).sum(), "energy": -np.log(class_scores.sum())}
    return scores.get(name, 1 - class_scores.max())


def penalties_of_pixel(name: str, score: float) -> tuple[float, float]:
    """As an inlier and as an outlier."""
    if name == "rba":
        return max(0.0, score + 0.7) ** 2, max(0.0, -0.1 - score) ** 2
    if name == "energy":
        return max(0.0, score - 0.15) ** 2, max(0.0, 2.3 - score) ** 2
    return score**2, max(0.0, 0.75 - score) ** 2


@pytest.mark.parametrize("name", PIXEL_TERMS)
def test_terms_equal_a_loop_over_pixels(name: str) -> None:
    prediction, batch, totals = make_case()
    score = torch.zeros(2, 4, 4)
    for b, row, column in np.ndindex(2, 4, 4):
        score[b, row, column] = score_of_pixel(name, class_scores_of_pixel(prediction, b, row, column))
    score = F.interpolate(score[:, None], size=(8, 8), mode="bilinear")[:, 0]
    inlier, outlier = [], []
    for value, label in zip(score.flatten().tolist(), batch.label.flatten().tolist(), strict=True):
        as_inlier, as_outlier = penalties_of_pixel(name, value)
        if label < C:
            inlier.append(as_inlier)
        elif label == OUTLIER_ID:
            outlier.append(as_outlier)
    expected = 0.5 * (sum(inlier) / len(inlier) + sum(outlier) / len(outlier))
    assert float(PIXEL_TERMS[name](prediction, batch.label, totals)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("outliers", [True, False], ids=["outliers", "no outliers"])
def test_class_claim_equals_a_loop_over_pixels(outliers: bool) -> None:
    """The likelihood of what the labels say about 19 independent yes or no, from their definition."""
    prediction, batch, _ = make_case()
    if not outliers:
        batch.label[batch.label == OUTLIER_ID] = 7
    totals = StepTotals(*count_totals([batch.label]).tolist())
    p = prediction.class_logits[-1].double().softmax(dim=-1)[..., :C]
    claims = p[..., None, None] * prediction.mask_logits[-1].double().sigmoid()[:, :, None]  # B Q C h w
    refused = (1 - claims).prod(dim=1)
    sole = torch.stack([refused.clone() for _ in range(C)], dim=1)  # B y C h w
    for y in range(C):
        sole[:, y, y] = 1 - refused[:, y]
    costs = -torch.cat([sole.prod(dim=2), refused.prod(dim=1, keepdim=True)], dim=1).log()
    costs = F.interpolate(costs, size=(8, 8), mode="bilinear")
    found: dict[bool, list[float]] = {True: [], False: []}
    for b, row, column in np.ndindex(2, 8, 8):
        if (label := int(batch.label[b, row, column])) != VOID_ID:
            found[label == OUTLIER_ID].append(
                float(costs[b, -1 if label == OUTLIER_ID else label, row, column])
            )
    expected = 0.5 * sum(sum(values) / len(values) for values in found.values() if values)
    assert float(ClassClaim()(prediction, batch.label, totals)) == pytest.approx(expected, rel=1e-5)


def test_the_likelihood_ratio_weighs_outliers_as_much_as_inliers() -> None:
    """Against scikit-learn's log loss of each kind; void has no say, and a kind without pixels is 0."""
    prediction, batch, totals = make_case()
    logits = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(5)).requires_grad_()
    prediction = prediction._replace(outlier_maps={"LikelihoodRatio": logits})
    p = F.interpolate(logits, size=(8, 8), mode="bilinear")[:, 0].sigmoid().detach().double().numpy()
    label = batch.label.numpy()
    means = [
        log_loss(label[of] == OUTLIER_ID, p[of], labels=[False, True])
        for of in (label < C, label == OUTLIER_ID)
    ]
    loss = build_loss(LossConfig(name="likelihood_ratio"))
    terms = loss(prediction, batch, totals, [])
    assert terms.keys() == {"likelihood_ratio"}
    assert float(terms["likelihood_ratio"].detach()) == pytest.approx(0.5 * sum(means), rel=1e-5)
    for kind in (3, OUTLIER_ID, VOID_ID):
        batch.label[:] = kind
        totals = StepTotals(*count_totals([batch.label]).tolist())
        value = loss(prediction, batch, totals, [])["likelihood_ratio"]
        (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
        assert gradient.isfinite().all()
        assert bool(gradient.any()) is (kind != VOID_ID)


@pytest.mark.parametrize("name", TERMS)
def test_void_and_other_images_pixels_have_no_say(name: str) -> None:
    prediction, batch, totals = make_case()
    masks = prediction.mask_logits[0].clone()
    masks[:, :, 0] += 5.0  # reaches rows 0..2 of the labels; 0 and 1 are void
    batch.label[:, 2] = VOID_ID
    changed = Prediction((masks,), prediction.class_logits)
    values = (TERMS[name](given, batch.label, totals) for given in (changed, prediction))
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("name", TERMS)
def test_layers_counts_depths_from_the_last(name: str) -> None:
    prediction, batch, totals = make_case(depths=3)

    def value(layers: int, *depths: int) -> float:
        chosen = Prediction(*(tuple(part[d] for d in depths) for part in prediction[:2]))
        return float(dataclasses.replace(TERMS[name], layers=layers)(chosen, batch.label, totals))

    assert value(1, 0, 1, 2) == pytest.approx(value(0, 2))
    assert value(2, 0, 1, 2) == pytest.approx(value(0, 1) + value(0, 2))
    assert value(0, 0, 1, 2) == pytest.approx(value(0, 0) + value(0, 1) + value(0, 2))


@pytest.mark.parametrize("name", PIXEL_TERMS)
def test_terms_push_outliers_up_and_inliers_down(name: str) -> None:
    """A gradient step moves the scores of half-claimed pixels, where neither kind is satisfied."""
    prediction, batch, _ = make_case()
    masks = torch.full_like(prediction.mask_logits[0], -2.3).requires_grad_()
    classes = torch.zeros_like(prediction.class_logits[0])
    classes[..., 5] = 9.0  # L = 6 sigmoid(-2.3) = 0.55
    for kind in (OUTLIER_ID, 3):
        batch.label[:] = kind
        totals = StepTotals(*count_totals([batch.label]).tolist())
        value = PIXEL_TERMS[name](Prediction((masks,), (classes,)), batch.label, totals)
        (gradient,) = torch.autograd.grad(value, masks)
        moved = masks.detach() - 0.1 * gradient / gradient.abs().max()
        before, after = (
            PIXEL_TERMS[name].score(QueryOutputs(m, classes, C)) for m in (masks.detach(), moved)
        )
        change = (after - before).mean()
        assert change > 0 if kind == OUTLIER_ID else change < 0


@pytest.mark.parametrize("name", TERMS)
def test_a_trained_outlier_class_is_no_class_of_the_closed_set(name: str) -> None:
    """All mass on column 19 claims nothing: as if on "no object"."""
    prediction, batch, totals = make_case(columns=C + 2)
    classes = prediction.class_logits[0].clone()
    classes[..., C] += 20.0
    on_no_object = classes.clone()
    on_no_object[..., [C, C + 1]] = classes[..., [C + 1, C]]
    changed = (Prediction(prediction.mask_logits, (logits,)) for logits in (classes, on_no_object))
    torch.testing.assert_close(*(TERMS[name](given, batch.label, totals) for given in changed))


def rba_pixel(class_scores: float, preset: str, label: int) -> float:
    """The term of one pixel whose one class has this class scores; other classes have none."""
    masks = torch.full((1, 1, 1, 1), math.log(class_scores / (1 - class_scores)))
    classes = torch.full((1, 1, C + 1), -100.0)
    classes[..., 0] = 0.0
    labels = torch.full((1, 1, 1), label, dtype=torch.uint8)
    totals = StepTotals(*count_totals([labels]).tolist())
    return float(Rba(preset=preset)(Prediction((masks,), (classes,)), labels, totals))  # type: ignore[arg-type]


def test_what_the_presets_can_and_cannot_do() -> None:
    sure, nothing = 0.999, 0.001
    assert rba_pixel(sure, "reachable", 0) == 0.0
    assert rba_pixel(nothing, "reachable", OUTLIER_ID) == 0.0
    assert rba_pixel(sure, "code", 0) == pytest.approx(0.5 * (1 - math.tanh(sure)) ** 2, rel=1e-4)
    assert rba_pixel(nothing, "code", OUTLIER_ID) == 0.0
    assert rba_pixel(nothing, "released", 0) == 0.0  # inliers may do what they like
    assert rba_pixel(nothing, "released", OUTLIER_ID) == pytest.approx(0.5 * (5 + math.tanh(nothing)) ** 2)


def test_thresholds_of_a_preset_can_be_replaced_one_by_one() -> None:
    assert Rba().thresholds == (-0.7, -0.1)
    assert Rba(preset="released").thresholds == (0.0, 5.0)
    assert Rba(preset="released", outlier_lower=-0.2).thresholds == (0.0, -0.2)
    assert Rba(preset="code", inlier_upper=0.0).thresholds == (0.0, -0.1)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_pixels_of_small_objects_weigh_more(exponent: float) -> None:
    """Two objects, of 9 pixels and of 1; the mean is over their areas to the power of 1 - exponent."""
    label = torch.zeros(2, 8, 8, dtype=torch.uint8)
    label[0, :3, :3] = label[1, 6, 6] = OUTLIER_ID
    weights = weigh_outliers(label, exponent)
    assert weights[label != OUTLIER_ID].sum() == 0
    expected = torch.tensor([9 ** (1 - exponent), 1.0])
    torch.testing.assert_close(weights.sum(dim=(1, 2)), expected)
    totals = StepTotals(*count_totals([label[:1], label[1:]], exponent).tolist())
    assert totals.outlier_pixels == pytest.approx(float(expected.sum()), rel=1e-6)
    cost = torch.tensor([2.0, 5.0])[:, None, None].expand(2, 8, 8)
    mean = float((cost * weights).sum()) / totals.outlier_pixels
    assert mean == pytest.approx((2 * 9 ** (1 - exponent) + 5) / (9 ** (1 - exponent) + 1), rel=1e-6)


def test_the_exponent_reaches_the_term_and_its_totals() -> None:
    prediction, batch, plain = make_case()
    batch.label[1, 6, 6] = OUTLIER_ID
    config = LossConfig(
        outlier=("rba",), area_exponent=1.0, options=LossOptions(mask=MaskOptions(num_points=8))
    )
    loss = build_loss(config)
    totals = StepTotals(*count_totals([batch.label], loss.area_exponent).tolist())
    assert totals.outlier_pixels == pytest.approx(2)
    generators = sample_generators(0, 0, batch.keys, "cpu")
    found = loss(prediction, batch, totals, generators)["rba"]
    weights = weigh_outliers(batch.label, 1.0)
    torch.testing.assert_close(found, Rba()(prediction, batch.label, totals, weights))
    assert not torch.isclose(found, Rba()(prediction, batch.label, plain))
