"""A trained EoMT on disk: `model.json` (what it is) beside `model.safetensors` (its weights)."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from models.backbone import load_backbone_weights
from models.eomt import EoMT, ModelConfig
from models.weights import load_strictly, read_weight_file
from shards.errors import InputError
from shards.staging import write_atomically

DESCRIPTION_NAME = "model.json"
WEIGHTS_NAME = "model.safetensors"
CHECKPOINTS_FOLDER = "checkpoints"
STEP_PATTERN = re.compile(r"step-(\d{7})")


def write_description(config: ModelConfig, folder: Path) -> None:
    """Write into a checkpoint folder what is needed to rebuild its model."""
    write_atomically(folder / DESCRIPTION_NAME, json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def list_checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints `step-NNNNNNN` of a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and STEP_PATTERN.fullmatch(path.name))


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint folder that `path` is, or the newest one of the run that `path` is.

    Raises:
        InputError: `path` is missing or is neither.
    """
    if not path.exists():
        raise InputError(f"checkpoint {path}: no such file or folder")
    if (path / DESCRIPTION_NAME).is_file():
        return path
    inside = [*list_checkpoints(path / CHECKPOINTS_FOLDER), *list_checkpoints(path)]
    if not inside:
        raise InputError(
            f"checkpoint {path}: neither a checkpoint folder (with {DESCRIPTION_NAME}) nor a run folder "
            f"(with {CHECKPOINTS_FOLDER}/step-NNNNNNN)"
        )
    return inside[-1]


def load_model(path: Path) -> EoMT:
    """Rebuild a trained EoMT in evaluation mode.

    Args:
        path: a checkpoint folder, or a run folder, whose newest checkpoint is taken.

    Raises:
        InputError: nothing is there, a file is truncated, or weights are missing, left over or misshapen.
    """
    folder = find_checkpoint(path)
    model = EoMT(read_description(folder))
    _fill(model, folder)
    return model.eval()


def initialise_model(config: ModelConfig) -> EoMT:
    """Build the EoMT that a fine-tuning starts from, with the weights that `config.weights` names.

    Raises:
        InputError: `config.weights` is missing or does not fit the model that `config` describes.
    """
    model = EoMT(config)
    if not config.weights:
        return model
    path = Path(config.weights)
    if path.is_file():
        load_backbone_weights(model.backbone, path)
    else:
        folder = find_checkpoint(path)
        saved = dataclasses.replace(read_description(folder), weights=config.weights)
        differing = [
            f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(saved, f.name)
        ]
        if differing:
            said = ", ".join(
                f"model.{n} {getattr(config, n)} (checkpoint: {getattr(saved, n)})" for n in differing
            )
            raise InputError(f"model.weights {folder}: the configuration differs from the checkpoint: {said}")
        _fill(model, folder)
    return model


def read_description(folder: Path) -> ModelConfig:
    """Read a checkpoint's `model.json`.

    Raises:
        InputError: it is no JSON, or its fields are not those of a model.
    """
    path = folder / DESCRIPTION_NAME
    try:
        fields = json.loads(path.read_text())
        height, width = fields["image_size"]
        return ModelConfig(**{**fields, "image_size": (int(height), int(width))})
    except (OSError, TypeError, KeyError, ValueError) as error:  # InputError and broken JSON are ValueErrors
        raise InputError(f"{path}: not a model description: {error}") from None


def _fill(model: EoMT, folder: Path) -> None:
    path = folder / WEIGHTS_NAME
    load_strictly(model, read_weight_file(path), str(path))
