from __future__ import annotations

import dataclasses
import json
import logging
import resource
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from models.backbone import build_backbone
from models.config import InitConfig, ModelConfig
from models.eomt import EoMT
from models.trunk import SIZES
from models.weights.checkpoint import find_checkpoint, initialise_model, load_model
from models.weights.run_files import run_of
from shards.errors import InputError
from tests.models.tiny import IMAGE, make_model, save


def test_a_saved_model_predicts_the_same(tmp_path: Path) -> None:
    model = make_model()
    loaded = load_model(save(model, tmp_path / "step-0000001"))
    assert not loaded.training
    assert torch.equal(loaded(IMAGE).mask_logits[0], model(IMAGE).mask_logits[0])


def test_a_run_folder_stands_for_its_newest_complete_checkpoint(tmp_path: Path) -> None:
    for step in (9, 10):
        save(make_model(), tmp_path / "checkpoints" / f"step-{step:07d}")
    (tmp_path / "checkpoints" / ".step-0000011.partial").mkdir()
    assert find_checkpoint(tmp_path).name == "step-0000010"


def test_weights_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    model = make_model()
    state = model.state_dict() | {"queries.weight": torch.zeros(4, 128)}
    state["extra"] = state.pop("class_head.bias")
    shapes = r"1 of another shape \[queries.weight 4x128, model 3x128\]"
    with pytest.raises(InputError, match=rf"1 missing \[class_head.bias\], 1 unexpected \[extra\], {shapes}"):
        load_model(save(model, tmp_path, state))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("{", "is no valid JSON"),
        ('{"size": "tiny"}', "has no field 'image_size'"),
        ({"sise": 1}, "sise: unknown field; perhaps you meant size; known here: size, trunk, image_size, "),
        ({"image_size": [64]}, r"image_size is \[64\]; tuple\[int, int\] is needed"),
        ({"image_size": [1, 1]}, "model.image_size: 1x1 is not divisible by model.patch_size 16"),
        ({"num_blocks": 2.5}, "num_blocks is 2.5; int is needed"),
        ({"patch_size": "16"}, "patch_size is '16'; int is needed"),
        ({"class_head": "x"}, "class_head is 'x'; one of .*linear, isomax is needed"),
        ({"weights": None}, "weights is None; str is needed"),
        ({"num_queries": 10**9}, "model.num_queries must be 1 to 10000, or 0 to follow the weights, got 1"),
        ({"num_classes": 1e999}, "num_classes is inf; int is needed"),
        ({"image_size": [16 * 10**6] * 2}, "model.image_size: 16000000x16000000 is cut into more than 2621"),
        ({"lora": {"rank": 0}}, "lora: adapt.lora.rank must be at least 1, got 0"),
    ],
    ids=str,
)
def test_a_broken_description_is_named(tmp_path: Path, changes: str | dict, message: str) -> None:
    path = save(make_model(), tmp_path) / "model.json"
    fields = json.loads(path.read_text())
    path.write_text(changes if isinstance(changes, str) else json.dumps(fields | changes))
    with pytest.raises(InputError, match=f"model.json: {message}"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "no such file or folder"),
        ("", "no run folder .*, and no checkpoint: the folder holds no weight file"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_path_without_a_checkpoint_is_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=f"checkpoint .*: {message}"):
        find_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_queries": 4}, r"model.num_queries 4 \(checkpoint: 3\); leave it out, or name"),
        ({"num_classes": 5}, r"model.num_classes 5 \(checkpoint: 19\)"),
        ({"size": "small"}, r"model.size small \(checkpoint: tiny\)"),
        ({"patch_size": 8}, r"model.patch_size 8 \(checkpoint: 16\)"),
        ({"skip": "clas_head"}, "init.skip: the model has no weight 'clas_head'; its parts are backbone, "),
        ({"skip": "class_head", "weights": ""}, "init.skip: model.weights is empty, there is nothing"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_start_that_contradicts_the_weights_is_refused(
    tmp_path: Path, settings: dict, message: str
) -> None:
    settings = {"weights": str(save(make_model(), tmp_path)), "skip": None, **settings}
    skip = settings.pop("skip")
    with pytest.raises(InputError, match=message):
        initialise_model(ModelConfig(**settings), InitConfig(skip=(skip,) if skip else ()))


def test_a_start_takes_all_from_the_weights_but_what_it_says_and_skips(tmp_path: Path) -> None:
    model = make_model()
    folder = str(save(model, tmp_path / "step-0000001"))
    started = initialise_model(ModelConfig(weights=folder))
    assert started.config == dataclasses.replace(model.config, weights=folder)
    assert torch.equal(started.queries.weight, model.queries.weight)
    torch.manual_seed(5)
    started = initialise_model(ModelConfig(weights=folder, num_classes=7), InitConfig(skip=("class_head",)))
    torch.manual_seed(5)
    fresh = EoMT(dataclasses.replace(model.config, num_classes=7))
    assert torch.equal(started.class_head.weight, fresh.class_head.weight)
    assert torch.equal(started.mask_head[0].weight, model.mask_head[0].weight)


def test_another_image_size_resamples_the_positions_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    folder = str(save(model, tmp_path / "step-0000001"))
    with caplog.at_level(logging.INFO):
        started = initialise_model(ModelConfig(weights=folder, image_size=(64, 32)))
    assert "resized backbone.pos_embed: 1x4x128 -> 1x8x128" in caplog.text
    assert "0 missing, 0 unexpected, 0 misshapen, 1 resized" in caplog.text
    grid = model.backbone.pos_embed.detach().reshape(1, 2, 2, 128).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (4, 2), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(started.backbone.pos_embed.detach(), expected)


def test_a_backbone_file_fills_the_backbone_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = build_backbone(SIZES["tiny"], (28, 28), 14)
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(InputError, match=r"vit.pth: ViT backbone \(DINOv2, DINOv3 or timm\), no EoMT"):
        load_model(tmp_path / "vit.pth")
    config = ModelConfig(num_queries=3, weights=str(tmp_path / "vit.pth"), image_size=(32, 64))
    with caplog.at_level(logging.INFO):
        model = initialise_model(config)
    assert (model.config.size, model.config.image_size) == ("tiny", (32, 64))
    assert torch.equal(model.backbone.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight)
    assert "resized backbone.patch_embed.proj.weight: 128x3x14x14 -> 128x3x16x16" in caplog.text
    assert "keep their initial values: queries, class_head, mask_head, upscale" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pos_embed": torch.ones(1, 1370, 128)}, "patches or positions cannot be resampled: "),
        ({"pos_embed": torch.ones(7, 128)}, "pos_embed has 2 dimensions; 3 are needed"),
        ({"norm.weight": torch.ones(5)}, r"1 of another shape \[norm.weight 5, model 128\]"),
        ({"norm.weight": torch.ones(128) * torch.nan}, r"NaN or infinite values in 1 weights \[norm.weight"),
        ({"blocks.6.norm1.weight": torch.ones(128)}, r"11 missing \[blocks.6.norm1.bias, .*such as DINOv3"),
        ({"patch_embed.proj.weight": torch.tensor(1.0)}, r"proj.weight is of shape \(\); 4 dimensions are "),
        ({"patch_embed.proj.weight": torch.ones(128)}, r"proj.weight is of shape \(128,\); 4 dimensions"),
        ({"norm.weight": None}, r"1 missing \[norm.weight\]"),
    ],
    ids=["grid", "flat", "shape", "NaN", "blocks", "scalar", "vector", "missing"],
)
def test_weights_of_another_backbone_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    state = build_backbone(SIZES["tiny"], (32, 32), 16).state_dict() | changes
    torch.save({name: v for name, v in state.items() if v is not None}, tmp_path / "vit.pth")
    with pytest.raises(InputError, match=f"vit.pth: .*{message}"):
        initialise_model(ModelConfig(weights=str(tmp_path / "vit.pth"), image_size=(32, 32)))


def test_a_checkpoint_knows_the_run_it_lies_in(tmp_path: Path) -> None:
    for folder in ("checkpoints", "best"):
        assert run_of(tmp_path / "runs/a" / folder / "step-0000004") == "a"
    assert run_of(tmp_path / "downloads/eomt.bin") is None


def test_a_size_that_a_file_only_claims_takes_no_memory(tmp_path: Path) -> None:
    """A giant EoMT takes 4.6 GB; its description takes none."""
    folder = save(make_model(), tmp_path)
    path = folder / "model.json"
    described = json.loads(path.read_text()) | {"size": "giant", "num_queries": 10_000}
    path.write_text(json.dumps({name: value for name, value in described.items() if name != "trunk"}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for start in (load_model, lambda path: initialise_model(ModelConfig(weights=str(path)))):
        with pytest.raises(InputError, match="the weights do not fit the model: .* missing"):
            start(folder)
    names = build_backbone(SIZES["tiny"], (32, 32), 16).state_dict()
    names |= {"patch_embed.proj.weight": torch.ones(1536, 3, 14, 14)}
    names |= {f"blocks.{i}.norm1.weight": torch.ones(1) for i in range(40)}
    torch.save(names, tmp_path / "vit.pth")
    with pytest.raises(InputError, match="the weights do not fit the model: .* missing"):
        initialise_model(ModelConfig(weights=str(tmp_path / "vit.pth"), image_size=(32, 32)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
