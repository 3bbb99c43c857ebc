"""The scores of a whole test set, kept on disk until a metric needs them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Float32, UInt8

from eval.pixel import PixelMetrics, pixel_metrics

NORMAL, ANOMALY, VOID = 0, 1, 255
"""Values of a target: pixels of `VOID` are not scored."""


class ScorePool:
    """Collects the pixels of many images, per score and class, in unlinked temporary files.

    Four scores of 100 frames of 2048×1024 are 3.3 GB: too much for memory, nothing for a disk. Only one
    score is in memory at a time, when its metrics are computed. The files have no name, so nothing is left
    behind, not even by a killed process.
    """

    def __init__(self, names: Sequence[str], folder: Path | None = None) -> None:
        """Open the files.

        Args:
            names: the scores that every image brings.
            folder: where the disk space is; None is the system's temporary folder.
        """
        self.names = tuple(names)
        self.num_images = 0
        self.num_normal = 0
        self.num_anomalous = 0
        self._files = {
            (name, value): tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed in close)
            for name in self.names
            for value in (NORMAL, ANOMALY)
        }

    def __enter__(self) -> ScorePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the disk space back."""
        for file in self._files.values():
            file.close()

    @property
    def num_pixels(self) -> int:
        """Scored pixels per score; void is none of them."""
        return self.num_normal + self.num_anomalous

    def add(self, scores: Mapping[str, Float32[np.ndarray, "H W"]], target: UInt8[np.ndarray, "H W"]) -> None:
        """Add one image.

        Args:
            scores: a map for each of the pool's names, higher = more anomalous.
            target: `NORMAL`, `ANOMALY` or `VOID` per pixel.
        """
        assert set(scores) == set(self.names), (set(scores), self.names)
        for value in (NORMAL, ANOMALY):
            chosen = np.flatnonzero(target.ravel() == value)
            for name in self.names:
                np.take(scores[name].ravel(), chosen).tofile(self._files[name, value])
            if value == NORMAL:
                self.num_normal += chosen.size
            else:
                self.num_anomalous += chosen.size
        self.num_images += 1

    def merge(self, other: ScorePool) -> None:
        """Add all images of `other`, which keeps its own."""
        assert other.names == self.names, (other.names, self.names)
        for key, file in self._files.items():
            other._read(*key).tofile(file)
        self.num_images += other.num_images
        self.num_normal += other.num_normal
        self.num_anomalous += other.num_anomalous

    def metrics(self, name: str, *, fpr_rule: str = "first-at-least") -> PixelMetrics:
        """Compute the metrics of one score over all pixels; independent of the order of images.

        Raises:
            InputError: a class has no pixel, or a score is NaN.
        """
        positives, negatives = self._read(name, ANOMALY), self._read(name, NORMAL)
        return pixel_metrics(positives, negatives, fpr_rule=fpr_rule, overwrite=True)

    def _read(self, name: str, value: int) -> Float32[np.ndarray, " N"]:
        file = self._files[name, value]
        file.flush()
        file.seek(0)
        return np.fromfile(file, dtype=np.float32)  # and leaves the position at the end, where add goes on
