"""Averages, best checkpoint, early end and recomputed activations together: stopping changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from shards.errors import InputError
from tests.trainer.small_run import train, weights
from tests.trainer.test_validation import write_pasted

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_a_resumed_run_with_everything_on_is_one_never_stopped(tmp_path: Path, scene_shards: str) -> None:
    pasted = write_pasted(tmp_path / "pasted", count=2)
    options = ["--ema.decay", "0.5", "--loop.activation_checkpointing", "True", "--loop.fit_memory", "True"]
    options += ["--validation.pasted", str(pasted), "--validation.scores", "RbA"]
    options += ["--validation.select", "fpr95/RbA", "--validation.patience", "2", "--loop.eval_every", "1"]
    options += ["--adapt.mode", "lora", "--adapt.lora.dropout", "0.2", "--loop.steps", "6"]
    state = train(tmp_path / "a", scene_shards, *options)
    assert 2 < state.step <= 6
    for name in ("b", "c"):  # killed after the checkpoint of step 2, and at the very end
        shutil.copytree(tmp_path / "a", tmp_path / name)
    for path in (tmp_path / "b" / "run" / "checkpoints").iterdir():
        if path.name != "step-0000002":
            shutil.rmtree(path)
    shutil.rmtree(tmp_path / "b" / "run" / "best")
    for name in ("b", "c"):
        torch.manual_seed(99)
        again = train(tmp_path / name, scene_shards, *options, resume=True)
        assert again == state
        last = Path("run", "checkpoints", f"step-{state.step:07d}")
        for file in ("model.safetensors", "ema.safetensors"):
            expected, actual = (load_file(tmp_path / of / last / file) for of in ("a", name))
            assert all(torch.equal(expected[key], actual[key]) for key in expected)
    if state.best.step > 2:  # else it was saved before the kill, and this test removed it
        best = Path("run", "best", f"step-{state.best.step:07d}")
        for file in ("model.safetensors", "best.json"):
            assert (tmp_path / "a" / best / file).read_bytes() == (tmp_path / "b" / best / file).read_bytes()


def test_a_run_of_before_these_options_resumes_or_is_refused_in_a_line(
    tmp_path: Path, scene_shards: str
) -> None:
    train(tmp_path, scene_shards)
    path = tmp_path / "run" / "config.yaml"
    saved = yaml.safe_load(path.read_text())
    del saved["ema"]
    for section, names in {
        "loop": ("activation_checkpointing", "fit_memory", "profile"),
        "validation": ("pasted", "scores", "select", "patience"),
        "schedule": ("preset", "annealing"),
        "optim": ("lr_scaling", "lr_batch"),
        "tracking": ("groups", "probes", "curves"),
    }.items():
        for name in names:
            del saved[section][name]
    path.write_text(yaml.safe_dump(saved))
    expected = weights(tmp_path, 4)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-0000004")
    with pytest.raises(
        InputError, match="--resume: ema.decay is 0.9 but .*config.yaml has 0.0; a resumed run"
    ):
        train(tmp_path, scene_shards, "--ema.decay", "0.9", resume=True)
    train(tmp_path, scene_shards, resume=True)
    assert all(torch.equal(expected[name], value) for name, value in weights(tmp_path, 4).items())
