"""Scores against scipy, hand-worked pixels and their own limits."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F

from eval.predict.queries import QueryOutputs, class_claims, pixel_class_scores
from eval.predict.score_names import HEAD_SCORES, NEEDS, require_scores
from eval.predict.scores import QUERY_SCORES, SCORES, msp, rba
from shards.errors import InputError


def logits(scale: float = 3.0, num_classes: int = 19) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return scale * torch.randn(2, num_classes, 4, 5, generator=generator)


def test_msp_tells_sure_pixels_apart():
    surer = torch.tensor([20.0, 30.0, 40.0])
    values = torch.stack([surer, torch.zeros(3)]).reshape(1, 2, 1, 3)
    np.testing.assert_allclose(msp(values).flatten(), np.exp(-surer.double().numpy()), rtol=1e-5)


@pytest.mark.parametrize("name", SCORES)
def test_a_pixel_without_class_scores_is_the_most_anomalous(name):
    values = torch.tensor([[1.0, 0, 0], [0.3, 0.3, 0], [0, 0, 0]]).T.reshape(1, 3, 1, 3)
    sure, torn, empty = SCORES[name](values).flatten()
    assert empty > sure
    assert empty >= torn


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_scores_and_gradients_stay_finite_for_extreme_logits(name, dtype):
    values = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, 1e4]], dtype=dtype)
    values = values.T.reshape(1, 3, 1, 3).requires_grad_()
    score = SCORES[name](values)
    score.sum().backward()
    assert score.dtype == torch.float32
    assert score.isfinite().all()
    assert values.grad is not None
    assert values.grad.isfinite().all()


def entropy_of_shares(x: torch.Tensor) -> torch.Tensor:
    p = x / x.sum(1, keepdim=True)
    return -(p * p.log()).sum(1)


PLAIN = {
    "MSP": lambda x: 1 - x.softmax(1).amax(1),
    "MaxLogit": lambda x: -x.amax(1),
    "MaxEntropy": lambda x: torch.distributions.Categorical(logits=x.movedim(1, -1)).entropy() / math.log(19),
    "RbA": lambda x: -x.tanh().sum(1),
    "Energy": lambda x: -x.exp().sum(1).log(),
    "NormalizedMSP": lambda x: 1 - x.amax(1) / x.sum(1),
    "NormalizedEntropy": lambda x: entropy_of_shares(x) / math.log(19),
    "EntropyLogMax": lambda x: entropy_of_shares(x) - x.amax(1).log(),
}
"""The formulas as papers write them, good enough in float64."""


@pytest.mark.parametrize("name", SCORES)
def test_scores_and_gradients_match_the_plain_formula_in_float64(name):
    given = logits().abs() if NEEDS[name] else logits()  # evidence is never negative
    values, exact = given.requires_grad_(), given.detach().double().requires_grad_()
    score, expected = SCORES[name](values), PLAIN[name](exact)
    score.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(score, expected, check_dtype=False, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(values.grad, exact.grad, check_dtype=False, rtol=1e-4, atol=1e-6)


def test_normalised_scores_do_not_depend_on_how_much_is_claimed():
    evidence = torch.rand(1, 19, 4, 5, generator=torch.Generator().manual_seed(3))
    for name in ("NormalizedMSP", "NormalizedEntropy"):
        torch.testing.assert_close(SCORES[name](1e-6 * evidence), SCORES[name](evidence))
    empty = torch.zeros(1, 19, 1, 1)
    assert float(SCORES["NormalizedEntropy"](empty)) == pytest.approx(1)
    assert float(SCORES["NormalizedMSP"](empty)) == pytest.approx(18 / 19)


def test_class_scores_is_the_sum_over_queries_without_no_object():
    masks = torch.tensor([[[[0.0]], [[2.0]]]])
    classes = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 3.0]]])
    p = scipy.special.softmax(classes.numpy(), axis=-1)
    by_hand = p[0, 0, :2] * 0.5 + p[0, 1, :2] * scipy.special.expit(2.0)
    np.testing.assert_allclose(pixel_class_scores(masks, classes).flatten(), by_hand, rtol=1e-6)


def test_mask_logits_are_resized_before_the_sigmoid():
    masks = torch.tensor([-8.0, 8.0]).reshape(1, 1, 1, 2)
    classes = torch.tensor([[[50.0, 0.0]]])  # all on the one class
    resized = pixel_class_scores(masks, classes, (1, 4)).flatten()
    np.testing.assert_allclose(resized, scipy.special.expit([-8.0, -4.0, 4.0, 8.0]), rtol=1e-5)


def test_class_scores_inside_autocast_equals_float32():
    masks, classes = torch.randn(1, 7, 4, 4), torch.randn(1, 7, 5)
    expected = torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], masks.sigmoid())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        class_scores = pixel_class_scores(masks, classes)
        scores = [score(class_scores) for score in SCORES.values()]
    assert torch.equal(class_scores, expected)
    assert all(score.dtype == torch.float32 for score in scores)


def test_class_scores_stays_finite_for_extreme_bf16_logits_and_passes_gradients():
    masks = torch.tensor([1e4, -1e4, 0.0]).reshape(1, 1, 1, 3).bfloat16().requires_grad_()
    classes = torch.tensor([[[1e4, -1e4, 0.0]]]).bfloat16().requires_grad_()
    class_scores = pixel_class_scores(masks, classes, (2, 6))
    F.relu(class_scores).sum().backward()
    assert class_scores.isfinite().all()
    for given in (masks, classes):
        assert given.grad is not None
        assert given.grad.isfinite().all()


def make_queries(scale: float = 2.0, dtype: torch.dtype = torch.float32) -> QueryOutputs:
    """Four classes, a trained outlier class, "no object"; prototypes with distance scale 1.5."""
    generator = torch.Generator().manual_seed(8)
    masks = scale * torch.randn(2, 7, 3, 4, generator=generator)
    classes = scale * torch.randn(2, 7, 6, generator=generator)
    distances = 3 * torch.rand(2, 7, 6, generator=generator)
    maps = {n: scale * torch.randn(2, 1, 3, 4, generator=generator).to(dtype) for n in HEAD_SCORES}
    parts = (classes.to(dtype), 4, distances.to(dtype), 3.0, maps)
    return QueryOutputs(masks.to(dtype), *parts)


def sole_claim_of_pixel(claims: list[float]) -> float:
    """Go through all outcomes of independent claims, and add those in which exactly one is made."""
    one = 0.0
    for outcome in itertools.product((False, True), repeat=len(claims)):
        if sum(outcome) == 1:
            one += math.prod(c if made else 1 - c for c, made in zip(claims, outcome, strict=True))
    return -math.log(one)


def class_claim_of_pixel(claims: np.ndarray) -> float:
    """-log of the likeliest case that one class claims the pixel and no other; claims are (Q, C)."""
    refused = np.prod(1 - claims, axis=0)
    return -np.log(max((1 - refused[c]) * np.prod(np.delete(refused, c)) for c in range(len(refused))))


def score_of_pixel(name: str, queries: QueryOutputs, image: int, row: int, column: int) -> float:
    """The formulas as their sources write them, one pixel at a time, in float64."""
    masks = scipy.special.expit(queries.mask_logits[image, :, row, column].double().numpy())
    p = scipy.special.softmax(queries.class_logits[image].double().numpy(), axis=-1)
    assert queries.class_distances is not None
    distances = queries.class_distances[image].double().numpy()
    known, outlier = p[:, :4], p[:, 4]
    if "Claim" in name:
        evidence = (masks[:, None] * known).sum(axis=0)
        entropy = scipy.stats.entropy(evidence / evidence.sum()) if name.endswith("Entropy") else 0.0
        if name.startswith("SoleClaim"):
            return sole_claim_of_pixel((masks * known.sum(axis=1)).tolist()) + entropy
        return class_claim_of_pixel(masks[:, None] * known) + entropy
    terms = {
        "MaskEnergy": masks * known.sum(axis=1),
        "EAM": masks * known.max(axis=1),
        "UNO": masks * (known.max(axis=1) - outlier),
        "MinDistance": masks * distances[:, :4].min(axis=1) + (1 - masks) * 3.0,
    }[name]
    total = terms.sum()
    return {"MaskEnergy": -np.log(total), "EAM": 1 - total, "UNO": -total, "MinDistance": terms.min()}[name]


OF_QUERIES = [name for name in QUERY_SCORES if name not in HEAD_SCORES]


@pytest.mark.parametrize("name", OF_QUERIES)
def test_query_scores_equal_a_loop_over_pixels(name):
    queries = make_queries()
    score = QUERY_SCORES[name](queries)
    expected = [score_of_pixel(name, queries, *place) for place in np.ndindex(2, 3, 4)]
    np.testing.assert_allclose(score.flatten(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OF_QUERIES)
def test_a_pixel_that_no_query_claims_is_the_most_anomalous(name):
    queries = make_queries()
    classes = torch.tensor([[9.0, 0, 0, 0, 0, 0]])[None]
    distances = torch.tensor([[0.1, 2, 2, 2, 2, 2]])[None]
    masks = torch.tensor([6.0, 0.0, -6.0]).reshape(1, 1, 1, 3)
    claimed, torn, free = QUERY_SCORES[name](QueryOutputs(masks, classes, 4, distances, 3.0)).flatten()
    assert claimed < torn < free
    assert QUERY_SCORES[name](queries).isfinite().all()


@pytest.mark.parametrize("name", OF_QUERIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_query_scores_and_gradients_stay_finite_for_extreme_logits(name, dtype):
    queries = make_queries(1e4, dtype)
    given = [queries.mask_logits.requires_grad_(), queries.class_logits.requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score = QUERY_SCORES[name](queries.resized((6, 9)))
    score.sum().backward()
    assert score.dtype == torch.float32
    assert score.isfinite().all()
    assert all(tensor.grad.isfinite().all() for tensor in given if tensor.grad is not None)
    assert given[0].grad is not None


@pytest.mark.parametrize("name", HEAD_SCORES)
def test_scores_of_an_outlier_head_are_its_maps_resized(name):
    queries = make_queries(1e4, torch.bfloat16)
    found = QUERY_SCORES[name](queries.resized((6, 9)))
    resized = F.interpolate(queries.outlier_maps[name].float(), size=(6, 9), mode="bilinear")
    torch.testing.assert_close(found, resized[:, 0])


RANGES = {"RbA": (-19, 0), "MinDistance": (0, 3), "EAM": (-6, 1), "MaskEnergy": (-math.log(7), math.inf)}
RANGES |= {"UNO": (-7, 7), "SoleClaim": (-1e-5, math.inf), "ClassClaim": (-1e-5, math.inf)}  # rounding


@pytest.mark.parametrize("name", RANGES)
def test_scores_lie_in_their_range(name):
    score = rba(logits().abs()) if name == "RbA" else QUERY_SCORES[name](make_queries())
    low, high = RANGES[name]
    assert ((score >= low) & (score <= high)).all()


def test_several_claims_are_as_suspicious_as_none_and_not_as_normal_as_two_classes():
    """One sure query; none; two sure ones, which RbA's sum takes for the most normal of the three."""
    masks = torch.tensor([[9.0, -9.0], [-9.0, -9.0], [9.0, 9.0]]).reshape(3, 2, 1, 1)
    classes = torch.tensor([[9.0, 0, 0], [0, 9.0, 0]]).expand(3, 2, 3)
    queries = QueryOutputs(masks, classes, 2)
    one, none, two = QUERY_SCORES["SoleClaim"](queries).flatten().tolist()
    assert one < 0.01
    assert none > 5
    assert two > 5
    by_rba = SCORES["RbA"](pixel_class_scores(masks, classes)).flatten().tolist()
    assert by_rba[2] < by_rba[0] < by_rba[1]


def test_queries_that_repeat_a_class_agree_and_a_torn_one_is_unsure():
    """Two sure queries of one class; one sure query torn between two classes: the opposite by SoleClaim."""
    masks = torch.full((2, 2, 1, 1), 12.0)
    masks[1, 1] = -12
    classes = torch.tensor([[[12.0, 0, 0], [12, 0, 0]], [[12, 12, 0], [12, 12, 0]]])
    queries = QueryOutputs(masks, classes, 2)
    repeated, torn = QUERY_SCORES["ClassClaim"](queries).flatten().tolist()
    assert repeated < 0.01 < 1 < torn
    repeated, torn = QUERY_SCORES["SoleClaim"](queries).flatten().tolist()
    assert torn < 0.01 < 1 < repeated


@pytest.mark.parametrize("mask", [-80.0, -20.0, 0.0, 20.0, 80.0])
@pytest.mark.parametrize("margin", [-80.0, -20.0, 0.0, 20.0, 80.0])
def test_claims_and_their_gradients_keep_their_digits_at_both_ends(mask, margin):
    """One query, two classes and "no object", against 60 digits: nothing ends in a tie or without a pull."""
    values = [torch.tensor([mask]).requires_grad_(), torch.tensor([margin, -3.0, 0.0]).requires_grad_()]
    claims = class_claims(QueryOutputs(values[0].reshape(1, 1, 1, 1), values[1][None, None], 2))
    with mpmath.workdps(60):
        total = mpmath.exp(margin) + mpmath.exp(-3) + 1
        claim = mpmath.exp(margin) / total / (1 + mpmath.exp(-mask))
        expected = [float(mpmath.log(1 - claim)), float(mpmath.log(claim))]
        # the derivatives of log(1 - claim) and log claim by the mask logit
        slope = 1 / (1 + mpmath.exp(mask))
        slopes = [float(-claim / (1 - claim) * slope), float(slope)]
    found = [claims.refused[0, 0].sum(), claims.claimed[0, 0].sum()]
    bounded = min(mask, margin) > 69 or mask + margin < -85
    for value, exact, exact_slope in zip(found, expected, slopes, strict=True):
        (pull,) = torch.autograd.grad(value, values[0], retain_graph=True)
        assert value.isfinite()
        assert pull.isfinite()
        if not bounded:
            assert float(value.detach()) == pytest.approx(exact, rel=1e-5, abs=1e-37)
            assert float(pull) == pytest.approx(exact_slope, rel=1e-4, abs=1e-30)


@pytest.mark.parametrize("scale", [0.3, 2.0, 8.0])
def test_class_claims_and_their_gradients_are_those_of_the_definition(scale):
    generator = torch.Generator().manual_seed(1)
    shapes, found = ((2, 9, 4, 5), (2, 9, 7)), []
    values = [scale * torch.randn(shape, generator=generator) for shape in shapes]
    weights = torch.randn(2, 6, 4, 5, generator=generator)
    for dtype in (torch.float32, torch.float64):
        masks, classes = given = [value.to(dtype).requires_grad_() for value in values]
        if dtype == torch.float32:
            refused = class_claims(QueryOutputs(masks, classes, 6)).refused
        else:
            claims = classes.softmax(-1)[..., :6, None, None] * masks.sigmoid()[:, :, None]
            refused = torch.log1p(-claims).sum(dim=1)
        found.append((refused, *torch.autograd.grad((refused * weights.to(dtype)).sum(), given)))
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact.float(), rtol=2e-5, atol=2e-6)


def test_scores_must_be_known_and_given_once():
    with pytest.raises(InputError, match=r"--scores: unknown score 'msp'; known scores: MSP, MaxLogit"):
        require_scores(("RbA", "msp"))
    for names in ((), ("MSP", "MSP")):
        with pytest.raises(InputError, match="at least one score, each once, of MSP"):
            require_scores(names)
