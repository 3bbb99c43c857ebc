"""Runs, test sets, labelled scenes and options of a miniature evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jobs.evaluate import EvaluateOptions
from tests.models.tiny import make_model, save
from tests.support.tars import encode, write_shards


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
    names = [(key, name) for key in scenes for name in ("image.png", "label.png")]
    pictures = (picture for pair in scenes.values() for picture in pair)
    members = {f"{k}.{name}": encode(p) for (k, name), p in zip(names, pictures, strict=True)}
    return write_shards(folder, {"val": members})


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
