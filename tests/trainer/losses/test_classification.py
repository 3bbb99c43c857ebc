"""Classification losses against published formulas; LogitNorm's lower bound against a minimiser."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

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
    told = {(20, 0.3): 0.48, (20, 1.0): 2.06}  # in the docstring
    assert bound == pytest.approx(told.get((num_logits, temperature), bound), abs=5e-3)
    assert CrossEntropy().lower_bound(num_logits) == 0.0


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
