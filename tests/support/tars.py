"""Tar files by the standard library, and folders of shards, for tests of what reads shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np

from shards.cutout import Cutout, encode_cutout
from shards.files import hash_file
from shards.index import build_index, write_index
from shards.manifest import MANIFEST_VERSION, Manifest, ShardEntry, write_manifest


def encode(picture: np.ndarray) -> bytes:
    """Encode numbers, or colours B, G, R, as PNG."""
    return cv2.imencode(".png", picture)[1].tobytes()


def write_tar(path: Path, members: Mapping[str, bytes], kind: int = tarfile.USTAR_FORMAT) -> Path:
    """Write files by name."""
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_cutouts(path: Path, cutouts: Iterable[Cutout]) -> str:
    """Write a bank of objects."""
    members = {f"{c.key}.{suffix}": content for c in cutouts for suffix, content in encode_cutout(c).items()}
    return str(write_tar(path, members))


def write_shards(folder: Path, shards: Mapping[str, Mapping[str, bytes]]) -> Path:
    """Write a folder as `jobs.prepare` does; a shard's name begins with its split, as in `train-0`."""
    folder.mkdir(exist_ok=True)
    entries = []
    for name, members in shards.items():
        path = write_tar(folder / f"{name}.tar", members)
        samples = build_index(path)
        write_index(path, samples)
        keys, size = tuple(sample.key for sample in samples), path.stat().st_size
        entries.append(ShardEntry(path.name, name.split("-")[0], len(keys), size, hash_file(path), keys))
    count = sum(entry.num_samples for entry in entries)
    encodings = ("cityscapes", "cityscapes-train-id", "png")
    write_manifest(Manifest(MANIFEST_VERSION, *encodings, count, {}, tuple(entries)), folder)
    return folder
