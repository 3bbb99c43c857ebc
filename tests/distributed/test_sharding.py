"""FSDP2 over two ranks trains the weights of one process, and its checkpoints are everybody's."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.fsdp

from jobs.work.finetune import finetune
from models.weights.checkpoint import load_model
from shards.errors import InputError
from tests.distributed import scenes
from tests.trainer.small_run import _fresh_accelerator, assert_close, assert_equal, forget_after, weights  # noqa: F401

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.mark.parametrize("mode", ["full", "lora", "gradual"])
def test_two_shards_train_the_weights_of_one_process(played: Path, mode: str) -> None:
    first, expected = (weights(played, step, f"plain-{mode}") for step in (2, 4))
    assert not torch.equal(expected["queries.weight"], first["queries.weight"])
    assert_close(weights(played, name=f"sharded-{mode}"), expected)


@pytest.mark.parametrize("mode", ["full", "lora", "gradual"])
def test_a_sharded_run_validates_as_one_process_does(played: Path, mode: str) -> None:
    one, two = (
        re.findall(r"validation at step \d: miou (\d+\.\d+) %", (played / name / "log.txt").read_text())
        for name in (f"plain-{mode}", f"sharded-{mode}")
    )
    assert len(one) == 2
    assert [float(value) for value in two] == pytest.approx([float(value) for value in one], abs=0.2)


def test_a_sharded_optimizer_is_saved_as_a_whole_one(played: Path) -> None:
    names = ("sharded-gradual", "plain-gradual")
    assert_close(*(weights(played, name=name, file="optimizer.safetensors") for name in names))


def test_a_sharded_run_resumes_to_the_same_bits(played: Path) -> None:
    assert "from step 2 to 4 on 2 processes" in (played / "again/log.txt").read_text()
    assert_equal(weights(played, name="again"), weights(played, name="sharded-lora"))


def test_a_run_goes_from_one_process_to_shards_and_back(played: Path) -> None:
    expected = weights(played, name="plain-lora")
    assert_close(weights(played, name="from-one"), expected)
    shutil.copytree(played / "sharded-lora", played / "to-one")
    forget_after(2, played / "to-one")
    config = scenes.make_config("to-one", "--data.batch_size", "2", *scenes.adapt("lora"))
    finetune(config, resume=True)
    assert_close(weights(played, name="to-one"), expected)


def test_a_sharded_run_is_read_as_a_plain_model(played: Path) -> None:
    expected, actual = (load_model(played / name).state_dict() for name in ("plain-lora", "sharded-lora"))
    assert_close(actual, expected)


def test_what_cannot_be_sharded_is_said(
    tmp_path: Path, scene_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "RUN", {"out": str(tmp_path), "scenes": scene_shards})
    with pytest.raises(InputError, match="loop.sharding: fsdp2 needs two processes or more, and this is one"):
        finetune(scenes.make_config("run", "--loop.sharding", "fsdp2"))
    assert not (tmp_path / "run").exists()
    message = "loop.sharding: fsdp2 goes with loop.precision float32 or bf16 and without loop.compile"
    for extra in (("--loop.precision", "fp16"), ("--loop.compile", "True")):
        with pytest.raises(InputError, match=message):
            scenes.make_config("run", "--loop.sharding", "fsdp2", *extra)
