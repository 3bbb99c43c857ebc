"""Steps that are no numbers: named, skipped as often as allowed, and never part of a checkpoint."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import trainer.run
from models.weights.run_files import list_checkpoints
from shards.batch import Batch
from shards.stream import Stream
from tests.trainer.small_run import PoisonedLoss, assert_equal, forget_after, train, weights
from trainer.collective import DivergenceError, checksum, drop_step, find_bad_step, require_sound_weights
from trainer.losses.loss import build_loss
from trainer.losses.options import LossConfig


def build_poisoned(config: LossConfig) -> PoisonedLoss:
    return PoisonedLoss(build_loss(config), "scene0")


def test_a_bad_step_is_left_out_as_if_its_samples_had_not_been_there(
    tmp_path: Path, scene_shards: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The other run reads the same samples but for that batch, and has a loss without NaN."""
    with monkeypatch.context() as patch:
        patch.setattr(trainer.run, "build_loss", build_poisoned)
        skip = ("--loop.skip_bad_steps", "1", "--loop.save_every", "1")
        state = train(tmp_path / "a", scene_shards, *skip)
        assert (state.step, state.skipped_steps, state.samples_seen) == (4, 1, 10)
        (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert message.startswith("skipped, 1 of 1 allowed: step ")
        assert "gradient norm is nan; loss terms not finite: dice; mask " in message
        assert "scene0" in message.partition("samples ")[2]

        shutil.copytree(tmp_path / "a", tmp_path / "b")  # resumed from before and after the bad step
        for step in (1, 3):
            forget_after(step, tmp_path / "b" / "run")
            assert train(tmp_path / "b", scene_shards, *skip, resume=True).skipped_steps == 1

    read = Stream.__iter__

    def without_it(self: Stream) -> Iterator[Batch]:
        return (batch for batch in read(self) if "scene0" not in batch.keys)

    monkeypatch.setattr(Stream, "__iter__", without_it)
    train(tmp_path / "c", scene_shards)
    for name in ("a", "b"):
        assert_equal(weights(tmp_path / name), weights(tmp_path / "c"))


def test_one_bad_step_too_many_ends_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, scene_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.run, "build_loss", build_poisoned)
    with pytest.raises(DivergenceError, match="loss terms not finite: dice; .* samples .*scene0") as stop:
        train(tmp_path, scene_shards, "--loop.save_every", "1", "--loop.steps", "8")
    assert stop.value.exit_code == 70
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    step = int(newest.name.removeprefix("step-"))
    assert str(stop.value).startswith(f"step {step}: gradient norm is nan; ")
    assert all(torch.isfinite(value).all() for value in weights(tmp_path, step).values())


def test_scaling_excuses_an_overflow_but_no_bad_term_and_nothing_at_scale_1() -> None:
    accelerator = Accelerator(cpu=True)
    good, bad = {"mask": torch.tensor(1.0)}, {"mask": torch.tensor(1.0), "dice": torch.tensor(math.inf)}
    overflow = "gradient norm is inf; all loss terms finite; mask 1"
    assert find_bad_step(accelerator, good, 1.0) == ""
    assert find_bad_step(accelerator, good, math.inf) == overflow
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    assert find_bad_step(accelerator, good, math.inf) == ""
    assert "loss terms not finite: dice; " in find_bad_step(accelerator, bad, 1.0)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    assert find_bad_step(accelerator, good, math.inf) == overflow


def test_a_dropped_step_leaves_weights_optimizer_and_a_scaler_that_goes_on() -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)

    def backward(factor: float) -> None:
        scaler.scale(weight.sum() * factor).backward()
        scaler.unscale_(optimizer)

    backward(math.nan)
    drop_step(accelerator, optimizer, "step 0", may=True)
    assert torch.equal(weight, torch.ones(3))
    assert optimizer.state_dict()["state"] == {}
    assert weight.grad is None
    assert scaler.get_scale() == 0.5
    backward(1.0)
    scaler.step(optimizer)
    scaler.update()
    expected = torch.full((3,), 1 - 0.1 * 0.01 - 0.1)  # AdamW's first step: decay of 0.01 lr, then lr
    torch.testing.assert_close(weight.detach(), expected, atol=1e-6, rtol=0)


def test_weights_that_are_no_numbers_are_not_saved() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    require_sound_weights(Accelerator(cpu=True), model, 3)
    with torch.no_grad():
        model[1].weight[0, 1] = math.inf
    with pytest.raises(DivergenceError, match="step 3: 1.weight is NaN or infinite; not saved"):
        require_sound_weights(Accelerator(cpu=True), model, 3)
    with torch.no_grad():
        model[0].bias[0] = math.nan
    with pytest.raises(DivergenceError, match="step 3: 0.bias and 1 more parameters are NaN or infinite"):
        require_sound_weights(Accelerator(cpu=True), model, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_checksum_sees_every_bit_and_no_order(dtype: torch.dtype) -> None:
    value = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert checksum(value) == checksum(value.flip(0))
    assert checksum(value) == checksum(value.reshape(10, 100).t())
    changed = value.clone()
    changed[500] = torch.nextafter(value[500], torch.tensor(9.0, dtype=dtype))
    assert checksum(changed) != checksum(value)
