"""Every published form of an EoMT is recognised by looking, and becomes the same weights under our names."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
)

from jobs.export import main
from models.backbone import build_backbone
from models.config import METADATA_KEY, ModelConfig, describe
from models.eomt import IMAGENET_MEAN, IMAGENET_STD, EoMT
from models.trunk import SIZES, Trunk
from models.weights.checkpoint import initialise_model, load_model
from models.weights.formats import read_checkpoint
from models.weights.huggingface import from_huggingface, to_huggingface
from shards.errors import InputError
from tests.models.tiny import make_model
from tests.support.refused import refused

CONFIG = ModelConfig(size="tiny", image_size=(48, 48), num_queries=5, num_blocks=3, num_classes=7)
REFERENCE_TRUNK = Trunk(width=128, depth=2, num_heads=2, hidden=512)
REFERENCE_CONFIG = ModelConfig(
    trunk=REFERENCE_TRUNK, image_size=(64, 64), num_queries=6, num_blocks=1, num_classes=9
).completed()


def as_upstream(model: EoMT, prefix: str = "network.") -> dict[str, torch.Tensor]:
    """Name the weights as tue-mps/eomt's Lightning module does."""
    state = {
        "criterion.empty_weight": torch.ones(8),
        f"{prefix}attn_mask_probs": torch.zeros(model.num_blocks),
    }
    for name, value in model.state_dict().items():
        theirs = name.replace("queries.", "q.")
        state[prefix + ("encoder." if name.startswith("backbone.") else "") + theirs] = value
    for name in ("pixel_mean", "pixel_std"):
        state[f"{prefix}encoder.{name}"] = torch.ones(1, 3, 1, 1)
    return state


@pytest.fixture(name="model", scope="module")
def _model() -> EoMT:
    torch.manual_seed(0)
    return EoMT(CONFIG).eval()


@pytest.mark.parametrize(
    "prefix",
    ["network.", "", "module.network.", "network._orig_mod.", "_orig_mod.module."],
    ids=["lightning", "bare", "ddp", "compiled", "compiled ddp"],
)
def test_upstream_files_are_read_whatever_wrapped_them(tmp_path: Path, model: EoMT, prefix: str) -> None:
    state = as_upstream(model, prefix)
    saved = {"state_dict": state, "epoch": 3, "optimizer_states": [{"state": {}, "param_groups": []}]}
    torch.save(saved if "network" in prefix else state, tmp_path / "last.ckpt")
    loaded = load_model(tmp_path / "last.ckpt")
    assert loaded.config == model.config
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("mask_probs", "num_blocks", "note"),
    [
        (None, 2, "joint blocks are not in the file: 2, as the size has by default"),
        ([0.0, 0.0, 0.5], 3, "its training was to keep masked attention; here inference never masks"),
    ],
    ids=["size", "annealing"],
)
def test_what_the_file_says_of_joint_blocks_is_noted(
    tmp_path: Path, model: EoMT, mask_probs: list[float] | None, num_blocks: int, note: str
) -> None:
    state = as_upstream(model)
    del state["network.attn_mask_probs"]
    if mask_probs:
        state["network.attn_mask_probs"] = torch.tensor(mask_probs)
    torch.save(state, tmp_path / "eomt.bin")
    checkpoint = read_checkpoint(tmp_path / "eomt.bin")
    assert checkpoint.config is not None
    assert checkpoint.config.num_blocks == num_blocks
    assert note in checkpoint.notes


def shaken(network: torch.nn.Module) -> torch.nn.Module:
    """Move weights off 0 and 1, where differences would not show."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 or "lambda" in name or "bias" in name:
                parameter.normal_(std=0.05)
        network.attn_mask_probs.zero_()  # transformers masks in inference too where these are above 0
    return network.eval()


@pytest.fixture(name="reference", scope="module")
def _reference() -> EomtForUniversalSegmentation:
    torch.manual_seed(1)
    config = EomtConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=64, num_blocks=1,
        num_queries=6, id2label={i: str(i) for i in range(9)},
    )  # fmt: skip
    return shaken(EomtForUniversalSegmentation(config))


def assert_same_prediction(model: EoMT, reference: torch.nn.Module) -> None:
    """Compare with a network of transformers, which takes normalised images."""
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        ours, theirs = model(image), reference((image / 255 - mean) / std)
    torch.testing.assert_close(ours.mask_logits[-1], theirs.masks_queries_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.class_logits[-1], theirs.class_queries_logits, atol=1e-4, rtol=0)


def test_a_hugging_face_folder_gives_the_same_prediction(
    tmp_path: Path, reference: EomtForUniversalSegmentation
) -> None:
    torch.save(reference.state_dict(), tmp_path / "pytorch_model.bin")
    assert load_model(tmp_path).config == REFERENCE_CONFIG  # the weights alone tell their sizes
    reference.save_pretrained(tmp_path / "eomt")
    model = load_model(tmp_path / "eomt")
    assert model.config == REFERENCE_CONFIG
    isomax = initialise_model(ModelConfig(weights=str(tmp_path / "eomt"), class_head="isomax"))
    assert isomax.class_head.prototypes.shape == (10, 128)
    assert_same_prediction(model, reference)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mask2former"}, "model_type 'mask2former' is not supported; eomt and eomt_dinov3"),
        ({"hidden_size": 768}, "says a width of 768 and 2 blocks; the weights beside it have a width of 1"),
        ({"patch_size": 0}, "patch_size is 0; at least 1 is needed"),
        ({"num_blocks": "x"}, "num_blocks is 'x'; int is needed"),
        ({"image_size": [64]}, "image_size: "),
    ],
    ids=str,
)
def test_a_hugging_face_configuration_that_is_no_eomt_is_refused(
    tmp_path: Path, reference: EomtForUniversalSegmentation, changes: dict, message: str
) -> None:
    torch.save(reference.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(reference.config.to_dict() | changes))
    with pytest.raises(InputError, match=f"config.json: {message}"):
        read_checkpoint(tmp_path)


def test_names_to_hugging_face_and_back_are_the_same(model: EoMT) -> None:
    state = model.state_dict()
    back = from_huggingface(to_huggingface(state))
    scales = {name for name in back if ".ls" in name}
    assert len(scales) == 12
    assert back.keys() - scales == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())


@pytest.mark.parametrize("value", [torch.tensor(1.0), torch.ones(128, 5)], ids=["scalar", "columns"])
def test_pieces_that_do_not_fit_together_are_named(tmp_path: Path, model: EoMT, value: torch.Tensor) -> None:
    theirs = to_huggingface(model.state_dict()) | {"layers.1.attention.k_proj.weight": value}
    torch.save(theirs, tmp_path / "w.bin")
    with refused(r"1 missing \[backbone.blocks.1.attn.qkv.weight\], 3 unexpected \[layers.1.attention."):
        load_model(tmp_path / "w.bin")


def test_giant_names_are_those_of_transformers_with_a_gated_mlp() -> None:
    with torch.device("meta"):
        ours = EoMT(ModelConfig(size="giant", image_size=(64, 64), num_queries=3)).state_dict()
        config = EomtConfig(
            hidden_size=1536, num_hidden_layers=40, num_attention_heads=24, image_size=64, num_blocks=5,
            num_queries=3, use_swiglu_ffn=True, num_labels=19,
        )  # fmt: skip
        theirs = EomtForUniversalSegmentation(config).state_dict()
        renamed = to_huggingface(ours)
    shapes = {name: value.shape for name, value in theirs.items()}
    del shapes["attn_mask_probs"], shapes["criterion.empty_weight"]
    assert {name: value.shape for name, value in renamed.items()} == shapes


def test_an_exported_file_says_what_it_is(tmp_path: Path, model: EoMT) -> None:
    config = ModelConfig(size="tiny", image_size=(32, 64), num_queries=2, num_blocks=1).completed()
    path = tmp_path / "merged.safetensors"
    save_file(EoMT(config).state_dict(), path, metadata={METADATA_KEY: describe(config)})
    assert load_model(path).config == config  # neither the grid's shape nor joint blocks are in the weights


@pytest.mark.parametrize(
    ("image_size", "gone", "message"),
    [
        ((32, 64), "none", "file: 8 positions are no square grid"),
        ((32, 32), ".blocks.0.", "blocks.0.mlp.fc1.weight is missing; 2 dimensions are needed"),
    ],
    ids=["grid", "blocks"],
)
def test_sizes_that_weights_cannot_tell_are_refused(
    tmp_path: Path, image_size: tuple[int, int], gone: str, message: str
) -> None:
    state = make_model(image_size=image_size).state_dict()
    torch.save({name: value for name, value in state.items() if gone not in name}, tmp_path / "file")
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path / "file")


def test_a_wrapped_backbone_is_recognised(tmp_path: Path) -> None:
    state = build_backbone(SIZES["tiny"], (28, 28), 14).state_dict()
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "vit.pth")
    checkpoint = read_checkpoint(tmp_path / "vit.pth")
    assert (checkpoint.kind, checkpoint.config) == ("backbone", None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            "fc.weight fc.bias",
            r"weights of no known kind, with names \[fc.weight, fc.bias\]; known .*; --m",
        ),
        ("q.weight encoder.backbone.a ema.q.weight ema.encoder.backbone.a", "2 times: no prefix, ema.; keep"),
        (
            "a._orig_mod.q.weight a.q.weight",
            "holds a.q.weight twice, with and without what a wrapper add",
        ),
    ],
    ids=["unknown", "two models", "twice"],
)
def test_what_is_not_recognised_is_refused(tmp_path: Path, names: str, message: str) -> None:
    torch.save({name: torch.ones(1) for name in names.split()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=f"w.pth: .*{message}"):
        read_checkpoint(tmp_path / "w.pth")


def test_what_lies_beside_a_network_is_noted(tmp_path: Path, model: EoMT) -> None:
    torch.save(as_upstream(model) | {"metric.count": torch.ones(1)}, tmp_path / "last.ckpt")
    note = "left aside, as it is not below network.: [criterion.empty_weight, metric.count]"
    assert note in read_checkpoint(tmp_path / "last.ckpt").notes


def test_folders_that_hold_no_or_several_weight_files_are_refused(tmp_path: Path) -> None:
    with refused(r"the folder holds no weight file \(.safetensors, .bin, .ckpt, .pth, .pt\)$"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.onnx").touch()
    with refused(r"the folder holds no weight file .*; it holds \[model.onnx\]"):
        read_checkpoint(tmp_path)
    for i in (1, 2):
        torch.save({"a": torch.ones(1)}, tmp_path / f"pytorch_model-0000{i}-of-00002.bin")
    with refused("2 parts of one model without their index.json"):
        read_checkpoint(tmp_path)
    torch.save({"a": torch.ones(1)}, tmp_path / "b.pth")
    with refused("the folder holds 3 weight files; name one of them"):
        read_checkpoint(tmp_path)
    with refused("nothing: no such file or folder"):
        read_checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("q.weight", torch.ones(3), "queries.weight is 3; 2 dimensions are needed"),
        ("class_head.weight", torch.tensor(1.0), "class_head.weight is scalar; 2 dimensions are needed"),
        ("encoder.backbone.pos_embed", torch.ones(4), "backbone.pos_embed is 4; 3 dimensions are needed"),
        ("attn_mask_probs", torch.tensor(0.0), "attn_mask_probs has 0 dimensions; one is needed"),
        ("attn_mask_probs", torch.zeros(99), "99 joint blocks; size tiny has 6 blocks"),
    ],
    ids=["queries", "class head", "positions", "probabilities", "joint blocks"],
)
def test_weights_that_tell_impossible_sizes_are_refused(
    tmp_path: Path, model: EoMT, name: str, value: torch.Tensor, message: str
) -> None:
    torch.save(as_upstream(model) | {f"network.{name}": value}, tmp_path / "eomt.bin")
    with pytest.raises(InputError, match=f"eomt.bin: {message}"):
        read_checkpoint(tmp_path / "eomt.bin")


def as_upstream_dinov3(model: EoMT) -> dict[str, torch.Tensor]:
    """Name the weights as tue-mps/eomt's Lightning module does over transformers' DINOv3."""
    renamed = {}
    for name, value in to_huggingface(model.state_dict()).items():
        theirs = re.sub(r"^embeddings\.", "encoder.backbone.patch_embed.", name)
        theirs = re.sub(r"^layers\.", "encoder.backbone.blocks.", theirs)
        renamed[re.sub(r"^layernorm\.", "encoder.backbone.norm.", theirs)] = value
    ours = {n: v for n, v in model.state_dict().items() if not n.startswith(("backbone.", "queries."))}
    theirs = {n: v for n, v in renamed.items() if n.startswith("encoder.")}
    theirs |= ours | {"q.weight": model.queries.weight.detach(), "attn_mask_probs": torch.zeros(2)}
    return {f"network.{name}": value for name, value in theirs.items()}


@pytest.fixture(name="dinov3", scope="module")
def _dinov3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EoMT over DINOv3 as upstream writes it, whole and as differences, its base, and two others."""
    folder = tmp_path_factory.mktemp("dinov3")
    torch.manual_seed(0)
    trunk = replace(SIZES["dinov3-tiny"], layer_scale=True)
    base = build_backbone(trunk, (32, 32), 16).state_dict()
    torch.save(base, folder / "base.pth")
    for name, size in (("small.pth", "dinov3-small"), ("dinov2.pth", "tiny")):
        other = build_backbone(replace(SIZES[size], depth=2), (32, 32), 16)
        torch.save(other.state_dict(), folder / name)
    model = make_model(size="", trunk=trunk)
    whole = as_upstream_dinov3(model)
    torch.save(whole, folder / "whole.bin")
    model.backbone.load_state_dict({n: v - base[n] for n, v in model.backbone.state_dict().items()})
    torch.save(as_upstream_dinov3(model), folder / "delta.bin")
    for block in model.backbone.blocks:  # a training that barely moved the norms, up only
        block.norm1.weight.data.fill_(1e-3)
        block.norm2.weight.data.fill_(1e-3)
    model.backbone.norm.weight.data.fill_(1e-3)
    mean = {"network.encoder.pixel_mean": torch.zeros(1, 3, 1, 1)}  # upstream adds all of its encoder
    torch.save(as_upstream_dinov3(model) | mean, folder / "rising.bin")
    return folder


def test_upstreams_differences_and_their_base_are_the_whole(dinov3: Path) -> None:
    whole = load_model(dinov3 / "whole.bin")
    assert whole.config.trunk == replace(SIZES["dinov3-tiny"], layer_scale=True)
    assert whole.config.image_size == (1024, 1024)  # in no weight
    places = {"weights": str(dinov3 / "delta.bin"), "base": str(dinov3 / "base.pth")}
    added = initialise_model(ModelConfig(**places, image_size=(32, 64)))
    assert added.config.num_queries == 3
    base = hashlib.sha256((dinov3 / "base.pth").read_bytes()).hexdigest()
    notes = read_checkpoint(dinov3 / "delta.bin", str(dinov3 / "base.pth")).notes
    assert f"differences, added to {dinov3 / 'base.pth'}, sha256 {base}" in notes
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(added.state_dict()[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("weights", "base", "message"),
    [
        ("delta.bin", "", "delta.bin: holds differences to DINOv3's weights.*--model.base FILE"),
        ("rising.bin", "", "rising.bin: holds differences to DINOv3's weights.*jobs.export --to safetensors"),
        ("whole.bin", "base.pth", "model.base .*whole.bin holds whole weights, no differences.*leave it out"),
        ("delta.bin", "whole.bin", "model.base .*: EoMT of tue-mps/eomt; DINOv3's own file is needed"),
        ("delta.bin", "small.pth", "model.base .*: is not what .* holds differences to"),
        ("delta.bin", "dinov2.pth", "model.base .*: is not what .* holds differences to"),
        ("base.pth", "base.pth", "only files of tue-mps/eomt over DINOv3 hold differences"),
        ("", "base.pth", "model.base .*: model.weights, which it is the base of, is empty"),
    ],
    ids=str,
)
def test_a_base_that_is_not_the_one_is_refused(dinov3: Path, weights: str, base: str, message: str) -> None:
    paths = {"weights": weights and str(dinov3 / weights), "base": base and str(dinov3 / base)}
    with refused(message):
        initialise_model(ModelConfig(image_size=(32, 32), **paths))


def test_a_hugging_face_folder_over_dinov3_gives_the_same_prediction_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "dinov3-small", replace(SIZES["dinov3-small"], depth=2))
    torch.manual_seed(1)
    config = EomtDinov3Config(
        hidden_size=384, num_hidden_layers=2, num_attention_heads=6, intermediate_size=1536,
        image_size=64, num_blocks=1, num_queries=6, layer_norm_eps=1e-5, num_labels=19,
    )  # fmt: skip
    theirs = shaken(EomtDinov3ForUniversalSegmentation(config))
    theirs.save_pretrained(tmp_path / "eomt")
    model = load_model(tmp_path / "eomt")
    assert model.config.size == "dinov3-small"
    assert_same_prediction(model, theirs)
    main(["--checkpoint", str(tmp_path / "eomt"), "--to", "huggingface", "--out", str(tmp_path / "again")])
    again = EomtDinov3ForUniversalSegmentation.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(again[n], v) for n, v in theirs.state_dict().items() if "criterion" not in n)
    origin = json.loads((tmp_path / "again" / "config.json").read_text())["origin"]
    assert "DINOv3 License" in origin
    assert f"Origin: {origin}." in (tmp_path / "again" / "README.md").read_text()
