"""Runs, test sets, labelled scenes and options of a miniature evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from jobs.evaluate import EvaluateOptions
from shards.manifest import MANIFEST_VERSION, Manifest, ShardEntry, write_manifest
from shards.prepare.writer import write_shard
from tests.models.tiny import make_model, save


def encode(picture: np.ndarray) -> bytes:
    return cv2.imencode(".png", picture)[1].tobytes()


def write_set(place: Path, frames: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write images (B, G, R) and masks of a test set as 0.png, 1.png, ..."""
    for i, pair in enumerate(frames):
        for name, picture in zip(("images", "labels_masks"), pair, strict=True):
            (place / name).mkdir(parents=True, exist_ok=True)
            (place / name / f"{i}.png").write_bytes(encode(picture))


def write_test_sets(root: Path) -> Path:
    rng = np.random.default_rng(1)
    for folder, anomaly in (("RoadAnomaly21", 1), ("RoadAnomaly", 2)):
        frames = []
        for i in range(2):
            mask = np.zeros((40, 64), np.uint8)
            mask[10:20, 10 + i : 30] = anomaly
            frames.append((rng.integers(0, 256, (40, 64, 3), dtype=np.uint8), mask))
        write_set(root / folder, frames)
    return root


def write_scenes(folder: Path, scenes: dict[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    """Write image (B, G, R) and train ids of each key as Cityscapes val."""
    folder.mkdir()
    members = [(k, {"image.png": encode(i), "label.png": encode(label)}) for k, (i, label) in scenes.items()]
    keys = write_shard(folder / "v.tar", members)
    size = (folder / "v.tar").stat().st_size
    entries = (ShardEntry("v.tar", "val", len(keys), size, "0" * 64, keys),)
    kind = ("cityscapes", "cityscapes-train-id", "png")
    write_manifest(Manifest(MANIFEST_VERSION, *kind, len(keys), {}, entries), folder)
    return folder


def write_val_shards(folder: Path) -> Path:
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (32, 64, 3), dtype=np.uint8)
    label = rng.integers(0, 19, (32, 64), dtype=np.uint8)
    return write_scenes(folder, dict.fromkeys("ab", (image, label)))


def write_run(root: Path, **changes: object) -> Path:
    """Write a run with one checkpoint of an untrained model."""
    save(make_model(num_queries=5, **changes), root / "rba_run" / "checkpoints" / "step-0000010")
    return root / "rba_run"


def options_for(root: Path, **changes: object) -> EvaluateOptions:
    values = {"checkpoint": write_run(root), "datasets": write_test_sets(root / "sets"), "device": "cpu"}
    return EvaluateOptions(**{**values, "out": root / "out", **changes})  # type: ignore[arg-type]
