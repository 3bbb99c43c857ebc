from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.adaptation import LoraSettings
from models.eomt import EoMT
from models.lora import add_adapters, merge_weights, merged
from models.weights.checkpoint import load_model
from models.weights.formats import read_checkpoint
from shards.errors import InputError
from tests.models.tiny import IMAGE, make_model, over_both_trunks, save

QKV = LoraSettings(targets=("attn.qkv",))
EVERYTHING = LoraSettings(targets=("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"), rank=4, alpha=6.0)


def adapted(settings: LoraSettings = EVERYTHING, size: str = "tiny") -> EoMT:
    """A model whose adapters change something."""
    model = make_model(size=size)
    add_adapters(model, settings)
    for half in halves_b(model):
        torch.nn.init.normal_(half, std=0.1)
    return model.eval()


def halves_b(model: EoMT) -> list[torch.nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if ".lora_B." in name]


@torch.no_grad()
def predict(model: EoMT) -> torch.Tensor:
    return model(IMAGE).mask_logits[-1]


def test_an_adapter_changes_nothing_before_its_first_step() -> None:
    model = make_model()
    before = predict(model)
    add_adapters(model, EVERYTHING)
    torch.testing.assert_close(predict(model), before, atol=1e-5, rtol=0)  # layouts differ, sums too
    assert not any(half.any() for half in halves_b(model))


def test_an_adapted_layer_is_the_published_formula() -> None:
    model = adapted()
    layer = model.backbone.blocks[3].attn.qkv
    x = torch.randn(5, 128, dtype=torch.float64)
    weights = {name: value.double() for name, value in layer.state_dict().items()}
    down, up = weights["lora_A.default.weight"], weights["lora_B.default.weight"]
    expected = x @ weights["base_layer.weight"].T + weights["base_layer.bias"] + 6 / 4 * (x @ down.T @ up.T)
    torch.testing.assert_close(layer(x.float()).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("targets", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"])
def test_every_adapter_counts_over_rotary_positions(targets: str) -> None:
    model = adapted(LoraSettings(targets=(targets,)), "dinov3-tiny")
    for unmasked in (None, torch.zeros(2, 2, 3, dtype=torch.bool)):
        plain, changed = (m(IMAGE, unmasked).mask_logits[-1] for m in (make_model(size="dinov3-tiny"), model))
        assert (plain - changed).abs().max() > 1e-4


@over_both_trunks
def test_merged_weights_predict_the_same_and_leave_no_trace_even_of_a_failure(size: str) -> None:
    model = adapted(size=size)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    apart = predict(model)
    with contextlib.suppress(RuntimeError), merged(model):
        together = predict(model)
        raise RuntimeError
    assert (apart - predict(make_model(size=size))).abs().max() > 1e-3
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)  # sums in another order
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(predict(model), apart)


def test_a_saved_adapted_model_is_read_as_a_plain_one_of_its_strength(tmp_path: Path) -> None:
    predictions = []
    for alpha in (1.0, 6.0):
        model = adapted(LoraSettings(rank=4, alpha=alpha))
        loaded = load_model(save(model, tmp_path / str(alpha)))
        assert loaded.state_dict().keys() == make_model().state_dict().keys()
        predictions.append(predict(loaded))
        torch.testing.assert_close(predictions[-1], predict(model), atol=1e-5, rtol=1e-5)
    assert (predictions[0] - predictions[1]).abs().max() > 1e-3
    assert "LoRA of rank 4, alpha 6, merged" in read_checkpoint(tmp_path / "6.0").notes


def test_adapters_without_their_description_are_refused(tmp_path: Path) -> None:
    save_file(adapted().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(
        InputError, match=r"model.safetensors: LoRA adapters without the model.json that says"
    ):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("gone", "settings", "message"),
    [
        ("0.attn.qkv.base_layer.weight", EVERYTHING, "without its base: backbone.blocks.0.attn.qkv"),
        ("0.attn.qkv.lora_A", EVERYTHING, "without its A: backbone.blocks.0.attn.qkv"),
        ("0.attn.qkv.lora_B", EVERYTHING, "without its B: backbone.blocks.0.attn.qkv"),
        ("3.attn.proj.lora_", EVERYTHING, "without its A: backbone.blocks.3.attn.proj"),
        ("none", QKV, "on backbone.blocks.0.attn.proj, which the model's description does not name"),
        ("mlp.", LoraSettings(rank=2), r"of .* has shapes .*; rank 2 over \(128, 128\)"),
    ],
    ids=["base", "A", "B", "both", "layers", "rank"],
)
def test_adapters_that_are_not_as_described_are_refused(
    gone: str, settings: LoraSettings, message: str
) -> None:
    state = {name: value for name, value in adapted().state_dict().items() if gone not in name}
    with pytest.raises(InputError, match=f"file: (a|the) LoRA adapter {message}"):
        merge_weights(state, settings, "file")


def test_only_the_last_blocks_get_adapters() -> None:
    model = adapted(LoraSettings(last_blocks=2))
    blocks = {int(name.split(".")[2]) for name in model.state_dict() if ".lora_A." in name}
    assert blocks == {4, 5}
    with pytest.raises(InputError, match="lora.last_blocks: 7 blocks were asked for, the model has 6"):
        adapted(LoraSettings(last_blocks=7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ("qkv",)}, "adapt.lora.targets: unknown layer 'qkv'; known: attn.qkv, attn.proj"),
        ({"targets": ()}, "adapt.lora.targets: at least one of attn.qkv"),
        ({"targets": ("attn.qkv", "attn.qkv")}, "adapt.lora.targets: at least one of attn.qkv"),
        ({"rank": 0}, "adapt.lora.rank must be at least 1, got 0"),
        ({"alpha": 0.0}, "adapt.lora.alpha must be above 0, got 0"),
        ({"dropout": 1.0}, r"adapt.lora.dropout must be in \[0, 1\), got 1"),
        ({"last_blocks": -1}, "adapt.lora.last_blocks must be 0 .all. or more, got -1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LoraSettings(**settings)
