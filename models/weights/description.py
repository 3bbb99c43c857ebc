"""`model.json`: what is needed to rebuild a model, beside its weights or in their header."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from models.eomt import EoMT, ModelConfig
from models.lora_settings import LoraSettings
from shards.errors import InputError
from shards.files import write_atomically

DESCRIPTION_NAME = "model.json"
METADATA_KEY = "model"
"""In the header of an exported `.safetensors`: the text that `model.json` would hold."""


class Description(NamedTuple):
    """What a `model.json` says."""

    config: ModelConfig
    lora: LoraSettings | None
    """The adapters that its weights contain; None for plain weights."""


def describe(config: ModelConfig, lora: LoraSettings | None = None) -> str:
    """Return the text of `model.json`."""
    fields = dataclasses.asdict(config) | ({"lora": dataclasses.asdict(lora)} if lora else {})
    return json.dumps(fields, indent=2) + "\n"


def write_description(model: EoMT, folder: Path) -> None:
    """Write into a checkpoint folder what is needed to rebuild its model."""
    write_atomically(folder / DESCRIPTION_NAME, describe(model.config, model.lora))


def parse_description(text: str, where: str) -> Description:
    """Read the text of a `model.json`.

    Raises:
        InputError: it is no JSON, or its fields are not those of a model.
    """
    try:
        fields = json.loads(text)
        height, width = fields["image_size"]
        lora = fields.pop("lora", None)
        if lora is not None:
            lora = LoraSettings(**{**lora, "targets": tuple(lora["targets"])})
        _require_types(fields)
        config = ModelConfig(**{**fields, "image_size": (int(height), int(width))}).completed()
        return Description(config, lora)
    except (
        TypeError,
        KeyError,
        ValueError,
        AttributeError,
    ) as error:  # InputError and broken JSON: ValueErrors
        raise InputError(f"{where}: not a model description: {error}") from None


def _require_types(fields: dict[str, Any]) -> None:
    for name in ("patch_size", "num_queries", "num_blocks", "num_classes"):
        if name in fields and (type(fields[name]) is not int or fields[name] < 1):
            raise InputError(f"{name} is {fields[name]!r}; a number of at least 1 is needed")
    if fields.get("class_head", "linear") not in ("linear", "isomax"):
        raise InputError(f"class_head is {fields['class_head']!r}; linear or isomax is needed")
    if not isinstance(fields.get("weights", ""), str):
        raise InputError(f"weights is {fields['weights']!r}; a path is needed")


def read_description(folder: Path) -> Description:
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
