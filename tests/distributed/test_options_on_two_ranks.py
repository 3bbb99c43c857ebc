"""Two real processes with averages, validation, best checkpoint and a fitted micro-batch give one answer."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import jobs.finetune
import trainer.run
from jobs.evaluate import EvaluateOptions
from jobs.work.evaluate import evaluate
from shards.settings import read_config
from tests.support.forked import run_ranks
from tests.trainer.small_run import (  # noqa: F401
    _fresh_accelerator,
    assert_close,
    make_config,
    read_scalars,
    train,
    weights,
)
from tests.trainer.test_validation import write_pasted
from trainer.config import FinetuneConfig
from trainer.memory import try_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def train_with_small_second_rank(arguments: Sequence[str]) -> None:
    """Be `jobs.finetune` where the second rank has room for one image."""

    def limited(*arguments: Any) -> None:
        if os.environ["RANK"] == "1" and len(arguments[-1]) > 1:
            raise torch.OutOfMemoryError("the second rank has room for one image")
        try_step(*arguments)

    trainer.run.try_step = limited
    jobs.finetune.main(arguments)


def test_two_ranks_agree_and_measure_what_one_process_does(tmp_path: Path, scene_shards: str) -> None:
    """Weights to 1e-5, as sums have another order; what is measured of equal weights to 1e-6."""
    pasted = write_pasted(tmp_path / "pasted")
    options = ["--ema.decay", "0.5", "--loop.fit_memory", "True", "--loop.steps", "2"]
    options += ["--loop.eval_every", "1", "--tracking.probes", "0"]
    options += ["--validation.shards", scene_shards, "--validation.limit", "3"]
    options += ["--validation.pasted", str(pasted), "--validation.select", "ap/RbA", "--loop.save_every", "1"]
    options += ["--loop.activation_checkpointing", "True"]
    train(tmp_path / "one", scene_shards, *options, "--data.batch_size", "4")
    config = make_config(tmp_path / "two", scene_shards, *options)
    arguments = [str(tmp_path / "one" / "run" / "config.yaml"), "--out", config.out, "--data.batch_size", "2"]
    run_ranks(train_with_small_second_rank, arguments, tmp_path / "said", 2)
    two = tmp_path / "two" / "run"
    found = read_config(FinetuneConfig, two / "config.yaml")
    assert (found.data.batch_size, found.loop.grad_accum) == (1, 2)
    for file in ("model.safetensors", "ema.safetensors"):
        expected, actual = (weights(tmp_path / name, 2, file=file) for name in ("one", "two"))
        assert_close(actual, expected)
    (best,) = (two / "best").iterdir()
    record = json.loads((best / "best.json").read_text())
    datasets = {"datasets": pasted, "scores": ("RbA",), "device": "cpu", "components": False, "pictures": 0}
    (again,) = evaluate(EvaluateOptions(checkpoint=two / "best", out=tmp_path / "eval", **datasets))
    assert again.ap == pytest.approx(record["value"], abs=1e-6)
    assert dict(read_scalars(two)["Validation/best/ap/RbA"])[2] == pytest.approx(again.ap, abs=1e-6)
    assert {"Validation/miou", "Validation/fpr95/MSP"} <= read_scalars(two).keys()
