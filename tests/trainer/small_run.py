"""A run of a tiny model on the scenes of the tests, for a few steps, and what it writes.

Settings behind `extra` replace earlier ones.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from jobs.work.finetune import finetune
from models.adapt import apply_adaptation
from models.adaptation import AdaptConfig, LoraSettings
from models.config import ModelConfig
from models.eomt import EoMT, Prediction
from shards.batch import Batch
from shards.settings import load_config
from trainer.checkpoint import TrainState
from trainer.config import FinetuneConfig
from trainer.losses.loss import Loss


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps the state of a process; each run here is to look like its own process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def make_arguments(out: Path, scenes: str, *extra: str) -> list[str]:
    return [
        "--name", "run", "--out", str(out), "--data.shards", scenes, "--data.crop", "32", "32",
        "--data.batch_size", "2", "--data.workers", "0",
        "--model.size", "tiny", "--model.image_size", "32", "32", "--model.num_queries", "5",
        "--loss.options.mask.num_points", "32", "--optim.lr", "1e-3", "--loop.steps", "4",
        "--loop.save_every", "2", "--loop.log_every", "1", "--loop.keep_checkpoints", "0", *extra,
    ]  # fmt: skip


HEAD_OPTIONS = [
    "--adapt.mode", "outlier_head", "--loss.name", "likelihood_ratio", "--schedule.masked_attention", "never",
    "--loss.options.mask.num_points", "12544", "--loss.outlier", "none", "--paste.probability", "1",
    "--validation.scores", "LikelihoodRatio",
]  # fmt: skip
"""Of a run that trains an outlier head; a bank is needed too."""


def make_config(out: Path, scenes: str, *extra: str) -> FinetuneConfig:
    return load_config(FinetuneConfig, make_arguments(out, scenes, *extra), program="jobs.finetune")


def train(out: Path, scenes: str, *extra: str, resume: bool = False) -> TrainState:
    AcceleratorState._reset_state(reset_partial_state=True)
    return finetune(make_config(out, scenes, *extra), resume=resume)


@contextmanager
def at_step(step: int, action: Callable[[], object]) -> Iterator[None]:
    """Do something when the log of the loop says that a step was taken."""
    logger = logging.getLogger("trainer.loop")

    def act(record: logging.LogRecord) -> bool:
        if record.getMessage().startswith(f"step {step}/"):
            action()
        return True

    logger.addFilter(act)
    try:
        yield
    finally:
        logger.removeFilter(act)


def make_model(mode: str = "full", size: str = "tiny", **lora: float) -> EoMT:
    """Make the model of these runs, with parts frozen or adapters added as `adapt.mode` says."""
    torch.manual_seed(0)
    model = EoMT(ModelConfig(size=size, image_size=(32, 32), num_queries=5))
    apply_adaptation(model, AdaptConfig(mode=mode, lora=LoraSettings(**lora)))
    return model


def with_paste(cutouts: str) -> list[str]:
    return ["--paste.bank", cutouts, "--paste.probability", "1", "--loss.outlier", "rba"]


def weights(
    out: Path, step: int = 4, name: str = "run", file: str = "model.safetensors"
) -> dict[str, Tensor]:
    return load_file(out / name / "checkpoints" / f"step-{step:07d}" / file)


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare weights to the bit."""
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-5) -> None:
    """Compare weights to 1e-5: float32 sums in another order, enlarged by Adam's division over four steps."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, atol=atol, rtol=0, msg=name)


def forget_after(step: int, run: Path) -> None:
    """Take from a run what it saved after `step`, as if it had been killed then."""
    for path in (run / "checkpoints").iterdir():
        if path.name > f"step-{step:07d}":
            shutil.rmtree(path)


def copy_killed(source: Path, target: Path, step: int) -> None:
    """Copy a run as if it had been killed after its checkpoint of `step`."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    forget_after(step, target / "run")


class PoisonedLoss(Loss):
    """A loss whose dice term is NaN wherever a batch holds a certain scene."""

    def __init__(self, loss: Loss, key: str) -> None:
        super().__init__((), loss.area_exponent)
        self._loss, self._key = loss, key

    def __call__(self, prediction: Prediction, batch: Batch, *others: Any) -> dict[str, Tensor]:
        terms = self._loss(prediction, batch, *others)
        return terms | ({"dice": terms["dice"] * math.nan} if self._key in batch.keys else {})


def read_events(run: Path) -> EventAccumulator:
    """Read everything that a run wrote for TensorBoard, nothing thinned out."""
    everything = {"images": 0, "tensors": 0, "scalars": 0}
    return EventAccumulator(str(run), size_guidance=everything).Reload()


def read_scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of every scalar by tag."""
    events = read_events(run)
    return {tag: [(p.step, p.value) for p in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
