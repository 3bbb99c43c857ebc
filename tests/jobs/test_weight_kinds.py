"""Every kind of weights that `jobs.evaluate` reads starts `jobs.finetune`, too."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import EomtConfig, EomtForUniversalSegmentation

from jobs.doctor import main as doctor
from jobs.export import main as export
from models.adapt import apply_adaptation
from models.adaptation import AdaptConfig, LoraSettings
from models.backbone import build_backbone
from models.config import ModelConfig
from models.eomt import EoMT
from models.erfnet import ERFNet
from models.segmenter import make_predictor, open_predictor
from models.trunk import SIZES
from models.weights.checkpoint import find_checkpoint, initialise_model, load_model
from models.weights.formats import read_checkpoint
from models.weights.huggingface import to_huggingface
from models.weights.kinds import KINDS
from tests.models.tiny import IMAGE, make_model, save
from tests.models.weights.test_formats import as_upstream
from tests.support.refused import refused
from tests.trainer.small_run import _fresh_accelerator, assert_equal, train  # noqa: F401

CPU = torch.device("cpu")
ASKED = {"size": "tiny", "image_size": (32, 32), "num_queries": 5}


@pytest.fixture(autouse=True)
def _of_two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", replace(SIZES["tiny"], depth=2))


def tiny() -> EoMT:
    return make_model(num_queries=5)


def write_run(folder: Path) -> Path:
    save(tiny(), folder / "checkpoints" / "step-0000003")
    return folder


def write_merged(folder: Path) -> Path:
    run = str(save(tiny(), folder / "run"))
    export(["--checkpoint", run, "--to", "safetensors", "--out", str(folder / "out")])
    return folder / "out" / "model.safetensors"


def write_adapter(folder: Path) -> Path:
    model = initialise_model(ModelConfig(weights=str(save(tiny(), folder / "base"))))
    apply_adaptation(model, AdaptConfig(mode="lora", lora=LoraSettings(rank=2)))
    run = str(save(model, folder / "run"))
    export(["--checkpoint", run, "--to", "adapter", "--out", str(folder / "out")])
    return folder / "out"


def write_exported(folder: Path) -> Path:
    run = str(save(tiny(), folder / "run"))
    export(["--checkpoint", run, "--to", "huggingface", "--out", str(folder / "out")])
    return folder / "out"


def write_published(folder: Path, **settings: str) -> Path:
    """Let transformers write its folder."""
    config = EomtConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=32, num_blocks=2,
        num_queries=5, num_labels=19,
    )  # fmt: skip
    theirs = EomtForUniversalSegmentation(config)
    theirs.load_state_dict(to_huggingface(tiny().state_dict()), strict=False)
    theirs.save_pretrained(folder, **settings)
    return folder


def write_sharded(folder: Path) -> Path:
    write_published(folder, max_shard_size="1MB")
    assert len(list(folder.glob("model-0000*.safetensors"))) > 1
    return folder


def write_older_shards(folder: Path) -> Path:
    """Write pickles and their index, as transformers did before safetensors."""
    write_sharded(folder)
    places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for part in {*places.values()}:
        name = part.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        places = {weight: name if place == part else place for weight, place in places.items()}
        torch.save(load_file(folder / part), folder / name)
        (folder / part).unlink()
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def saved(content: Callable[[], object], name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        folder.mkdir()
        torch.save(content(), folder / name)
        return folder / name

    return write


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in weights.items()}


def published_backbone(trunk: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Name weights as DINOv2 does, mask token of zeros included, as it is published."""
    state = build_backbone(SIZES["tiny"], (28, 28), 14).state_dict() if trunk is None else dict(trunk)
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat((torch.zeros(1, 1, 128), state["pos_embed"]), dim=1)
    return state | {"mask_token": torch.zeros(1, 128)}


def trained_by_lightly() -> object:
    """Name weights as LightlyTrain's export does."""
    backbone = prefixed("model.backbone.", published_backbone(tiny().backbone.state_dict()))
    heads = {n: v for n, v in tiny().state_dict().items() if not n.startswith("backbone.")}
    weights = backbone | prefixed("model.", heads) | {"criterion.empty_weight": torch.ones(20)}
    return {"train_model": weights, "model_init_args": {"classes": {7: "road"}}, "license_info": ""}


def trained_backbone() -> object:
    state = prefixed("backbone.", build_backbone(SIZES["tiny"], (28, 28), 14).state_dict())
    return {"teacher": state | {"dino_head.last.weight": torch.ones(2)}, "student": state, "epoch": 3}


WHOLE = {
    "a run": (write_run, "eomt-anomaly"),
    "one file": (write_merged, "eomt-anomaly"),
    "an adapter": (write_adapter, "eomt-anomaly"),
    "below a key": (saved(lambda: {"model_state_dict": tiny().state_dict()}, "w.pt"), "eomt-anomaly"),
    "wrapped": (
        saved(lambda: prefixed("module.net._orig_mod.", tiny().state_dict()), "w.pth"),
        "eomt-anomaly",
    ),
    "Lightning": (saved(lambda: {"state_dict": as_upstream(tiny())}, "last.ckpt"), "upstream"),
    "upstream": (saved(lambda: as_upstream(tiny(), ""), "pytorch_model.bin"), "upstream"),
    "LightlyTrain": (saved(trained_by_lightly, "exported_best.pt"), "lightly"),
    "transformers": (write_published, "huggingface"),
    "our export": (write_exported, "huggingface"),
    "shards": (write_sharded, "huggingface"),
    "shards of pickles": (write_older_shards, "huggingface"),
    "no description": (
        saved(lambda: prefixed("model.", to_huggingface(tiny().state_dict())), "w.bin"),
        "huggingface",
    ),
}
BACKBONES = {
    "timm": saved(lambda: build_backbone(SIZES["tiny"], (28, 28), 14).state_dict(), "vit.pth"),
    "DINOv2": saved(published_backbone, "dinov2.pth"),
    "training": saved(trained_backbone, "teacher.pth"),
    "in another network": saved(
        lambda: prefixed("model.encoder.", build_backbone(SIZES["tiny"], (32, 32), 16).state_dict()), "w.ckpt"
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_evaluated_starts_a_training(tmp_path, name):
    write, kind = WHOLE[name]
    path = write(tmp_path / "weights")
    if name != "an adapter":
        assert read_checkpoint(find_checkpoint(path)).kind == kind
    source = open_predictor(find_checkpoint(path), ("MSP",), CPU)
    assert len(source.fingerprint) == 64
    source.load()
    assert torch.equal(make_predictor(load_model(path), CPU)(IMAGE), make_predictor(tiny(), CPU)(IMAGE))
    model = initialise_model(ModelConfig(**ASKED, weights=str(path)))
    assert_equal(model.state_dict(), tiny().state_dict())


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_starts_a_training_and_is_sound_but_no_segmenter(tmp_path, capsys, name):
    path = BACKBONES[name](tmp_path / "weights")
    doctor(["checkpoint", str(path)])
    assert "no problem found" in capsys.readouterr().out
    with refused(r"ViT backbone \(DINOv2, DINOv3 or timm\), no EoMT"):
        open_predictor(find_checkpoint(path), ("MSP",), CPU).load()
    model = initialise_model(ModelConfig(**ASKED, weights=str(path)))
    (found,) = [v for n, v in read_checkpoint(path).weights.items() if n == "blocks.1.mlp.fc1.weight"]
    assert torch.equal(model.state_dict()["backbone.blocks.1.mlp.fc1.weight"], found)


@pytest.mark.parametrize("write", [WHOLE["upstream"][0], BACKBONES["DINOv2"]])
def test_a_training_takes_one_step_from_them(tmp_path, scene_shards, write):
    weights = str(write(tmp_path / "weights"))
    train(tmp_path, scene_shards, "--model.weights", weights, "--loop.steps", "1")
    assert (tmp_path / "run/finished.json").is_file()


def test_the_baseline_is_evaluated_and_starts_nothing(tmp_path):
    path = saved(lambda: prefixed("module.", ERFNet(20).state_dict()), "erfnet.pth")(tmp_path / "weights")
    open_predictor(find_checkpoint(path), ("MSP",), CPU).load()
    with refused("erfnet.pth: ERFNet weights cannot start an EoMT"):
        initialise_model(ModelConfig(weights=str(path)))


def test_every_kind_is_among_these():
    trunks = {"backbone", "transformers", "erfnet"}  # transformers' are in test_trunks
    assert {kind for _, kind in WHOLE.values()} | trunks == set(KINDS)
