"""An adapter alone: what a LoRA run changed of its base, in the folder layout of peft.

`adapter_config.json` is peft's, and names the base. `adapter_model.safetensors` holds the LoRA matrices and
every other weight that differs from the base (queries, heads, a resampled position embedding) under peft's
names; its header holds our description of the model and the SHA-256 of the base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.lora import ADAPTER, merge_weights
from models.weights.description import (
    METADATA_KEY,
    Description,
    describe,
    parse_description,
    read_description,
)
from models.weights.files import list_parts, read_metadata, read_weight_file
from models.weights.formats import KIND_NAMES, WEIGHTS_NAME, Checkpoint, read_checkpoint
from shards.errors import InputError
from shards.files import hash_file

CONFIG_NAME = "adapter_config.json"
ADAPTER_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
BASE_KEY = "base_sha256"


def write_adapter(folder: Path, checkpoint: Path, base: Checkpoint) -> int:
    """Write the adapter of a checkpoint into an empty folder; return how many numbers it holds.

    Args:
        checkpoint: checkpoint folder of a run with `adapt.mode lora`.
        base: what the run started from.

    Raises:
        InputError: the checkpoint has no adapters, or the base is none or another one.
    """
    import peft  # here, as in models.lora

    description = read_description(checkpoint)
    if description.lora is None:
        raise InputError(f"{checkpoint}: holds no LoRA adapter; the run's adapt.mode was another one")
    if base.config is None:
        raise InputError(f"{base.path}: {KIND_NAMES[base.kind]}; an adapter needs a whole EoMT as its base")
    changed = _changed_weights(read_weight_file(checkpoint / WEIGHTS_NAME), base, checkpoint)
    state = {PREFIX + name.replace(f".{ADAPTER}.", "."): v.contiguous() for name, v in changed.items()}
    metadata = {
        "format": "pt",
        METADATA_KEY: describe(description.config, description.lora),
        BASE_KEY: _hash_base(base.path),
    }
    save_file(state, folder / ADAPTER_NAME, metadata=metadata)
    layers = sorted({name.partition(".lora_")[0] for name in changed if ".lora_" in name})
    peft.LoraConfig(
        r=description.lora.rank,
        lora_alpha=description.lora.alpha,  # type: ignore[arg-type]
        lora_dropout=description.lora.dropout,
        target_modules=layers,
        modules_to_save=sorted({name.partition(".")[0] for name in changed if ".lora_" not in name}) or None,
        base_model_name_or_path=str(base.path.resolve()),
        inference_mode=True,
    ).save_pretrained(str(folder))
    return sum(value.numel() for value in state.values())


def is_adapter_folder(path: Path) -> bool:
    """Say whether `path` is a folder that `write_adapter` or peft wrote."""
    return (path / CONFIG_NAME).is_file()


def read_adapter(folder: Path) -> Checkpoint:
    """Read an adapter and its base, merged into one plain checkpoint.

    Raises:
        InputError: a file is missing or broken, or the base is not there or not the one it was trained on.
    """
    path = folder / ADAPTER_NAME
    weights = read_weight_file(path)
    metadata = read_metadata(path)
    if METADATA_KEY not in metadata or BASE_KEY not in metadata:
        raise InputError(f"{path}: a LoRA adapter that this suite did not write; its model is unknown")
    description = parse_description(metadata[METADATA_KEY], str(path))
    base = _find_base(folder, metadata[BASE_KEY])
    return Checkpoint(
        path=path,
        kind="eomt-anomaly",
        weights=_overlay(weights, base, description, str(path)),
        config=description.config,
        notes=(f"LoRA adapter over {base.path}, merged",),
    )


def _overlay(
    weights: Mapping[str, Tensor], base: Checkpoint, description: Description, where: str
) -> dict[str, Tensor]:
    assert description.lora is not None
    ours = {}
    for name, value in weights.items():
        name = name.removeprefix(PREFIX)
        ours[name.replace(".lora_A.", f".lora_A.{ADAPTER}.").replace(".lora_B.", f".lora_B.{ADAPTER}.")] = (
            value
        )
    kept = base.weights
    if description.config.class_head != (base.config.class_head if base.config else ""):
        kept = {name: value for name, value in kept.items() if not name.startswith("class_head.")}
    return merge_weights({**kept, **ours}, description.lora, where)


def _find_base(folder: Path, sha256: str) -> Checkpoint:
    path = folder / CONFIG_NAME
    try:
        named = Path(json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a configuration of a LoRA adapter: {error!r}") from None
    if not named.exists():
        raise InputError(
            f"{folder}: a LoRA adapter without its base; base_model_name_or_path in {CONFIG_NAME} names "
            f"{named}, which is not there"
        )
    base = read_checkpoint(named)
    if _hash_base(base.path) != sha256:
        raise InputError(f"{folder}: the LoRA adapter was trained on another base than {base.path}")
    return base


def _hash_base(path: Path) -> str:
    return "+".join(hash_file(part) for part in list_parts(path))


def _changed_weights(raw: Mapping[str, Tensor], base: Checkpoint, checkpoint: Path) -> dict[str, Tensor]:
    """Return the adapters, and what else differs from the base."""
    adapters = {name: value for name, value in raw.items() if ".lora_" in name}
    plain = {n.replace(".base_layer.", "."): v for n, v in raw.items() if n not in adapters}
    changed = {
        name: value
        for name, value in plain.items()
        if name not in base.weights or not torch.equal(value, base.weights[name])
    }
    foreign = [n for n in changed if n.startswith("backbone.") and n != "backbone.pos_embed"]
    if foreign:
        raise InputError(
            f"{checkpoint}: was not trained on {base.path}: {len(foreign)} frozen weights differ, such as "
            f"{foreign[0]}"
        )
    return {**adapters, **changed}
