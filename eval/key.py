"""Keys of an evaluation: hashes of all that its numbers depend on."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping

import torch

from eval.sets.frames import read_file
from eval.sets.registry import TestSet
from shards.reader import ShardReader
from shards.settings import ROOT

SOURCES = ("eval", "models", "shards/scene.py")
"""The code that a number comes from."""


def network_key(fingerprint: str, precision: str, compiled: bool, device: torch.device) -> dict[str, str]:
    """Return what the predictions of a network depend on.

    How many windows go through it at once, and how many processes share the images, is left out: neither
    changes more than a rounding.

    Args:
        fingerprint: of the checkpoint, or of another source (`eval.predict.windows.ModelSource`).
    """
    return {
        "code": _hash_code(),
        "checkpoint": fingerprint,
        "precision": precision,
        "compile": str(compiled),
        "device": device.type,
    }


@functools.cache
def _hash_code() -> str:
    """Return a hash of the sources that numbers come from, and the version of PyTorch."""
    places = [ROOT / name for name in SOURCES]
    files = [f for place in places for f in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]
    return hash_texts([torch.__version__, *(file.read_text(encoding="utf-8") for file in files)])


def hash_frames(test_set: TestSet) -> tuple[str, ...]:
    """Return a hash per image of its files (image, overlay, mask), its name, and what mask values mean."""
    head = json.dumps([test_set.name, sorted(test_set.convention.values.items())])
    hashes = []
    for frame in test_set.frames:
        files = [path for path in (frame.image, frame.mask, frame.overlay) if path is not None]
        contents = (hashlib.sha256(read_file(path)).hexdigest() for path in files)
        hashes.append(hash_texts([head, frame.stem, *contents]))
    return tuple(hashes)


def hash_scenes(reader: ShardReader, count: int) -> tuple[str, ...]:
    """Return a hash of each of the first `count` samples.

    The hash of a shard is that of its manifest (`jobs.doctor shards` checks it), or its place and size.
    """
    shards = json.dumps([[shard.sha256 or shard.location, shard.num_bytes] for shard in reader.shards])
    return tuple(hash_texts([shards, key]) for key in reader.keys[:count])


def hash_key(key: Mapping[str, str]) -> str:
    """Return one SHA-256 of a key, whatever its order."""
    return hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()


def hash_texts(texts: Iterable[str]) -> str:
    """Return one SHA-256 of several texts."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
