"""`model.json`: what is needed to rebuild a model, beside its weights or in their header."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from models.eomt import ModelConfig
from shards.errors import InputError
from shards.staging import write_atomically

DESCRIPTION_NAME = "model.json"
METADATA_KEY = "model"
"""In the header of an exported `.safetensors`: the text that `model.json` would hold."""


def describe(config: ModelConfig) -> str:
    """Return the text of `model.json`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def write_description(config: ModelConfig, folder: Path) -> None:
    """Write into a checkpoint folder what is needed to rebuild its model."""
    write_atomically(folder / DESCRIPTION_NAME, describe(config))


def parse_description(text: str, where: str) -> ModelConfig:
    """Read the text of a `model.json`.

    Raises:
        InputError: it is no JSON, or its fields are not those of a model.
    """
    try:
        fields = json.loads(text)
        height, width = fields["image_size"]
        return ModelConfig(**{**fields, "image_size": (int(height), int(width))}).completed()
    except (TypeError, KeyError, ValueError) as error:  # InputError and broken JSON are ValueErrors
        raise InputError(f"{where}: not a model description: {error}") from None


def read_description(folder: Path) -> ModelConfig:
    """Read a checkpoint's `model.json`.

    Raises:
        InputError: it cannot be read, is no JSON, or its fields are not those of a model.
    """
    path = folder / DESCRIPTION_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a model description: {error}") from None
    return parse_description(text, str(path))
