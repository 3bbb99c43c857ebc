"""Averaged weights: the published average, kept to the bit through validation, saving and resuming."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.weights.checkpoint import load_model, open_checkpoint
from shards.errors import InputError
from tests.models.tiny import over_both_trunks
from tests.trainer.small_run import assert_equal, copy_killed, train, weights
from trainer.ema import WeightAverage
from trainer.sections import EmaConfig


def make_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    net[0].bias.requires_grad_(False)
    return net


def walk(net: nn.Module) -> dict[str, torch.Tensor]:
    """Move what trains at random; return all weights."""
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter))
    return {name: value.detach().clone() for name, value in net.named_parameters()}


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_that_of_a_loop_in_float64(warmup: bool) -> None:
    net = make_net()
    expected = {name: value.detach().double() for name, value in net.named_parameters()}
    average = WeightAverage(net, EmaConfig(decay=0.5, warmup=warmup))
    decays = []
    for t in range(1, 13):
        now = walk(net)
        average.update()
        decays.append(average.decay())
        d = min(0.5, (1 + t) / (10 + t)) if warmup else 0.5
        expected = {name: d * value + (1 - d) * now[name].double() for name, value in expected.items()}
    assert decays[:2] == ([2 / 11, 3 / 12] if warmup else [0.5, 0.5])
    assert decays[7] == decays[11] == 0.5  # 9/18 at t = 8
    with average.applied():
        for name, value in net.named_parameters():
            torch.testing.assert_close(value.double(), expected[name], atol=1e-6, rtol=0)


def test_the_model_gets_its_own_weights_back_to_the_bit_even_after_an_error() -> None:
    net = make_net()
    average = WeightAverage(net, EmaConfig(decay=0.9))
    before = walk(net)
    average.update()
    with average.applied():
        assert not torch.equal(net[0].weight, before["0.weight"])
    with contextlib.suppress(RuntimeError), average.applied():
        raise RuntimeError
    assert all(torch.equal(value, before[name]) for name, value in net.named_parameters())


def test_frozen_weights_are_not_copied_and_without_decay_nothing_is(tmp_path: Path) -> None:
    net = make_net()
    WeightAverage(net, EmaConfig(decay=0.9)).save(tmp_path)
    assert set(load_file(tmp_path / "ema.safetensors")) == {"0.weight", "2.weight", "2.bias"}
    nothing = WeightAverage(net, EmaConfig())
    nothing.update()
    nothing.save(tmp_path / "missing")
    nothing.load(tmp_path / "missing")
    assert not nothing
    assert nothing.updates == 0


@over_both_trunks
def test_a_lora_run_keeps_averages_that_every_reader_takes(
    tmp_path: Path, scene_shards: str, size: str
) -> None:
    """Validation, evaluation and a further run see the averages; a file of a checkpoint the weights."""
    extra = ("--ema.decay", "0.9", "--adapt.mode", "lora", "--model.size", size)
    train(tmp_path, scene_shards, *extra)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-0000004"
    averages = load_file(checkpoint / "ema.safetensors")
    assert {name.split(".")[0] for name in averages} == {"backbone", "queries", "class_head", "mask_head"}
    assert all(".lora_" in name for name in averages if name.startswith("backbone."))
    read = load_model(tmp_path / "run").state_dict()
    latest = load_model(checkpoint / "model.safetensors").state_dict()
    assert torch.equal(read["queries.weight"], averages["queries.weight"])
    assert torch.equal(latest["queries.weight"], weights(tmp_path)["queries.weight"])
    layer = "backbone.blocks.2.attn.proj"
    up, down = (averages[f"{layer}.lora_{half}.default.weight"] for half in "BA")
    expected = weights(tmp_path)[f"{layer}.base_layer.weight"] + 2 * up @ down
    torch.testing.assert_close(read[f"{layer}.weight"], expected, atol=1e-6, rtol=0)
    assert "weights averaged over training, from ema.safetensors" in open_checkpoint(tmp_path / "run").notes
    save_file({"strange": torch.zeros(1)}, checkpoint / "ema.safetensors")
    message = "averages strange, of which model.safetensors has none of this shape"
    with pytest.raises(InputError, match=message):
        load_model(tmp_path / "run")


def test_a_resumed_run_keeps_its_averages_to_the_bit(
    tmp_path: Path, scene_shards: str, finished: Path
) -> None:
    extra = ("--ema.decay", "0.9", "--validation.shards", scene_shards, "--validation.limit", "1")
    extra += ("--loop.eval_every", "3")  # the average stands in for the weights once, and leaves no trace
    extra += ("--tracking.probes", "0")
    train(tmp_path / "a", scene_shards, *extra)
    latest = weights(tmp_path / "a")
    assert_equal(latest, weights(finished))
    copy_killed(tmp_path / "a", tmp_path / "b", 2)
    train(tmp_path / "b", scene_shards, *extra, resume=True)
    expected, actual = (weights(tmp_path / name, file="ema.safetensors") for name in "ab")
    assert_equal(actual, expected)
    assert not torch.equal(expected["queries.weight"], latest["queries.weight"])
