from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest
import torch

from jobs.doctor import main
from models.backbone import build_backbone
from models.trunk import SIZES
from tests.models.tiny import make_model, over_both_trunks, save
from tests.support.refused import refused


@over_both_trunks
def test_a_sound_checkpoint_is_described(tmp_path, capsys, size):
    model = make_model(size=size)
    save(model, tmp_path / "run" / "checkpoints" / "step-0000002")
    main(["checkpoint", str(tmp_path / "run")])
    report = capsys.readouterr().out
    weights = tmp_path / "run" / "checkpoints" / "step-0000002" / "model.safetensors"
    assert str(weights) in report
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in report
    assert "EoMT of this suite" in report
    assert f"model    {size}, image 32x32, patch 16, 3 queries, 2 joint blocks, 19 classes" in report
    total = sum(value.numel() for value in model.state_dict().values())
    assert f"{len(model.state_dict())} tensors, {total:,} parameters, float32" in report
    assert "0 missing, 0 unexpected, 0 misshapen, 0 resized, 0 skipped" in report
    assert "no problem found" in report


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s["class_head.bias"].fill_(float("nan")), "NaN or infinite values in class_head.bias"),
        (lambda s: s["mask_head.0.weight"].zero_(), "only zeros in mask_head.0.weight"),
        (lambda s: s.pop("class_head.bias"), r"does not fit the model: 1 missing \[class_head.bias\]"),
    ],
    ids=["nan", "zeros", "missing"],
)
def test_problems_are_told_after_the_description(
    tmp_path,
    capsys,
    spoil,
    message,
):
    state = make_model().state_dict()
    spoil(state)
    with refused(message):
        main(["checkpoint", str(save(make_model(), tmp_path, state))])
    report = capsys.readouterr().out
    assert "EoMT of this suite" in report
    assert "no problem found" not in report


def test_a_backbone_file_is_described(tmp_path, capsys):
    torch.save(build_backbone(SIZES["tiny"], (56, 56), 14).state_dict(), tmp_path / "vit.pth")
    main(["checkpoint", str(tmp_path / "vit.pth")])
    report = capsys.readouterr().out
    assert "ViT backbone (DINOv2, DINOv3 or timm)" in report
    assert "trunk    tiny (width 128, 6 blocks, 4 heads, learned positions, 4 registers)" in report
    assert "origin   vit.pth, sha256 " in report
    assert "blocks.5" in report


def test_statistics_are_those_of_the_numbers(tmp_path, capsys):
    state = make_model().state_dict()
    state["class_head.weight"].fill_(1.0)
    state["class_head.bias"].fill_(-3.0)
    main(["checkpoint", str(save(make_model(), tmp_path / "step-0000001", state))])
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if "  class_head " in line]
    numbers = np.concatenate([np.full(20 * 128, 1.0), np.full(20, -3.0)])
    assert row == ["class_head", "2", "2,580", f"{numbers.mean():.3g}", f"{numbers.std():.3g}", "3"]


def test_an_empty_folder_is_one_line(tmp_path):
    with refused(
        re.escape(str(tmp_path)) + ": no run folder .*, and no checkpoint: the folder holds no weight file"
    ):
        main(["checkpoint", str(tmp_path)])
