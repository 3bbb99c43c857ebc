from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from models.backbone import build_backbone, load_backbone_weights
from models.checkpoint import find_checkpoint, initialise_model, load_model, write_description
from models.eomt import EoMT, ModelConfig
from models.weights import read_weight_file
from shards.errors import InputError

CONFIG = ModelConfig(size="tiny", image_size=(32, 32), num_queries=3)


def save(model: EoMT, folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_description(model.config, folder)
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def test_a_saved_model_predicts_the_same(tmp_path: Path) -> None:
    model = EoMT(CONFIG).eval()
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    loaded = load_model(save(model, tmp_path / "step-0000001"))
    assert not loaded.training
    assert torch.equal(loaded(image).mask_logits[0], model(image).mask_logits[0])


def test_a_run_folder_stands_for_its_newest_complete_checkpoint(tmp_path: Path) -> None:
    for step in (9, 10):
        save(EoMT(CONFIG), tmp_path / "checkpoints" / f"step-{step:07d}")
    (tmp_path / "checkpoints" / ".step-0000011.partial").mkdir()
    assert find_checkpoint(tmp_path).name == "step-0000010"


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    weights = save(EoMT(CONFIG), tmp_path / "step-0000001") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"model.safetensors: not a readable weight file \(truncated"):
        load_model(weights.parent)


def test_weights_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    model = EoMT(CONFIG)
    folder = save(model, tmp_path / "step-0000001")
    state = model.state_dict()
    state["extra"] = state.pop("class_head.bias")
    state["queries.weight"] = torch.zeros(4, 128)
    save_file(state, folder / "model.safetensors")
    message = (
        r"1 missing \['class_head.bias'\], 1 unexpected \['extra'\], 1 of another shape \['queries.weight'\]"
    )
    with pytest.raises(InputError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        json.dumps({"size": "tiny"}),
        json.dumps({"image_size": [32, 32], "sise": 1}),
        '{"image_size": [64]}',
        '{"image_size": [1, 1]}',
    ],
)
def test_a_broken_description_is_named(tmp_path: Path, text: str) -> None:
    folder = save(EoMT(CONFIG), tmp_path / "step-0000001")
    (folder / "model.json").write_text(text)
    with pytest.raises(InputError, match=r"model.json: not a model description"):
        load_model(folder)


def test_a_missing_or_foreign_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        find_checkpoint(tmp_path / "nothing")
    with pytest.raises(InputError, match="neither a checkpoint folder .* nor a run folder"):
        find_checkpoint(tmp_path)


def test_fine_tuning_starts_from_a_checkpoint_of_the_same_model(tmp_path: Path) -> None:
    model = EoMT(CONFIG)
    folder = str(save(model, tmp_path / "step-0000001"))
    started = initialise_model(ModelConfig(size="tiny", image_size=(32, 32), num_queries=3, weights=folder))
    assert torch.equal(started.queries.weight, model.queries.weight)
    with pytest.raises(InputError, match=r"model.num_queries 4 \(checkpoint: 3\)"):
        initialise_model(ModelConfig(size="tiny", image_size=(32, 32), num_queries=4, weights=folder))


def test_dinov2_weights_of_patch_14_fit_a_backbone_of_patch_16(tmp_path: Path) -> None:
    source = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, img_size=28)
    path = tmp_path / "dinov2.pth"
    torch.save(source.state_dict(), path)
    backbone = build_backbone("small", (64, 32), 16)
    load_backbone_weights(backbone, path)
    assert torch.equal(backbone.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)
    expected = timm.layers.resample_patch_embed(source.patch_embed.proj.weight.data, [16, 16])
    torch.testing.assert_close(backbone.patch_embed.proj.weight.data, expected)
    assert backbone.pos_embed.shape == (1, 8, 384)


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"blocks.0.norm1.weight": torch.ones(384)}, path)
    with pytest.raises(InputError, match="other.safetensors: the weights do not fit the model: .* missing"):
        load_backbone_weights(build_backbone("small", (32, 32), 16), path)


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "code.pth"
    torch.save({"weight": torch.ones(1), "function": print}, path)
    with pytest.raises(
        InputError, match=r"code.pth: not a readable weight file \(truncated, or a pickle with code\)"
    ):
        read_weight_file(path)


def test_the_file_that_dinov2_publishes_is_read(tmp_path: Path) -> None:
    """Its names and its position of the class token differ from timm's; the features must not."""
    source = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, img_size=28).eval()
    state = source.state_dict()
    published = {
        name: value for name, value in state.items() if name not in ("reg_token", "pos_embed", "cls_token")
    }
    class_position = torch.full((1, 1, 384), 0.25)
    published["register_tokens"] = state["reg_token"]
    published["pos_embed"] = torch.cat((class_position, state["pos_embed"]), dim=1)
    published["cls_token"] = state["cls_token"] - class_position
    published["mask_token"] = torch.zeros(1, 384)
    path = tmp_path / "dinov2_vits14_reg4_pretrain.pth"
    torch.save(published, path)
    backbone = build_backbone("small", (28, 28), 14).eval()
    load_backbone_weights(backbone, path)
    image = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.forward_features(image), source.forward_features(image), atol=1e-4, rtol=0
        )
