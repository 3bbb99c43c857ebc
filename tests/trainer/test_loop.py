"""One process: what a run writes, and that stopping changes nothing."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs.config_file import load_config, read_config
from jobs.finetune import finetune
from jobs.finetune_config import FinetuneConfig
from shards.errors import InputError
from trainer.loop import is_due

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps the state of a process; each run here is to look like its own process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def make_config(out: Path, scenes: str, *extra: str) -> FinetuneConfig:
    arguments = [
        "--name", "run", "--out", str(out), "--data.shards", scenes, "--data.crop", "32", "32",
        "--data.batch_size", "2", "--data.workers", "0",
        "--model.size", "tiny", "--model.image_size", "32", "32", "--model.num_queries", "5",
        "--loss.options", "num_points", "32", "--optim.lr", "1e-3", "--loop.steps", "4",
        "--loop.save_every", "2", "--loop.log_every", "1", "--loop.keep_checkpoints", "0",
    ]  # fmt: skip
    return load_config(FinetuneConfig, [*arguments, *extra], program="jobs.finetune")


def with_paste(cutouts: str) -> list[str]:
    return ["--paste.bank", cutouts, "--paste.probability", "1", "--loss.name", "mask_rba"]


def weights(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(out / "run" / "checkpoints" / f"step-{step:07d}" / "model.safetensors")


def test_a_run_leaves_everything_a_reader_needs(
    tmp_path: Path, scene_shards: str, cutout_shard: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = make_config(tmp_path, scene_shards, *with_paste(cutout_shard))
    state = finetune(config)
    run = tmp_path / "run"
    assert (state.step, state.samples_seen) == (4, 8)
    assert read_config(FinetuneConfig, run / "config.yaml") == config
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance[0]["seed"] == 0
    assert provenance[0]["num_processes"] == 1
    assert "step 4/4" in (run / "log.txt").read_text()
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["step-0000002", "step-0000004"]
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "loss/total",
        "loss/mask",
        "loss/dice",
        "loss/class",
        "loss/outlier",
        "lr/heads",
        "grad_norm",
    } <= tags
    assert [point.step for point in events.Scalars("loss/total")] == [1, 2, 3, 4]


def test_a_resumed_run_has_the_weights_of_one_never_stopped(
    tmp_path: Path, scene_shards: str, cutout_shard: str
) -> None:
    finetune(make_config(tmp_path / "a", scene_shards, *with_paste(cutout_shard)))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "run" / "checkpoints" / "step-0000004")
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(99)  # nothing may depend on what was drawn before
    finetune(make_config(tmp_path / "b", scene_shards, *with_paste(cutout_shard)), resume=True)
    expected, actual = weights(tmp_path / "a", 4), weights(tmp_path / "b", 4)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert not torch.equal(weights(tmp_path / "a", 2)["queries.weight"], expected["queries.weight"])


def test_accumulated_micro_batches_equal_one_batch(
    tmp_path: Path, scene_shards: str, cutout_shard: str
) -> None:
    """Equal but for the order of float32 sums, which Adam's division enlarges: 1e-5 after four steps."""
    finetune(make_config(tmp_path / "a", scene_shards, *with_paste(cutout_shard)))
    AcceleratorState._reset_state(reset_partial_state=True)
    cut = ("--data.batch_size", "1", "--loop.grad_accum", "2")
    finetune(make_config(tmp_path / "b", scene_shards, *with_paste(cutout_shard), *cut))
    expected, actual = weights(tmp_path / "a", 4), weights(tmp_path / "b", 4)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=0, msg=name)


def test_only_what_adapts_changes(tmp_path: Path, scene_shards: str) -> None:
    finetune(make_config(tmp_path, scene_shards, "--adapt.mode", "heads"))
    before, after = weights(tmp_path, 2), weights(tmp_path, 4)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"class_head", "mask_head"}


def test_a_run_asked_to_stop_saves_and_leaves(
    tmp_path: Path, scene_shards: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Asks(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("step 1/4"):
                os.kill(os.getpid(), signal.SIGTERM)

    logger = logging.getLogger("trainer.loop")
    handler = Asks()
    logger.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO):
            state = finetune(make_config(tmp_path, scene_shards, "--loop.save_every", "100"))
    finally:
        logger.removeHandler(handler)
    assert state.step == 1
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000001"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, scene_shards: str) -> None:
    extra = ("--loop.save_every", "1", "--loop.keep_checkpoints", "2")
    finetune(make_config(tmp_path, scene_shards, *extra))
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-0000003", "step-0000004"]


def test_a_loss_that_explodes_stops_the_run_and_names_the_samples(tmp_path: Path, scene_shards: str) -> None:
    config = make_config(
        tmp_path, scene_shards, "--loss.weights.mask", "1e38", "--loss.weights.class", "1e38"
    )
    with pytest.raises(
        FloatingPointError, match=r"step \d: gradient norm is (nan|inf); mask .* samples scene\d, scene"
    ):
        finetune(config)


@pytest.mark.parametrize(
    ("extra", "resume", "message"),
    [
        ((), False, "a run is already there; --resume continues it"),
        (("--optim.lr", "1e-2"), True, r"--resume: optim.lr is 0.01 but .*config.yaml has 0.001"),
        (("--data.batch_size", "1"), True, r"--resume: data.batch_size is 1 but .* has 2"),
    ],
    ids=["taken", "other rate", "other batch"],
)
def test_a_run_is_neither_overwritten_nor_bent(
    tmp_path: Path, scene_shards: str, extra: tuple[str, ...], resume: bool, message: str
) -> None:
    finetune(make_config(tmp_path, scene_shards, "--loop.steps", "2"))
    AcceleratorState._reset_state(reset_partial_state=True)
    before = sorted(p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*"))
    with pytest.raises(InputError, match=message):
        finetune(make_config(tmp_path, scene_shards, "--loop.steps", "2", *extra), resume=resume)
    assert before == sorted(p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*"))


def test_something_is_due_every_so_often_and_at_the_end() -> None:
    assert [step for step in range(1, 8) if is_due(step, 3, 7)] == [3, 6, 7]
    assert not any(is_due(step, 0, 7) for step in range(1, 8))
