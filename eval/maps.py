"""The maps of every frame, on disk, for what needs a threshold that only the whole set gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8


class MapStore:
    """A folder with the score maps, target and predicted classes of each frame; processes may share it."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which is made where it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def add(
        self,
        image: int,
        scores: Mapping[str, Float32[np.ndarray, "H W"]],
        target: UInt8[np.ndarray, "H W"],
        prediction: UInt8[np.ndarray, "H W"],
    ) -> None:
        """Keep one frame.

        Args:
            image: its position in the set.
            scores: maps by name.
            target: 0 normal, 1 anomaly, 255 void.
            prediction: train ids.
        """
        np.save(self._folder / f"{image}.target.npy", target)
        np.save(self._folder / f"{image}.prediction.npy", prediction)
        for name, score in scores.items():
            np.save(self._folder / f"{image}.score.{name}.npy", score)

    def scores(self, image: int, name: str) -> Float32[np.ndarray, "H W"]:
        """Read a score map."""
        return np.load(self._folder / f"{image}.score.{name}.npy")

    def target(self, image: int) -> UInt8[np.ndarray, "H W"]:
        """Read the target."""
        return np.load(self._folder / f"{image}.target.npy")

    def prediction(self, image: int) -> UInt8[np.ndarray, "H W"]:
        """Read the predicted train ids."""
        return np.load(self._folder / f"{image}.prediction.npy")
