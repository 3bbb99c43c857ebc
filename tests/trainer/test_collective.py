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
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn

import trainer.run
from jobs.finetune import finetune
from shards.batch import Batch
from shards.stream import Stream
from tests.trainer.poisoned_loss import PoisonedLoss
from tests.trainer.small_run import _fresh_accelerator, make_config, weights  # noqa: F401
from trainer.checkpoint import newest_checkpoint
from trainer.collective import DivergenceError, checksum, drop_step, find_bad_step, require_sound_weights
from trainer.losses import build_loss

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(name="poisoned")
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.run, "build_loss", lambda config: PoisonedLoss(build_loss(config), "scene0"))


def test_a_bad_step_is_left_out_as_if_its_samples_had_not_been_there(
    tmp_path: Path, scene_shards: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The other run reads the same samples but for that batch, and has a loss without NaN."""
    with monkeypatch.context() as patch:
        patch.setattr(trainer.run, "build_loss", lambda config: PoisonedLoss(build_loss(config), "scene0"))
        skip = ("--loop.skip_bad_steps", "1", "--loop.save_every", "1")
        state = finetune(make_config(tmp_path / "a", scene_shards, *skip))
        assert (state.step, state.skipped_steps, state.samples_seen) == (4, 1, 10)
        (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert told.startswith("skipped, 1 of 1 allowed: step ")
        assert "gradient norm is nan; loss terms not finite: dice; mask " in told
        assert "scene0" in told.partition("samples ")[2]

        shutil.copytree(tmp_path / "a", tmp_path / "b")  # resumed from before and after the bad step
        for step in (2, 3, 4):
            shutil.rmtree(tmp_path / "b" / "run" / "checkpoints" / f"step-000000{step}")
        AcceleratorState._reset_state(reset_partial_state=True)
        assert finetune(make_config(tmp_path / "b", scene_shards, *skip), resume=True).skipped_steps == 1
        shutil.rmtree(tmp_path / "b" / "run" / "checkpoints" / "step-0000004")
        AcceleratorState._reset_state(reset_partial_state=True)
        assert finetune(make_config(tmp_path / "b", scene_shards, *skip), resume=True).skipped_steps == 1

    read = Stream.__iter__

    def without_it(self: Stream) -> Iterator[Batch]:
        return (batch for batch in read(self) if "scene0" not in batch.keys)

    monkeypatch.setattr(Stream, "__iter__", without_it)
    AcceleratorState._reset_state(reset_partial_state=True)
    finetune(make_config(tmp_path / "c", scene_shards))
    expected = weights(tmp_path / "c", 4)
    for name in ("a", "b"):
        actual = weights(tmp_path / name, 4)
        assert all(torch.equal(expected[name], actual[name]) for name in expected)


@pytest.mark.usefixtures("poisoned")
def test_one_bad_step_too_many_ends_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, scene_shards: str
) -> None:
    with pytest.raises(DivergenceError, match="loss terms not finite: dice; .* samples .*scene0") as stop:
        finetune(make_config(tmp_path, scene_shards, "--loop.save_every", "1", "--loop.steps", "8"))
    assert stop.value.exit_code == 70
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None
    assert str(stop.value).startswith(
        f"step {int(newest.name.removeprefix('step-'))}: gradient norm is nan; "
    )
    assert all(torch.isfinite(value).all() for value in load_file(newest / "model.safetensors").values())


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
