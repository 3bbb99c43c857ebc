"""Modes of adaptation, and low-rank adapters."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.adapt import (
    add_adapters,
    apply_adaptation,
    count_frozen,
    explain_parameters,
    merge_weights,
    merged,
    plan_unfreezing,
)
from models.adaptation import AdaptConfig, LoraSettings
from models.eomt import EoMT
from models.weights.checkpoint import load_model
from models.weights.formats import read_checkpoint
from shards.errors import InputError
from tests.models.tiny import IMAGE, make_model, over_both_trunks, save

BLOCK = "backbone.blocks."


def make_adapted(mode: str, lora: LoraSettings | None = None, size: str = "tiny") -> EoMT:
    model = make_model(size=size)
    apply_adaptation(model, AdaptConfig(mode=mode, lora=lora or LoraSettings()))
    return model


@over_both_trunks
@pytest.mark.parametrize(
    ("mode", "trains", "frozen"),
    [
        ("full", ["backbone.pos_embed", "queries.weight", "class_head.bias"], []),
        ("heads", ["class_head.weight", "mask_head.0.weight"], ["queries.weight", "upscale.0.conv1.weight"]),
        ("queries", ["queries.weight"], ["class_head.weight", "backbone.norm.weight"]),
        ("queries+heads", ["queries.weight", "mask_head.4.bias"], ["backbone.blocks.5.norm1.weight"]),
        ("last-2", ["backbone.blocks.4.attn.qkv.weight", "backbone.norm.bias"], [f"{BLOCK}3.norm1.weight"]),
        (
            "lora",
            [f"{BLOCK}0.attn.qkv.lora_B.default.weight", "queries.weight", "class_head.bias"],
            [f"{BLOCK}0.attn.qkv.base_layer.weight", "upscale.0.conv1.weight", "backbone.pos_embed"],
        ),
        ("gradual", ["backbone.pos_embed", "queries.weight"], []),
    ],
)
def test_a_mode_frees_what_it_names_and_the_rest_keeps_every_bit(
    size: str, mode: str, trains: list[str], frozen: list[str]
) -> None:
    model = make_adapted(mode, size=size)
    trains = [name for name in trains if size == "tiny" or name != "backbone.pos_embed"]
    free = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert free.issuperset(trains)
    assert free.isdisjoint(frozen)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):  # weight decay included
        prediction = model(IMAGE, torch.zeros(2, 2, 3, dtype=torch.bool))
        sum(t.square().mean() for t in (*prediction.mask_logits, *prediction.class_logits)).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) is not parameter.requires_grad, name


@over_both_trunks
def test_blocks_that_stand_still_get_gradients_of_exactly_zero(size: str) -> None:
    model = make_model(size=size)
    prediction = model(IMAGE, None, 3)
    (prediction.mask_logits[-1].square().mean() + prediction.class_logits[-1].square().mean()).backward()
    embedding = [f"backbone.{part}" for part in ("patch_embed", "cls_token", "reg_token", "pos_embed")]
    first = (*embedding, *(f"{BLOCK}{i}." for i in range(3)))
    for name, parameter in model.named_parameters():
        still = name.startswith(first)
        assert parameter.grad is not None, name
        assert bool((parameter.grad == 0).all()) is still, name


def test_standing_still_does_not_change_the_prediction() -> None:
    model = make_model()
    assert torch.equal(model(IMAGE).mask_logits[-1], model(IMAGE, None, 4).mask_logits[-1])


def saved_bytes(model: EoMT, num_frozen: int = 0) -> int:
    """Count what a forward pass keeps for the backward pass, parameters left out."""
    parameters = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(IMAGE, None, num_frozen)
    return sum(kept.values())


def test_frozen_blocks_keep_no_activations() -> None:
    """Blocks are alike, so what is kept shrinks with the number of blocks that train."""
    full = saved_bytes(make_model())
    kept = {mode: saved_bytes(make_adapted(mode)) for mode in ("heads", "queries", "last-1", "last-3")}
    assert kept["heads"] < kept["last-1"] < kept["last-3"] < full
    assert kept["queries"] < 0.5 * full
    per_block = (kept["last-3"] - kept["last-1"]) / 2
    assert full - saved_bytes(make_adapted("gradual"), num_frozen=4) > 3.5 * per_block


def test_blocks_are_unfrozen_from_the_last_to_the_first() -> None:
    steps = plan_unfreezing(AdaptConfig(mode="gradual", thaw=(0.1, 0.7)), make_model(), 100)
    assert steps == (70, 50, 30, 10)
    assert [count_frozen(steps, step) for step in (0, 9, 10, 29, 30, 69, 70, 99)] == [4, 4, 3, 3, 2, 1, 0, 0]
    assert count_frozen(plan_unfreezing(AdaptConfig(mode="full"), make_model(), 100), 0) == 0


def test_parameters_are_counted_and_explained_part_by_part() -> None:
    model = make_model()
    count = apply_adaptation(model, AdaptConfig(mode="queries"))
    assert (count.trainable, count.total) == (3 * 128, sum(p.numel() for p in model.parameters()))
    assert str(count).startswith("384 of ")
    model = make_adapted("last-2")
    block = sum(p.numel() for p in model.backbone.blocks[0].parameters())
    lines = explain_parameters(model)
    assert f"block 0-3 each      0 of {block:,} parameters train (0.0%)" in lines
    assert f"block 4-5 each      {block:,} of {block:,} parameters train (100.0%)" in lines


def test_dropout_of_adapters_is_for_training_only() -> None:
    model = make_adapted("lora", LoraSettings(dropout=0.5))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter)
    model.eval()
    assert torch.equal(model(IMAGE).mask_logits[-1], model(IMAGE).mask_logits[-1])
    model.train()
    assert not torch.equal(model(IMAGE).mask_logits[-1], model(IMAGE).mask_logits[-1])


def test_impossible_modes_and_shares_are_refused() -> None:
    for mode in ("last-0", "last-N", "lora-8", ""):
        with pytest.raises(InputError, match=f"adapt.mode: unknown mode '{mode}'; known modes: full, heads"):
            AdaptConfig(mode=mode)
    with pytest.raises(InputError, match="adapt.mode: last-7 asks for 7 blocks, the model has 6"):
        make_adapted("last-7")
    for thaw in ((0.5, 0.5), (-0.1, 0.5), (0.2, 1.1)):
        with pytest.raises(InputError, match=r"adapt.thaw: got .*; two shares, 0 <= first < second <= 1"):
            AdaptConfig(mode="gradual", thaw=thaw)


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
    with pytest.raises(InputError, match=r"model.safetensors: LoRA adapters without the model.json that s"):
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
