"""What the numbers of an evaluation depend on, by content: a kept number is never one of something else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch

from eval.protocol import Protocol
from eval.sets.frames import read_file
from eval.sets.registry import TestSet
from jobs.evaluate_options import EvaluateOptions
from models.weights.adapter import is_adapter_folder
from models.weights.files import WEIGHT_SUFFIXES, list_parts
from models.weights.formats import find_weight_file
from shards.files import hash_file
from shards.reader import ShardReader

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    "eval",
    "models",
    "jobs/model_source.py",
    "shards/scene.py",
)
"""The code that a number comes from."""


def network_key(content: str, options: EvaluateOptions, device: torch.device) -> dict[str, str]:
    """Return what the answers of the network depend on.

    Args:
        content: as `hash_checkpoint` returns it, or the fingerprint of another source.

    How many windows go through it at once, and how many processes share the images, is left out: neither
    changes more than a rounding.
    """
    return {
        "code": hash_code(),
        "checkpoint": content,
        "precision": options.precision,
        "compile": str(options.compile),
        "device": device.type,
    }


def set_key(data: str, protocol: Protocol, options: EvaluateOptions) -> dict[str, str]:
    """Return what the cells of a test set depend on beside the network.

    Args:
        data: as `hash_test_set` returns it.
    """
    return {
        "data": data,
        "protocol": protocol.describe(),
        "scores": " ".join(options.scores),
        "components": str(options.components),
        "pictures": str(options.pictures),
    }


def closed_set_key(reader: ShardReader, count: int) -> dict[str, str]:
    """Return what the closed-set quality depends on beside the network: the first `count` samples.

    The hash of a shard is that of its manifest (`jobs.doctor shards` checks it), or its place and size.
    """
    shards = [[shard.sha256 or shard.location, shard.num_bytes] for shard in reader.shards]
    return {"data": _digest([json.dumps([shards, list(reader.keys[:count])]).encode()])}


def hash_checkpoint(path: Path) -> str:
    """Return a hash of the weights and descriptions that `path` (a file or folder) holds."""
    if path.is_file():
        files = list_parts(path)
    elif is_adapter_folder(path):
        files = [file for file in sorted(path.iterdir()) if file.suffix in WEIGHT_SUFFIXES]
    else:
        files = list_parts(find_weight_file(path))
    if path.is_dir():
        files = [*files, *sorted(path.glob("*.json"))]
    return _digest(f"{file.name} {hash_file(file)}".encode() for file in files)


def hash_test_set(test_set: TestSet) -> str:
    """Return a hash of all images (with overlays) and masks, their names and order, and what values mean."""
    head = json.dumps([test_set.name, sorted(test_set.convention.values.items())])
    parts = [head.encode()]
    for frame in test_set.frames:
        files = [path for path in (frame.image, frame.mask, frame.overlay) if path is not None]
        hashes = [hashlib.sha256(read_file(path)).hexdigest() for path in files]
        parts.append(" ".join((frame.stem, *hashes)).encode())
    return _digest(parts)


def hash_code() -> str:
    """Return a hash of the sources that numbers come from, and the version of PyTorch."""
    places = [ROOT / name for name in SOURCES]
    files = [f for place in places for f in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]
    return _digest([torch.__version__.encode(), *(file.read_bytes() for file in files)])


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()
