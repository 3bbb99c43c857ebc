"""A run of a tiny model on the scenes of the tests, for a few steps, and what it writes.

Settings behind `extra` replace earlier ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs.finetune import finetune
from shards.settings import load_config
from trainer.config import FinetuneConfig
from trainer.loop import TrainState


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
        "--loss.options.mask.num_points", "32", "--optim.lr", "1e-3", "--loop.steps", "4",
        "--loop.save_every", "2", "--loop.log_every", "1", "--loop.keep_checkpoints", "0",
    ]  # fmt: skip
    return load_config(FinetuneConfig, [*arguments, *extra], program="jobs.finetune")


def train(out: Path, scenes: str, *extra: str, resume: bool = False) -> TrainState:
    """Run `make_config(out, scenes, *extra)` as if in a process of its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return finetune(make_config(out, scenes, *extra), resume=resume)


def with_paste(cutouts: str) -> list[str]:
    return ["--paste.bank", cutouts, "--paste.probability", "1", "--loss.outlier", "rba"]


def weights(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(out / "run" / "checkpoints" / f"step-{step:07d}" / "model.safetensors")


def assert_equal_weights(expected: Path, actual: Path, step: int) -> None:
    """Compare the checkpoints that two runs have of a step, to the bit."""
    first, second = weights(expected, step), weights(actual, step)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def assert_close_weights(expected: Path, actual: Path, step: int) -> None:
    """Compare them to 1e-5: float32 sums in another order, enlarged by Adam's division over four steps."""
    first, second = weights(expected, step), weights(actual, step)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=1e-5, rtol=0, msg=name)


def copy_killed(source: Path, target: Path, step: int) -> None:
    """Copy a run as if it had been killed after its checkpoint of `step`."""
    shutil.copytree(source, target)
    for path in (target / "run" / "checkpoints").iterdir():
        if path.name > f"step-{step:07d}":
            shutil.rmtree(path)


def read_events(run: Path) -> EventAccumulator:
    """Read everything that a run wrote for TensorBoard, nothing thinned out."""
    everything = {"images": 0, "tensors": 0, "scalars": 0}
    return EventAccumulator(str(run / "tensorboard"), size_guidance=everything).Reload()


def read_scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of every scalar by tag."""
    events = read_events(run)
    return {tag: [(p.step, p.value) for p in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
