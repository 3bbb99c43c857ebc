"""Everything that can be said of prepared shards by reading every byte of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from shards.cutout import MASK_SUFFIX, META_SUFFIX, OBJECT_SUFFIX, decode_cutout
from shards.errors import InputError
from shards.location import Shard, find_shards
from shards.manifest import MANIFEST_NAME, hash_file, read_manifest
from shards.reader import ShardReader
from shards.scene import find_scene_members, open_scene

CUTOUT_SUFFIXES = (OBJECT_SUFFIX, MASK_SUFFIX, META_SUFFIX)


@dataclass
class ShardFindings:
    """What was found in some shards."""

    split: str
    num_shards: int = 0
    num_samples: int = 0
    num_bytes: int = 0
    pixels: Int64[np.ndarray, "256"] = field(default_factory=lambda: np.zeros(256, np.int64))
    """Pixels of each label value, over all scenes."""
    frames: Int64[np.ndarray, "256"] = field(default_factory=lambda: np.zeros(256, np.int64))
    """Scenes that show each label value."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(height, width) of the pictures."""
    categories: Counter[str] = field(default_factory=Counter)
    """Of cut-outs."""
    suffixes: Counter[str] = field(default_factory=Counter)
    """Of all members."""
    problems: list[str] = field(default_factory=list)

    def add(self, other: ShardFindings) -> None:
        """Take in what was found in other shards."""
        self.num_shards += other.num_shards
        self.num_samples += other.num_samples
        self.num_bytes += other.num_bytes
        self.pixels += other.pixels
        self.frames += other.frames
        self.sizes += other.sizes
        self.categories += other.categories
        self.suffixes += other.suffixes
        self.problems += other.problems


def examine_folder(path: str, workers: int = 0) -> dict[str, ShardFindings]:
    """Hash every shard and decode every member that training would read.

    Args:
        path: a folder with a manifest, a tar file, or a pattern of tar files; local.
        workers: threads; 0 takes one per processor.

    Returns:
        Findings by split; bare tar files are one split without a name.

    Raises:
        InputError: nothing is there, or the manifest is unfit. What is wrong with the shards themselves is
            found, not raised.
    """
    shards = {split: found for split, found in _list_by_split(path).items() if found}
    found = {split: ShardFindings(split) for split in shards}
    tasks = [(split, shard) for split, several in shards.items() for shard in several]
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:  # decoders and hashes hold no lock
        for findings in pool.map(lambda task: examine_shard(task[1], task[0]), tasks):
            found[findings.split].add(findings)
    for split, several in shards.items():
        if not found[split].problems:
            found[split].problems += _find_duplicates(several)
    return found


def examine_shard(shard: Shard, split: str = "") -> ShardFindings:
    """Hash one shard, and decode what training would read of it."""
    findings = ShardFindings(split, num_shards=1)
    path = Path(shard.location)
    try:
        findings.num_bytes = path.stat().st_size
        if shard.sha256 is not None and hash_file(path) != shard.sha256:
            findings.problems.append(f"{path}: bytes differ from the manifest's hash")
        reader = ShardReader([shard], split)
    except (OSError, InputError) as error:
        findings.problems.append(str(error) if isinstance(error, InputError) else f"{path}: {error.strerror}")
        return findings
    findings.num_samples = len(reader)
    for index, key in enumerate(reader.keys):
        findings.suffixes.update(reader.suffixes(index))
        try:
            if set(CUTOUT_SUFFIXES) <= set(reader.suffixes(index)):
                _examine_cutout(key, reader.read(index, CUTOUT_SUFFIXES), findings)
            else:
                names = find_scene_members(key, reader.suffixes(index))
                _examine_scene(key, reader.read(index, names.both), findings)
        except InputError as error:
            findings.problems.append(f"{path}: {error}")
    reader.close()
    return findings


def _examine_scene(key: str, members: dict[str, bytes], findings: ShardFindings) -> None:
    scene = open_scene(key, members)
    scene.picture.decode()
    pixels = np.bincount(scene.label.ravel(), minlength=256)
    findings.pixels += pixels
    findings.frames += pixels > 0
    findings.sizes[scene.picture.shape] += 1


def _examine_cutout(key: str, members: dict[str, bytes], findings: ShardFindings) -> None:
    cutout = decode_cutout(key, members)
    if not (cutout.mask >= 128).any():
        raise InputError(f"cut-out {key}: the mask is empty")
    findings.categories[cutout.category] += 1
    findings.sizes[(cutout.mask.shape[0], cutout.mask.shape[1])] += 1


def _list_by_split(path: str) -> dict[str, list[Shard]]:
    if not (Path(path) / MANIFEST_NAME).is_file():
        return {"": find_shards(path, None)}
    manifest = read_manifest(Path(path), check_files=False)
    return {split: find_shards(path, split, check_files=False) for split in manifest.splits}


def _find_duplicates(shards: Sequence[Shard]) -> list[str]:
    try:
        ShardReader(shards).close()
    except InputError as error:
        return [str(error)]
    return []
