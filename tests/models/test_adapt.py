from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from models.adapt import apply_adaptation, count_frozen, explain_parameters, plan_unfreezing
from models.adaptation import AdaptConfig, LoraSettings
from models.eomt import EoMT
from shards.errors import InputError
from tests.models.tiny import IMAGE, make_model, over_both_trunks

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


@pytest.mark.parametrize("mode", ["full", "last-2", "lora", "queries"])
def test_the_parts_add_up_to_what_trains(mode: str) -> None:
    model = make_adapted(mode)
    sums = [0, 0]
    for line in explain_parameters(model):
        part = r"[a-z ]+?(?: (\d+)(?:-(\d+) each)?)?"
        found = re.fullmatch(rf"{part} +([\d,]+) of ([\d,]+) parameters .*", line)
        assert found, line
        times = int(found[2]) - int(found[1]) + 1 if found[2] else 1
        sums = [sums[i] + times * int(found[3 + i].replace(",", "")) for i in (0, 1)]
    parameters = list(model.parameters())
    assert sums == [sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)]
    named = {line.split("  ")[0] for line in explain_parameters(model)}
    assert named >= {"position embedding", "class token", "register tokens", "patch embedding", "queries"}


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
