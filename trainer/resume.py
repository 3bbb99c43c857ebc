"""A run restored from a checkpoint: every file checked, none of them code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR

from models.adapt import apply_adaptation
from models.adaptation import AdaptConfig
from models.config import DESCRIPTION_NAME, ModelConfig, read_description
from models.eomt import EoMT
from models.weights.files import hash_part, read_weight_file
from models.weights.fit import compare_weights, load_strictly
from models.weights.formats import WEIGHTS_NAME
from shards.errors import InputError
from shards.files import read_json
from trainer.checkpoint import (
    MOMENTS,
    OPTIMIZER_NAME,
    STATE_NAME,
    SavedTraining,
    TrainState,
    names_of,
    pack_moments,
)
from trainer.collective import together
from trainer.ema import WeightAverage


@contextmanager
def _restoring(accelerator: Accelerator, checkpoint: Path) -> Iterator[None]:
    """Let all ranks leave, with the way out, where a block that reads a checkpoint fails on any."""
    with together(accelerator):
        try:
            yield
        except InputError as error:
            remedy = f"remove {checkpoint.name} to continue from the one before"
            raise InputError(f"--resume: {error}; {remedy}") from None


def restore_model(
    accelerator: Accelerator, checkpoint: Path, config: ModelConfig, adapt: AdaptConfig
) -> EoMT:
    """Rebuild the model of a checkpoint, adapters and frozen parts included, as the run has it.

    First, every file of the checkpoint must be the one that was saved, to the byte.
    """
    with _restoring(accelerator, checkpoint):
        require_files(checkpoint)
        return _read_model(checkpoint, config, adapt)


def _read_training(checkpoint: Path) -> SavedTraining:
    path = checkpoint / STATE_NAME
    if not path.is_file() and (checkpoint / "optimizer.bin").is_file():
        start = f"--name NEW --model.weights {checkpoint} starts another run from its weights"
        raise InputError(f"{checkpoint}: of an earlier version, which is not resumed; {start}")
    saved = read_json(SavedTraining, path)
    if checkpoint.name != f"step-{saved.state.step:07d}" or not saved.state.step:
        raise InputError(f"{path}: state: step is {saved.state.step}; the folder's is needed")
    return saved


def require_files(checkpoint: Path) -> None:
    """Check that the files of a checkpoint are those that were saved, to the byte."""
    hashes = _read_training(checkpoint).files
    present = {file.name for file in checkpoint.iterdir() if not file.name.startswith(".")} - {STATE_NAME}
    for name in sorted(present | hashes.keys()):
        if name not in present:
            raise InputError(f"{checkpoint}: {name!r}, which {STATE_NAME} lists, is not there")
        if name not in hashes:
            raise InputError(f"{checkpoint / name}: is not a file of this checkpoint")
        if hash_part(checkpoint / name) != hashes[name]:
            raise InputError(f"{checkpoint / name}: is damaged, its SHA-256 is not the one in {STATE_NAME}")


def _read_model(checkpoint: Path, config: ModelConfig, adapt: AdaptConfig) -> EoMT:
    path = checkpoint / WEIGHTS_NAME
    described, lora = read_description(checkpoint)
    expected = adapt.lora if adapt.mode == "lora" else None
    if (replace(described, weights=config.weights), lora) != (config, expected):
        raise InputError(
            f"{checkpoint / DESCRIPTION_NAME}: is another model than the run's settings describe"
        )
    weights = read_weight_file(path)
    plain = {n.replace(".base_layer.", "."): v for n, v in weights.items() if ".lora_" not in n}
    with torch.device("meta"):  # takes no memory, whatever size a file says
        compare_weights(EoMT(config).state_dict(), plain).require_fit(str(path))
    model = EoMT(config)
    apply_adaptation(model, adapt)
    load_strictly(model, weights, str(path))
    return model


def restore_training(
    accelerator: Accelerator,
    checkpoint: Path,
    model: EoMT,
    optimizer: torch.optim.Optimizer,
    lr_schedule: LambdaLR,
    ema: WeightAverage,
) -> TrainState:
    """Let all that trains `model`, which `restore_model` gave its weights, go on; return the counters."""
    path, scaler = checkpoint / OPTIMIZER_NAME, accelerator.scaler
    names = names_of(model, optimizer)
    with _restoring(accelerator, checkpoint):
        saved = _read_training(checkpoint)
        scale = saved.loss_scale
        moments = read_weight_file(path)
        compare_weights(pack_moments(model, optimizer), moments).require(moments, str(path))
        for name, value in moments.items():
            most = saved.state.step if name.endswith(".step") else torch.inf
            if not name.endswith(".exp_avg") and bool(((value < 0) | (value > most)).any()):
                raise InputError(f"{path}: {name} is negative, or more than the checkpoint's step")
        if (scaler is None) != (scale is None):
            needed = "is needed with loop.precision fp16, and only there"
            raise InputError(f"{checkpoint / STATE_NAME}: loss_scale {needed}")
        ema.load(checkpoint)
    entries = [{moment: moments[f"{name}.{moment}"] for moment in MOMENTS} for name in names]
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": dict(enumerate(entries)), "param_groups": groups})
    step = lr_schedule.last_epoch = saved.state.step
    factors = zip(optimizer.param_groups, lr_schedule.base_lrs, lr_schedule.lr_lambdas, strict=True)
    for group, peak, factor in factors:
        group["lr"] = peak * factor(step)
    if scaler is not None and scale is not None:
        changed = {"scale": scale.scale, "_growth_tracker": scale.growth_tracker}
        scaler.load_state_dict(scaler.state_dict() | changed)
    return saved.state
