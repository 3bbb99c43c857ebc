"""ViTs under every name that they are published with are the same trunk under ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTModel,
)

from models.backbone import build_backbone, fit_backbone_weights, read_trunk
from models.config import DESCRIPTION_NAME, ModelConfig
from models.trunk import SIZES, Trunk
from models.weights.checkpoint import initialise_model, load_model
from models.weights.formats import read_checkpoint
from models.weights.kinds import KINDS
from tests.models.tiny import make_model, save
from tests.support.refused import refused

PIXELS = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 1, "img_size": 64, "num_classes": 0}


def shaken(module: nn.Module) -> nn.Module:
    """Move weights off 0 and 1, where differences would not show."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return module.eval()


def make_timm(name: str, **changes: object) -> nn.Module:
    return shaken(timm.create_model(name, pretrained=False, **SMALL | changes))


def as_meta_dinov3(module: nn.Module) -> dict[str, Tensor]:
    """Name the weights of timm's DINOv3 as Meta's file does."""
    theirs = {"mask_token": torch.zeros(1, 64), "rope_embed.periods": torch.ones(16)}
    state = module.state_dict()
    for name, value in state.items():
        block = name.partition(".attn.")[0]
        if name.endswith(".q_bias"):
            v = state[f"{block}.attn.v_bias"]
            theirs[f"{block}.attn.qkv.bias"] = torch.cat((value, torch.zeros_like(value), v))
            theirs[f"{block}.attn.qkv.bias_mask"] = torch.ones(len(value) * 3)
        elif not name.endswith(".v_bias"):
            name = name.replace("reg_token", "storage_tokens").replace("mlp.fc1_g", "mlp.w1")
            name = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
            gated = "blocks.0.mlp.fc1_g.weight" in state
            name = name.replace("mlp.fc1_x", "mlp.w2")
            theirs[name.replace("mlp.fc2", "mlp.w3") if gated else name] = value
    return theirs


def as_meta_dinov2(module: nn.Module) -> dict[str, Tensor]:
    """Name the weights of timm's DINOv2 as Meta's file does, which has a position of the class token."""
    theirs, position = dict(module.state_dict()), torch.full((1, 1, 64), 0.25)
    theirs |= {"register_tokens": theirs.pop("reg_token"), "mask_token": torch.zeros(1, 64)}
    theirs["pos_embed"] = torch.cat((position, theirs["pos_embed"]), dim=1)
    return theirs | {"cls_token": theirs["cls_token"] - position}


def same(module: nn.Module) -> dict[str, Tensor]:
    return module.state_dict()


def with_heads(module: nn.Module) -> dict[str, Tensor]:
    return module.state_dict() | {"head.weight": torch.ones(5, 64), "decoder_pos_embed": torch.zeros(1, 5, 8)}


DINOV3 = "vit_small_patch16_dinov3"
PUBLISHED: dict[str, tuple[str, dict[str, object], Callable[[nn.Module], dict[str, Tensor]]]] = {
    "DINOv2 without registers": ("vit_small_patch14_dinov2", {"img_size": 56}, same),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 56}, same),
    "DINOv2 with registers of Meta": ("vit_small_patch14_reg4_dinov2", {"img_size": 56}, as_meta_dinov2),
    "plain": ("vit_small_patch16_224", {}, with_heads),
    "patches of 32": ("vit_small_patch32_224", {}, same),
    "CLIP": ("vit_base_patch16_clip_224", {}, same),
    "without class token": ("vit_base_patch16_siglip_224", {"global_pool": ""}, same),
    "DINOv3": (f"{DINOV3}_qkvb", {}, same),
    "DINOv3 of Meta": (f"{DINOV3}_qkvb", {}, as_meta_dinov3),
    "DINOv3 without biases": (DINOV3, {}, same),
    "DINOv3 plus": ("vit_small_plus_patch16_dinov3_qkvb", {}, same),
    "DINOv3 plus of Meta": ("vit_small_plus_patch16_dinov3_qkvb", {}, as_meta_dinov3),
}
"""What it is -> timm's name, changes to timm's sizes, and the names in the file."""


@pytest.mark.parametrize("what", PUBLISHED)
def test_a_published_trunk_gives_the_same_features(what: str, tmp_path: Path) -> None:
    name, changes, write = PUBLISHED[what]
    theirs = make_timm(name, **changes)
    torch.save({"model": write(theirs)}, tmp_path / "vit.pth")
    checkpoint = read_checkpoint(tmp_path / "vit.pth")
    side = int(changes.get("img_size", 64))  # type: ignore[call-overload]
    patch = theirs.patch_embed.patch_size[0]
    assert checkpoint.trunk is not None
    ours = build_backbone(checkpoint.trunk, (side, side), patch).eval()
    ours.load_state_dict(checkpoint.weights)
    with torch.no_grad():
        expected = theirs.forward_features(PIXELS[..., :side, :side])  # type: ignore[operator]
        torch.testing.assert_close(ours.forward_features(PIXELS[..., :side, :side]), expected)


TRANSFORMERS = {
    "DINOv2": (Dinov2Config, Dinov2Model, {"patch_size": 14, "image_size": 56}),
    "gated DINOv2": (Dinov2Config, Dinov2Model, {"patch_size": 14, "image_size": 56, "use_swiglu_ffn": True}),
    "with registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel, {"image_size": 64}),
    "plain": (ViTConfig, ViTModel, {"intermediate_size": 96, "image_size": 64, "layer_norm_eps": 1e-6}),
    "DINOv3": (DINOv3ViTConfig, DINOv3ViTModel, {"intermediate_size": 128, "num_register_tokens": 3}),
}


@pytest.mark.parametrize("what", TRANSFORMERS)
def test_a_vit_of_transformers_gives_the_same_features(what: str, tmp_path: Path) -> None:
    config_type, network, settings = TRANSFORMERS[what]
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16}
    theirs = shaken(network(config_type(**shape | settings)))
    theirs.save_pretrained(tmp_path)  # type: ignore[operator]
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.trunk is not None
    if what == "DINOv3":
        expected = {"width": 64, "depth": 2, "num_heads": 2, "hidden": 128, "registers": 3}
        assert checkpoint.trunk == Trunk(**expected, rotary=True, norm_eps=1e-5)
        assert checkpoint.origin.endswith("dinov3-license/")
    side, patch = int(settings.get("image_size", 64)), theirs.config.patch_size  # type: ignore[call-overload]
    for height in (side, side // 2) if what == "DINOv3" else (side,):  # of which no position is resampled
        ours = build_backbone(checkpoint.trunk, (height, side), patch).eval()
        ours.load_state_dict(checkpoint.weights)
        pixels = PIXELS[..., :height, :side]
        with torch.no_grad():
            expected = theirs(pixels).last_hidden_state
            torch.testing.assert_close(ours.forward_features(pixels), expected, atol=1e-4, rtol=0)


def test_a_trunk_of_no_known_size_starts_a_model_that_its_description_rebuilds(tmp_path: Path) -> None:
    state = make_timm("vit_small_patch14_dinov2", img_size=56, embed_dim=192, num_heads=3).state_dict()
    save_file({name: value.half() for name, value in state.items()}, tmp_path / "vit.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"license": "apache-2.0"}}))
    config = ModelConfig(weights=str(tmp_path / "vit.safetensors"), image_size=(64, 96), num_queries=3)
    model = initialise_model(config)
    assert model.config.size == "192x2"
    assert model.config.trunk.registers == 0
    assert model.backbone.pos_embed.shape == (1, 24, 192)  # 4 x 4 and the class token before
    assert model.config.origin.startswith("vit.safetensors, sha256 ")
    assert model.config.origin.endswith("licence: apache-2.0")
    again = load_model(save(model, tmp_path / "run"))
    assert again.config == model.config
    assert again.config.origin == model.config.origin
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(again(image).mask_logits[-1], model.eval()(image).mask_logits[-1])


@pytest.mark.parametrize(
    ("given", "size"),
    [("", "dinov3-small"), ("small", "dinov3-small"), ("dinov3-small", "dinov3-small")],
    ids=str,
)
def test_a_size_names_width_and_depth_and_the_weights_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, size: str
) -> None:
    for name in ("small", "dinov3-small"):
        monkeypatch.setitem(SIZES, name, replace(SIZES[name], depth=2))
    torch.save(build_backbone(SIZES["dinov3-small"], (32, 32), 16).state_dict(), tmp_path / "vit.pth")
    config = ModelConfig(weights=str(tmp_path / "vit.pth"), size=given, image_size=(32, 64), num_queries=2)
    assert initialise_model(config).config.size == size
    with refused("a backbone of size dinov3-small .*; model.size says base"):
        initialise_model(ModelConfig(weights=config.weights, size="base"))


def test_a_description_of_before_there_were_trunks_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    (tmp_path / DESCRIPTION_NAME).write_text('{"size": "tiny", "image_size": [32, 32], "num_queries": 3}')
    save_file(make_model().state_dict(), tmp_path / "model.safetensors")
    assert load_model(tmp_path).config.trunk == SIZES["tiny"]


def test_an_eomt_of_lightly_over_dinov3_is_the_same_model(tmp_path: Path) -> None:
    model = make_model(size="", trunk=replace(SIZES["dinov3-tiny"], layer_scale=True))
    whole = model.state_dict()
    named = {f"backbone.{n}": v for n, v in as_meta_dinov3(model.backbone).items()}
    named |= {n: v for n, v in whole.items() if not n.startswith("backbone.")}
    torch.save({"train_model": {f"model.{n}": v for n, v in named.items()}}, tmp_path / "vits16.pt")
    checkpoint = read_checkpoint(tmp_path / "vits16.pt")
    assert checkpoint.title == "EoMT of LightlyTrain"
    assert checkpoint.weights.keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in checkpoint.weights.items())
    assert checkpoint.origin.endswith("dinov3-license/")
    load_model(tmp_path / "vits16.pt")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_small_plus_patch16_dinov3", "dinov3-small-plus"),
        ("vit_base_patch16_dinov3", "dinov3-base"),
        ("vit_large_patch16_dinov3", "dinov3-large"),
        ("vit_huge_plus_patch16_dinov3_qkvb", "dinov3-huge-plus"),
        ("vit_7b_patch16_dinov3", "dinov3-7b"),
        ("vit_giant_patch14_reg4_dinov2", "giant"),
    ],
)
def test_a_published_size_has_the_names_and_shapes_of_its_file(name: str, size: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0).state_dict()
        ours = build_backbone(SIZES[size], (64, 64), 14 if "14" in name else 16)
    renamed = KINDS["backbone"].translate(theirs)
    assert read_trunk(renamed, name) == SIZES[size]
    assert fit_backbone_weights(ours, renamed, name)[1].fits


def test_an_older_timm_is_named_where_it_cannot_build_dinov3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.backbone.Eva", type("Eva", (), {}))  # as of 1.0.19, without `rope_type`
    build_backbone(SIZES["tiny"], (32, 32), 16)
    with refused(r"model.trunk: DINOv3 needs timm 1.0.20 or newer, this is 1\.\S+; pip install -U timm"):
        initialise_model(ModelConfig(size="dinov3-tiny", image_size=(32, 32)))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "deit_small_distilled_patch16_224",
            {},
            r"unexpected \[dist_token.*; what can be read are plain ViT",
        ),
        ("beit_base_patch16_224", {}, "what can be read are plain ViTs, such as DINOv3's"),
        ("vit_small_patch16_224", {"embed_dim": 100}, "a trunk of width 100, in no file's heads of 64"),
    ],
    ids=str,
)
def test_what_is_no_plain_vit_is_one_line(tmp_path: Path, name: str, changes: dict, message: str) -> None:
    torch.save(make_timm(name, **changes).state_dict(), tmp_path / "vit.pth")
    with refused(message):
        initialise_model(ModelConfig(weights=str(tmp_path / "vit.pth"), image_size=(64, 64)))
