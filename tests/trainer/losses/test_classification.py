"""Classification losses against published formulas; LogitNorm's lower bound against a minimiser."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.heads import IsoMaxHead
from trainer.losses.classification import CrossEntropy, LogitNorm

K = 20


def make_case(scale: float = 3.0, num_queries: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets with every class, and weights with "no object" at 0.1."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(num_queries, K, generator=generator)
    weight = torch.ones(K)
    weight[-1] = 0.1
    return logits, torch.arange(num_queries) % K, weight


def published_logit_norm(x: Tensor, target: Tensor, weight: Tensor, temperature: float) -> float:
    """x / (norms + 1e-7) / t into a weighted cross-entropy, one query at a time in float64."""
    total = 0.0
    for values, y in zip(x.double().numpy(), target.tolist(), strict=True):
        scaled = values / (np.sqrt((values**2).sum()) + 1e-7) / temperature
        total -= float(weight[y]) * (scaled[y] - np.log(np.exp(scaled).sum()))
    return total


@pytest.mark.parametrize("temperature", [0.04, 0.3, 1.0])
@pytest.mark.parametrize("scale", [0.01, 3.0, 1000.0])
def test_logit_norm_is_the_published_formula(temperature: float, scale: float) -> None:
    logits, target, weight = make_case(scale)
    expected = published_logit_norm(logits, target, weight, temperature)
    term = LogitNorm(temperature=temperature)
    assert float(term(logits, target, weight)) == pytest.approx(expected, rel=1e-5)
    assert float(term(1e4 * logits, target, weight)) == pytest.approx(expected, rel=1e-3)  # of any length


@pytest.mark.parametrize("temperature", [0.04, 0.3, 1.0, 1.2])
@pytest.mark.parametrize("num_logits", [2, 20, 21])
def test_the_lower_bound_is_what_a_minimiser_reaches(temperature: float, num_logits: int) -> None:
    """In float64, several starts; nothing gets below, and the best comes within 1e-6."""
    term, target, weight = LogitNorm(temperature=temperature), torch.tensor([0]), torch.ones(num_logits)
    reached = []
    for seed in range(5):
        start = torch.randn(1, num_logits, generator=torch.Generator().manual_seed(seed))
        logits = start.requires_grad_()
        optimizer = torch.optim.LBFGS([logits], lr=0.5, max_iter=200, line_search_fn="strong_wolfe")

        def closure(logits: Tensor = logits, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = term(logits, target, weight)
            loss.backward()
            return loss

        optimizer.step(closure)
        reached.append(float(term(logits, target, weight).detach()))
    bound = term.lower_bound(num_logits)
    assert min(reached) >= bound - 1e-6
    assert min(reached) == pytest.approx(bound, rel=1e-3, abs=1e-6)


def test_the_lower_bound_is_reached_by_the_direction_in_the_docstring() -> None:
    best = torch.full((1, K), -1 / math.sqrt(K * (K - 1)))
    best[0, 3] = math.sqrt((K - 1) / K)
    for temperature, bound in ((0.3, 0.483), (1.0, 2.055), (0.04, 0.0)):
        term = LogitNorm(temperature=temperature)
        assert term.lower_bound(K) == pytest.approx(bound, abs=2e-3)
        value = term(best, torch.tensor([3]), torch.ones(K))
        assert float(value) == pytest.approx(term.lower_bound(K), rel=1e-5, abs=1e-6)
    assert CrossEntropy().lower_bound(K) == CrossEntropy().lower_bound(K) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("temperature", [0.04, 0.3])
def test_logit_norm_of_zero_logits_has_gradients_that_fit(dtype: torch.dtype, temperature: float) -> None:
    """Published eps alone gives 1e7 / temperature, which float16 has no number for."""
    _, target, weight = make_case()
    logits = torch.zeros(50, K, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16 if dtype == torch.float32 else dtype):
        loss = LogitNorm(temperature=temperature)(logits, target, weight)
    loss.backward()
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(weight[target].sum()) * math.log(K), rel=1e-5)
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert bool(logits.grad.any())


def test_isomax_plus_is_the_published_second_part() -> None:
    """p = softmax(-E · D), loss = -log p[target], in float64 from the head's distances."""
    torch.manual_seed(0)
    head = IsoMaxHead(16, K, entropic_scale=10.0)
    queries = torch.randn(1, 50, 16)
    _, target, weight = make_case()
    with torch.no_grad():
        distances = head.distances(queries)[0].double().numpy()
        actual = float(CrossEntropy()(head(queries)[0], target, weight))
    total = 0.0
    for d, y in zip(distances, target.tolist(), strict=True):
        p = np.exp(-10.0 * d) / np.exp(-10.0 * d).sum()
        total -= float(weight[y]) * np.log(p[y])
    assert actual == pytest.approx(total, rel=1e-5)


def test_isomax_plus_stays_finite_where_the_published_probability_is_zero() -> None:
    """Distances 0 and 12 at E = 10: p = e^-120 is 0 in float32, its logarithm -inf."""
    logits = torch.tensor([[0.0, -120.0]], requires_grad=True)
    loss = CrossEntropy()(logits, torch.tensor([1]), torch.ones(2))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(120.0)
    assert logits.grad is not None
    assert logits.grad.tolist() == [[1.0, -1.0]]
