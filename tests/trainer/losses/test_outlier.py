"""Outlier terms against a loop over pixels, their presets, and what they leave out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float64
from sklearn.metrics import log_loss
from torch import Tensor

from models.eomt import Prediction
from shards.batch import Batch
from shards.schema import OUTLIER_ID, VOID_ID
from trainer.losses.loss import build_loss
from trainer.losses.options import RBA_PRESETS, LossConfig, LossOptions, MaskOptions
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
from trainer.optim import sample_generators

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


def claims_of(prediction: Prediction) -> Float64[Tensor, "B Q C h w"]:
    """Return the probability that a query claims a pixel for a class, from its definition."""
    p = prediction.class_logits[-1].double().softmax(dim=-1)[..., :C]
    return p[..., None, None] * prediction.mask_logits[-1].double().sigmoid()[:, :, None]


def resize(maps: Tensor) -> Tensor:
    return F.interpolate(maps, size=(8, 8), mode="bilinear")


Formula = Callable[[Tensor], Tensor]
FORMULAS: dict[str, tuple[Formula, Formula, Formula]] = {
    "rba": (lambda x: -x.tanh().sum(1), lambda s: F.relu(s + 0.7) ** 2, lambda s: F.relu(-0.1 - s) ** 2),
    "energy": (lambda x: -x.sum(1).log(), lambda s: F.relu(s - 0.15) ** 2, lambda s: F.relu(2.3 - s) ** 2),
    "mask2anomaly": (lambda x: 1 - x.amax(1), lambda s: s**2, lambda s: F.relu(0.75 - s) ** 2),
}
"""Score of the class scores, and what it costs an inlier and an outlier."""


@pytest.mark.parametrize("name", PIXEL_TERMS)
def test_terms_are_half_the_means_over_inliers_and_outliers(name: str) -> None:
    prediction, batch, totals = make_case()
    score, inlier, outlier = FORMULAS[name]
    scores = resize(score(claims_of(prediction).sum(dim=1))[:, None])[:, 0]
    means = inlier(scores)[batch.label < C].mean(), outlier(scores)[batch.label == OUTLIER_ID].mean()
    found = PIXEL_TERMS[name](prediction, batch.label, totals)
    assert float(found) == pytest.approx(0.5 * float(sum(means)), rel=1e-4)


@pytest.mark.parametrize("outliers", [True, False], ids=["outliers", "no outliers"])
def test_class_claim_is_the_likelihood_of_independent_labels(outliers: bool) -> None:
    """Of what the labels say about 19 independent yes or no."""
    prediction, batch, _ = make_case()
    if not outliers:
        batch.label[batch.label == OUTLIER_ID] = 7
    totals = StepTotals(*count_totals([batch.label]).tolist())
    refused = (1 - claims_of(prediction)).prod(dim=1)  # B C h w
    sole = refused[:, None].repeat(1, C, 1, 1, 1)  # B y C h w
    for y in range(C):
        sole[:, y, y] = 1 - refused[:, y]
    own, none = resize(-sole.prod(dim=2).log()), resize(-refused.prod(dim=1, keepdim=True).log())[:, 0]
    own = own.gather(1, batch.label.clamp(max=C - 1).long()[:, None])[:, 0]
    costs = own[batch.label < C], none[batch.label == OUTLIER_ID]
    expected = 0.5 * sum(float(values.mean()) for values in costs if len(values))
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


def test_what_the_presets_can_and_cannot_do() -> None:
    sure, nothing = (-torch.tensor([[[claimed]]]).tanh() for claimed in (0.999, 0.001))
    terms = {name: Rba(preset=name) for name in RBA_PRESETS}  # type: ignore[arg-type]
    found = {name: (float(term.inlier(sure)), float(term.outlier(nothing))) for name, term in terms.items()}
    assert found["reachable"] == (0, 0)
    assert found["code"] == pytest.approx((float(1 + sure) ** 2, 0), rel=1e-4)
    assert found["released"] == pytest.approx((0, float(5 - nothing) ** 2), rel=1e-4)
    assert terms["released"].inlier(nothing) == 0  # inliers may do what they like


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
