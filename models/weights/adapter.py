"""LoRA adapters without their base, in the folder layout of peft.

`adapter_config.json` is peft's, and names the base. `adapter_model.safetensors` holds the LoRA matrices and
every other weight that differs from the base (queries, heads, a resampled position embedding) under peft's
names; its header holds our description of the model and the SHA-256 of the base.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.config import METADATA_KEY, describe, parse_description, read_description
from models.lora import ADAPTER, merge_weights
from models.weights.files import hash_weights, read_metadata, read_weight_file, write_weight_file
from models.weights.formats import WEIGHTS_NAME, Checkpoint, read_checkpoint
from shards.errors import InputError
from shards.files import read_json, to_json

CONFIG_NAME = "adapter_config.json"
ADAPTER_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
BASE_KEY = "base_sha256"


def write_adapter(folder: Path, checkpoint: Path, base: Checkpoint) -> int:
    """Write the adapter of a LoRA run's checkpoint into an empty folder; return how many numbers it holds.

    The frozen weights of `base`, the start of the run, must be those of the checkpoint.
    """
    import peft  # here, as in models.lora

    config, lora = read_description(checkpoint)
    if lora is None:
        raise InputError(f"{checkpoint}: holds no LoRA adapter; the run's adapt.mode was another one")
    if base.config is None:
        raise InputError(f"{base.path}: {base.title}; an adapter needs a whole EoMT as its base")
    changed = _changed_weights(read_weight_file(checkpoint / WEIGHTS_NAME), base, checkpoint)
    state = {PREFIX + name.replace(f".{ADAPTER}.", "."): value for name, value in changed.items()}
    metadata = {METADATA_KEY: describe(config, lora), BASE_KEY: hash_weights(base.path)}
    write_weight_file(state, folder / ADAPTER_NAME, metadata)
    peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=sorted({name.partition(".lora_")[0] for name in changed if ".lora_" in name}),
        modules_to_save=sorted({name.partition(".")[0] for name in changed if ".lora_" not in name}) or None,
        base_model_name_or_path=str(base.path.resolve()),
        inference_mode=True,
    ).save_pretrained(str(folder))
    settings = read_json(dict[str, Any], folder / CONFIG_NAME)  # peft writes its sets in any order
    ordered = {n: sorted(v) if isinstance(v, list) else v for n, v in settings.items()}
    (folder / CONFIG_NAME).write_text(to_json(ordered, indent=2, sort_keys=True))
    return sum(value.numel() for value in state.values())


def is_adapter_folder(path: Path) -> bool:
    """Say whether `path` is a folder that `write_adapter` or peft wrote."""
    return (path / CONFIG_NAME).is_file()


def read_adapter(folder: Path) -> Checkpoint:
    """Read an adapter and the base that it was trained on, merged into one plain checkpoint."""
    path = folder / ADAPTER_NAME
    weights = read_weight_file(path)
    metadata = read_metadata(path)
    if METADATA_KEY not in metadata or BASE_KEY not in metadata:
        raise InputError(f"{path}: a LoRA adapter that this suite did not write; its model is unknown")
    config, lora = parse_description(metadata[METADATA_KEY], str(path))
    if lora is None:
        raise InputError(f"{path}: its header describes a model without LoRA adapters")
    base = _find_base(folder, metadata[BASE_KEY])
    kept = base.weights
    if base.config is None or config.class_head != base.config.class_head:
        kept = {name: value for name, value in kept.items() if not name.startswith("class_head.")}
    ours = {re.sub(r"\.lora_([AB])\.", rf".lora_\1.{ADAPTER}.", name): v for name, v in weights.items()}
    ours = {name.removeprefix(PREFIX): value for name, value in ours.items()}
    return Checkpoint(
        path=path,
        kind="eomt-anomaly",
        weights=merge_weights({**kept, **ours}, lora, str(path)),
        config=config,
        notes=(f"LoRA adapter over {base.path}, merged",),
    )


def _find_base(folder: Path, sha256: str) -> Checkpoint:
    named = Path(str(read_json(dict[str, Any], folder / CONFIG_NAME).get("base_model_name_or_path")))
    if not named.exists():
        names = f"base_model_name_or_path in {CONFIG_NAME} names {named}, which is not there"
        raise InputError(f"{folder}: a LoRA adapter without its base; {names}")
    base = read_checkpoint(named)
    if hash_weights(base.path) != sha256:
        raise InputError(f"{folder}: the LoRA adapter was trained on another base than {base.path}")
    return base


def _changed_weights(raw: Mapping[str, Tensor], base: Checkpoint, checkpoint: Path) -> dict[str, Tensor]:
    """Return the adapters, and what else differs from the base."""
    adapters, changed = {}, {}
    for name, value in raw.items():
        plain = name.replace(".base_layer.", ".")
        if ".lora_" in name:
            adapters[name] = value
        elif plain not in base.weights or not torch.equal(value, base.weights[plain]):
            changed[plain] = value
    if foreign := [n for n in changed if n.startswith("backbone.") and n != "backbone.pos_embed"]:
        differ = f"{len(foreign)} frozen weights differ, such as {foreign[0]}"
        raise InputError(f"{checkpoint}: was not trained on {base.path}: {differ}")
    return {**adapters, **changed}
