"""A class head with one more class, of outliers: where its row starts, and that checkpoints record it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from models.config import ModelConfig
from models.eomt import EoMT
from models.heads import IsoMaxHead
from models.weights.checkpoint import initialise_model, load_model
from models.weights.diagnosis import report_checkpoint
from shards.errors import InputError
from tests.models.tiny import IMAGE, make_model, save

C = 19


def start(weights: Path, **changes: object) -> EoMT:
    return initialise_model(ModelConfig(weights=str(weights), **changes)).eval()  # type: ignore[arg-type]


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


def test_a_trained_row_is_kept(tmp_path: Path) -> None:
    base = make_model(outlier_class="trained")
    with torch.no_grad():
        base.class_head.weight[C] = 3.0
    weights = save(base, tmp_path / "a")
    for model in (load_model(weights), start(weights)):
        assert model.config.outlier_class == "trained"
        assert model.config.num_classes == C
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


def test_the_outlier_class_is_not_dropped_in_silence(tmp_path: Path) -> None:
    weights = save(make_model(outlier_class="trained"), tmp_path / "a")
    with pytest.raises(InputError, match=r"model.outlier_class none \(checkpoint: trained\)"):
        start(weights, outlier_class="none")


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
