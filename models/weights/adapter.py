"""Adapters without their base: LoRA in the folder layout of peft, and outlier heads in one small file.

`adapter_config.json` is peft's, and names the base. `adapter_model.safetensors` holds the LoRA matrices and
every other weight that differs from the base (queries, heads, a resampled position embedding) under peft's
names; its header holds our description of the model and the SHA-256 of the base.

`outlier_head.safetensors` holds a head's weights under our names. Its header holds our description of the
model, a fingerprint of the base, and the place where the base was; so a head goes onto the same weights
wherever they lie and whatever program wrote them, and onto no others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.adapt import ADAPTER, merge_weights
from models.config import METADATA_KEY, describe, parse_description, read_description
from models.eomt import EoMT
from models.weights.files import hash_weights, read_metadata, read_weight_file, write_weight_file
from models.weights.formats import WEIGHTS_NAME, Checkpoint, fit_positions, read_checkpoint
from shards.errors import InputError
from shards.files import read_json, to_json

CONFIG_NAME = "adapter_config.json"
ADAPTER_NAME = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
BASE_KEY = "base_sha256"
HEAD_NAME = "outlier_head.safetensors"
HEAD_PREFIX = "outlier_head."
FINGERPRINT_KEY = "outlier_head_base"
PLACE_KEY = "outlier_head_base_path"
POSITIONS = "backbone.pos_embed"
"""Follows the image size: left out of a fingerprint, and free to differ from the base."""


def write_adapter(folder: Path, checkpoint: Path, base: Checkpoint) -> int:
    """Write the adapter of a LoRA run's checkpoint into an empty folder; return how many numbers it holds.

    The frozen weights of `base`, the start of the run, must be those of the checkpoint.
    """
    import peft  # here, as in models.adapt

    config, lora = read_description(checkpoint)
    if lora is None:
        raise InputError(f"{checkpoint}: holds no LoRA adapter; the run's adapt.mode was another one")
    if base.config is None:
        raise InputError(f"{base.path}: {base.title}; an adapter needs a whole EoMT as its base")
    changed = _changed_weights(read_weight_file(checkpoint / WEIGHTS_NAME), base, checkpoint)
    state = {PEFT_PREFIX + name.replace(f".{ADAPTER}.", "."): value for name, value in changed.items()}
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
    ours = {name.removeprefix(PEFT_PREFIX): value for name, value in ours.items()}
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
    if foreign := [n for n in changed if n.startswith("backbone.") and n != POSITIONS]:
        differ = f"{len(foreign)} frozen weights differ, such as {foreign[0]}"
        raise InputError(f"{checkpoint}: was not trained on {base.path}: {differ}")
    return {**adapters, **changed}


def write_head(model: EoMT, path: Path, base: str) -> int:
    """Write the outlier head of a model, whose `base` may lie there; return how many numbers it holds."""
    head = {name: value for name, value in model.state_dict().items() if name.startswith(HEAD_PREFIX)}
    facts = {FINGERPRINT_KEY: fingerprint(model.state_dict()), PLACE_KEY: base}
    write_weight_file(head, path, {METADATA_KEY: describe(model.config), **facts})
    return sum(value.numel() for value in head.values())


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of an EoMT's weights in our names, as float32, without outlier head and positions.

    It is the same whatever file and format they were read from.
    """
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        if not name.startswith(HEAD_PREFIX) and name != POSITIONS:
            digest.update(f"{name} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().float().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def find_head(path: Path) -> Path | None:
    """Return the file of an outlier head that `path` is, or is the folder of; None for anything else."""
    file = path / HEAD_NAME if path.is_dir() and not (path / "model.safetensors").exists() else path
    return file if file.is_file() and FINGERPRINT_KEY in read_metadata(file) else None


def place_of_base(path: Path, base: str = "") -> Path:
    """Return where the base of a head is: `base`, or what the head's header names if it is there."""
    named = base or read_metadata(path).get(PLACE_KEY, "")
    if not named or not Path(named).exists():
        wrong = f"its header names {named!r:.200}, which is not there"
        remedy = f"jobs.export --checkpoint {path} --base EOMT --to safetensors puts it onto an EoMT"
        raise InputError(f"{path}: an outlier head without its base; {wrong}; {remedy}")
    return Path(named)


def read_head(path: Path, base: Checkpoint) -> Checkpoint:
    """Read an outlier head and put it onto its base: one plain checkpoint, of the head's image size."""
    head, metadata = read_weight_file(path), read_metadata(path)
    config, _ = parse_description(metadata.get(METADATA_KEY, "{}"), str(path))
    if base.config is None:
        raise InputError(f"{path}: an outlier head goes onto an EoMT; {base.path} is a {base.title}")
    if config.trunk != base.config.trunk:
        theirs = f"{base.path} has {base.config.trunk}"
        raise InputError(f"{path}: the outlier head reads a trunk {config.trunk}; {theirs}")
    if fingerprint(base.weights) != metadata[FINGERPRINT_KEY]:
        remedy = "give the EoMT that its training started from"
        raise InputError(f"{path}: the outlier head was trained on other weights than {base.path}; {remedy}")
    weights, _ = fit_positions(base.weights, base.config, config)
    kept = {name: value for name, value in weights.items() if not name.startswith(HEAD_PREFIX)}
    notes = (*base.notes, f"outlier head {config.outlier_head}, over {base.path}")
    return Checkpoint(path, "eomt-anomaly", kept | head, config, notes=notes)
