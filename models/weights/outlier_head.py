"""Outlier heads without their base: one small `.safetensors` file that knows which weights it has read.

It holds the head's weights under our names. Its header holds our description of the model, a fingerprint of
the base, and the place where the base was; so a head goes onto the same weights wherever they lie and
whatever program wrote them, and onto no others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.config import METADATA_KEY, describe, parse_description
from models.eomt import EoMT
from models.weights.files import read_metadata, read_weight_file, write_weight_file
from models.weights.formats import Checkpoint, fit_positions
from shards.errors import InputError

HEAD_NAME = "outlier_head.safetensors"
PREFIX = "outlier_head."
FINGERPRINT_KEY = "outlier_head_base"
PLACE_KEY = "outlier_head_base_path"
POSITIONS = "backbone.pos_embed"
"""Left out of a fingerprint: it follows the image size."""


def write_head(model: EoMT, path: Path, base: str) -> int:
    """Write the outlier head of a model, whose `base` may lie there; return how many numbers it holds."""
    head = {name: value for name, value in model.state_dict().items() if name.startswith(PREFIX)}
    facts = {FINGERPRINT_KEY: fingerprint(model.state_dict()), PLACE_KEY: base}
    write_weight_file(head, path, {METADATA_KEY: describe(model.config), **facts})
    return sum(value.numel() for value in head.values())


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of an EoMT's weights in our names, as float32, without outlier head and positions.

    It is the same whatever file and format they were read from.
    """
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        if not name.startswith(PREFIX) and name != POSITIONS:
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
    kept = {name: value for name, value in weights.items() if not name.startswith(PREFIX)}
    notes = (*base.notes, f"outlier head {config.outlier_head}, over {base.path}")
    return Checkpoint(path, "eomt-anomaly", kept | head, config, notes=notes)
