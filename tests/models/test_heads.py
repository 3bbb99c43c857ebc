"""The IsoMax+ head against the published formula in float64; the row of outliers; checkpoints record both."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.work.doctor import report_checkpoint
from models.config import ModelConfig
from models.eomt import EoMT
from models.heads import IsoMaxHead
from models.weights.checkpoint import initialise_model, load_model
from shards.errors import InputError
from tests.models.tiny import IMAGE, make_model, save

C = 19


def start(weights: Path, **changes: object) -> EoMT:
    return initialise_model(ModelConfig(weights=str(weights), **changes)).eval()  # type: ignore[arg-type]


def make_head() -> IsoMaxHead:
    torch.manual_seed(0)
    head = IsoMaxHead(16, 5, entropic_scale=10.0)
    with torch.no_grad():
        head.distance_scale.fill_(-1.5)  # the sign does not matter
    return head


def test_distances_are_the_published_formula() -> None:
    assert IsoMaxHead(4, 2).distance_scale.item() == 1.0
    head, queries = make_head(), 3 * torch.randn(2, 7, 16)
    f, p = queries.double().numpy(), head.prototypes.detach().double().numpy()
    expected = np.empty((2, 7, 5))
    for b, q, c in np.ndindex(2, 7, 5):
        difference = f[b, q] / np.linalg.norm(f[b, q]) - p[c] / np.linalg.norm(p[c])
        expected[b, q, c] = abs(-1.5) * np.linalg.norm(difference)
    np.testing.assert_allclose(head.distances(queries).detach().numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(head(queries).detach().numpy(), -10 * expected, atol=1e-5)


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


def test_logits_of_a_model_are_scaled_distances() -> None:
    model = make_model(class_head="isomax", entropic_scale=4.0)
    prediction = model(IMAGE, torch.zeros(2, 2, 3, dtype=torch.bool))
    assert prediction.class_distances is not None
    assert len(prediction.class_distances) == len(prediction.class_logits) == 3
    for logits, distances in zip(prediction.class_logits, prediction.class_distances, strict=True):
        assert torch.equal(logits, -4.0 * distances)
    assert make_model()(IMAGE).class_distances is None


def test_prototypes_start_where_a_linear_head_points(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    linear = make_model()
    with caplog.at_level(logging.INFO):
        model = start(save(linear, tmp_path / "a"), class_head="isomax")
    assert "class_head.prototypes start as the directions of the linear class head's rows" in caplog.text
    assert isinstance(model.class_head, IsoMaxHead)
    rows = linear.class_head.weight
    expected = torch.nn.functional.normalize(rows, dim=1)
    torch.testing.assert_close(model.class_head.prototypes, expected)
    queries = torch.randn(1, 50, 128)
    nearest = model.class_head(queries).argmax(-1)
    assert torch.equal(nearest, (queries @ expected.T).argmax(-1))


def test_a_linear_head_gains_a_row_of_zeros_before_no_object(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = make_model()
    with caplog.at_level(logging.INFO):
        model = start(save(base, tmp_path / "a"), outlier_class="trained")
    assert "class_head gains a row for the outlier class, at its initial value" in caplog.text
    before, after = base(IMAGE).class_logits[0], model(IMAGE).class_logits[0]
    assert after.shape[-1] == C + 2
    torch.testing.assert_close(after[..., [*range(C), C + 1]], before)
    assert not bool(after[..., C].any())
    assert model.config.outlier_class == "trained"


def test_a_saved_model_keeps_its_head(tmp_path: Path) -> None:
    trained = make_model(outlier_class="trained")
    torch.nn.init.constant_(trained.class_head.weight, 3.0)
    for name, base in (("a", trained), ("b", make_model(class_head="isomax", entropic_scale=7.0))):
        weights = save(base, tmp_path / name)
        assert load_model(weights).config == base.config
        for model in (load_model(weights), start(weights)):
            assert (model.config.outlier_class, model.config.num_classes) == (base.config.outlier_class, C)
            assert torch.equal(model(IMAGE).class_logits[0], base(IMAGE).class_logits[0])


@pytest.mark.parametrize("head", ["linear", "isomax"])
def test_prototypes_gain_one_too(tmp_path: Path, head: str) -> None:
    base = make_model(class_head=head)
    torch.manual_seed(3)
    model = start(save(base, tmp_path / "a"), class_head="isomax", outlier_class="trained")
    assert isinstance(model.class_head, IsoMaxHead)
    rows = base.class_head.weight if head == "linear" else base.class_head.prototypes
    prototypes = model.class_head.prototypes[[*range(C), C + 1]]
    direction = torch.nn.functional.normalize
    torch.testing.assert_close(direction(prototypes, dim=1), direction(rows, dim=1))
    assert float(model.class_head.prototypes[C].detach().norm()) > 0.5


@pytest.mark.parametrize(
    ("name", "saved", "wanted"), [("outlier_class", "trained", "none"), ("class_head", "isomax", "linear")]
)
def test_a_class_head_loses_nothing_in_silence(tmp_path: Path, name: str, saved: str, wanted: str) -> None:
    weights = save(make_model(**{name: saved}), tmp_path / "a")
    with pytest.raises(InputError, match=rf"model.{name} {wanted} \(checkpoint: {saved}\)"):
        start(weights, **{name: wanted})


def test_doctor_names_it_and_finds_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for outlier_class in ("trained", "none"):
        report_checkpoint(save(make_model(outlier_class=outlier_class), tmp_path / outlier_class))
        report = capsys.readouterr().out
        assert "no problem found" in report
        assert ("19 classes and one of outliers" in report) is (outlier_class == "trained")


def test_a_description_without_the_setting_means_none(tmp_path: Path) -> None:
    folder = save(make_model(), tmp_path / "a")
    text = (folder / "model.json").read_text()
    lines = [line for line in text.splitlines() if "outlier_class" not in line]
    (folder / "model.json").write_text("\n".join(lines))
    assert load_model(folder).config.outlier_class == "none"
