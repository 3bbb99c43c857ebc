"""The IsoMax+ head against the published formula in float64, and at the edges of its numbers."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from models.config import ModelConfig
from models.heads import IsoMaxHead
from models.weights.checkpoint import initialise_model, load_model
from shards.errors import InputError
from tests.models.tiny import IMAGE, make_model, save


def make_head() -> IsoMaxHead:
    torch.manual_seed(0)
    head = IsoMaxHead(16, 5, entropic_scale=10.0)
    with torch.no_grad():
        head.distance_scale.fill_(-1.5)  # the sign does not matter
    return head


def test_distances_are_the_published_formula() -> None:
    head, queries = make_head(), 3 * torch.randn(2, 7, 16)
    f, p = queries.double().numpy(), head.prototypes.detach().double().numpy()
    expected = np.empty((2, 7, 5))
    for b, q, c in np.ndindex(2, 7, 5):
        difference = f[b, q] / np.linalg.norm(f[b, q]) - p[c] / np.linalg.norm(p[c])
        expected[b, q, c] = abs(-1.5) * np.linalg.norm(difference)
    np.testing.assert_allclose(head.distances(queries).detach().numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(head(queries).detach().numpy(), -10 * expected, atol=1e-5)


def test_published_initialisation() -> None:
    head = IsoMaxHead(400, 100)
    assert head.distance_scale.item() == 1.0
    assert head.entropic_scale == 10.0
    assert head.prototypes.mean().item() == pytest.approx(0, abs=0.03)
    assert head.prototypes.std().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["ordinary", "zero", "huge", "on a prototype", "beside a prototype"])
def test_values_and_gradients_are_finite(dtype: torch.dtype, case: str) -> None:
    head = make_head()
    start = {
        "ordinary": torch.randn(1, 3, 16),
        "zero": torch.zeros(1, 3, 16),
        "huge": torch.full((1, 3, 16), 1e4),
        "on a prototype": head.prototypes.detach()[None, :3].clone(),
        "beside a prototype": head.prototypes.detach()[None, :3] * (1 + 1e-7),
    }[case]
    queries = start.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16 if dtype == torch.float32 else dtype):
        logits = head(queries)
    assert logits.dtype == torch.float32
    torch.nn.functional.cross_entropy(logits[0], torch.tensor([0, 1, 2])).backward()
    assert queries.grad is not None
    for value in (logits, queries.grad, head.prototypes.grad, head.distance_scale.grad):
        assert value is not None
        assert bool(value.isfinite().all())


def test_autocast_does_not_touch_the_distances() -> None:
    head, queries = make_head(), torch.randn(2, 7, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head.distances(queries)
    assert torch.equal(inside, head.distances(queries))


def test_logits_of_a_model_are_scaled_distances() -> None:
    model = make_model(class_head="isomax", entropic_scale=4.0)
    prediction = model(IMAGE, torch.zeros(2, 2, 3, dtype=torch.bool))
    assert prediction.class_distances is not None
    assert len(prediction.class_distances) == len(prediction.class_logits) == 3
    for logits, distances in zip(prediction.class_logits, prediction.class_distances, strict=True):
        assert torch.equal(logits, -4.0 * distances)
    assert make_model()(IMAGE).class_distances is None


def test_a_saved_isomax_model_is_rebuilt(tmp_path: Path) -> None:
    model = make_model(class_head="isomax", entropic_scale=7.0)
    loaded = load_model(save(model, tmp_path / "a"))
    assert loaded.config == model.config
    assert torch.equal(loaded(IMAGE).class_logits[0], model(IMAGE).class_logits[0])


def test_prototypes_start_where_a_linear_head_points(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    linear = make_model()
    with caplog.at_level(logging.INFO):
        model = initialise_model(ModelConfig(weights=str(save(linear, tmp_path / "a")), class_head="isomax"))
    assert "class_head.prototypes start as the directions of the linear class head's rows" in caplog.text
    assert isinstance(model.class_head, IsoMaxHead)
    rows = linear.class_head.weight
    expected = torch.nn.functional.normalize(rows, dim=1)
    torch.testing.assert_close(model.class_head.prototypes, expected)
    queries = torch.randn(1, 50, 128)
    nearest = model.class_head(queries).argmax(-1)
    assert torch.equal(nearest, (queries @ expected.T).argmax(-1))


def test_isomax_weights_do_not_become_a_linear_head(tmp_path: Path) -> None:
    weights = str(save(make_model(class_head="isomax"), tmp_path / "a"))
    with pytest.raises(InputError, match=r"model.class_head linear \(checkpoint: isomax\)"):
        initialise_model(ModelConfig(weights=weights, class_head="linear"))
