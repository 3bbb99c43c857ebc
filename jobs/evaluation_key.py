"""What the numbers of an evaluation depend on, by content: a kept number is never one of something else."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable
from pathlib import Path

import torch

from eval.datasets import TestSet
from eval.protocol import Protocol
from jobs.evaluate_options import EvaluateOptions
from models.adapter_folder import is_adapter_folder
from models.formats import find_weight_file
from models.weights import WEIGHT_SUFFIXES, list_parts
from shards.manifest import hash_file
from shards.reader import ShardReader

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("eval", "models", "jobs/segmenter.py", "shards/scene.py", "trainer/runtime.py")
"""The code that a number comes from."""


def network_key(source: Path, options: EvaluateOptions, device: torch.device) -> dict[str, str]:
    """Return what the answers of the network depend on.

    How many windows go through it at once, and how many processes share the images, is left out: neither
    changes more than a rounding.
    """
    return {
        "code": hash_code(),
        "checkpoint": hash_source(source, options),
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


def hash_source(source: Path, options: EvaluateOptions) -> str:
    """Return a hash of what is evaluated; of a user's code, which may read anything, never twice the same."""
    if options.model_file:
        return uuid.uuid4().hex
    if options.score_maps is None:
        return hash_checkpoint(source)
    files = sorted(path for path in source.rglob("*") if path.is_file())
    named = (f"{path.relative_to(source)} {hash_file(path)}".encode() for path in files)
    return _digest([json.dumps(options.map_range).encode(), *named])


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
    """Return a hash of all images and masks, their names and order, and what the masks' values mean."""
    head = json.dumps([test_set.name, sorted(test_set.convention.values.items())])
    frames = (f"{f.stem} {hash_file(f.image)} {hash_file(f.mask)}".encode() for f in test_set.frames)
    return _digest([head.encode(), *frames])


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
