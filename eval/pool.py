"""The scores of a whole test set, kept on disk, sorted per image, until a metric needs them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from eval.metrics.curve import ImageScores, PixelMetrics, exact_curve
from shards.errors import InputError
from shards.schema import ANOMALY, NORMAL

_INDEX = "pool.json"


class _Entry(NamedTuple):
    """Where an image's scores lie, in scores, in every file: its normal pixels, then its anomalous ones."""

    image: int
    start: int
    num_normal: int
    num_anomalous: int


class ScorePool:
    """Collects the pixels of many images, per score, in unlinked temporary files.

    Four scores of 100 frames of 2048×1024 are 3.3 GB: too much for memory, nothing for a disk. The scores of
    an image are sorted when they come, so that metrics read them interval by interval, in bounded memory. The
    files have no name, so nothing is left behind, not even by a killed process. A pool can be saved, loaded
    and merged: processes and array tasks each collect their images, and the numbers are those of one process
    to the last bit, because images are put in the order of their position in the set.
    """

    def __init__(self, names: Sequence[str], folder: Path | None = None) -> None:
        """Open the files.

        Args:
            names: the scores that every image brings.
            folder: where the disk space is; None is the system's temporary folder.
        """
        self.names, self.folder = tuple(names), folder
        self._entries: list[_Entry] = []
        self._size = 0
        self._files = {
            name: tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed in close)
            for name in self.names
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
    def images(self) -> list[int]:
        """Positions in the set of the images that were added, upwards."""
        return sorted(entry.image for entry in self._entries)

    @property
    def num_images(self) -> int:
        """Images that were added."""
        return len(self._entries)

    @property
    def num_normal(self) -> int:
        """Scored normal pixels per score."""
        return sum(entry.num_normal for entry in self._entries)

    @property
    def num_anomalous(self) -> int:
        """Scored anomalous pixels per score."""
        return sum(entry.num_anomalous for entry in self._entries)

    @property
    def num_pixels(self) -> int:
        """Scored pixels per score; void is none of them."""
        return self.num_normal + self.num_anomalous

    def add(
        self,
        scores: Mapping[str, Float32[np.ndarray, "H W"]],
        target: UInt8[np.ndarray, "H W"],
        image: int | None = None,
    ) -> None:
        """Add one image.

        Args:
            scores: a map for each of the pool's names, higher = more anomalous.
            target: `NORMAL`, `ANOMALY` or `VOID` per pixel.
            image: its position in the set, once per set; None is the number of images added before.
        """
        assert set(scores) == set(self.names), (set(scores), self.names)
        image = len(self._entries) if image is None else image
        assert image not in self.images, f"image {image} was added before"
        chosen = [np.flatnonzero(target.ravel() == value) for value in (NORMAL, ANOMALY)]
        for name in self.names:
            for indices in chosen:
                picked = np.take(scores[name].ravel(), indices)
                picked.sort()
                picked.tofile(self._files[name])
        self._append(image, chosen[0].size, chosen[1].size)

    def _append(self, image: int, num_normal: int, num_anomalous: int) -> None:
        self._entries.append(_Entry(image, self._size, num_normal, num_anomalous))
        self._size += num_normal + num_anomalous

    def merge(self, other: ScorePool) -> None:
        """Add all images of `other`, which keeps its own; no image may be in both."""
        assert other.names == self.names, (other.names, self.names)
        assert not set(self.images) & set(other.images), "an image is in both pools"
        for name, file in self._files.items():
            source = other._files[name]
            source.seek(0)
            shutil.copyfileobj(source, file, 1 << 20)
        for entry in other._entries:
            self._append(entry.image, entry.num_normal, entry.num_anomalous)

    def save(self, folder: Path) -> None:
        """Write the pool into a new folder, for another process to load."""
        folder.mkdir(parents=True)
        for i, name in enumerate(self.names):
            self._files[name].seek(0)
            with (folder / f"{i}.f32").open("wb") as file:
                shutil.copyfileobj(self._files[name], file, 1 << 20)
        index = {"names": self.names, "entries": self._entries}
        (folder / _INDEX).write_text(json.dumps(index), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, scratch: Path | None = None) -> ScorePool:
        """Read a pool that `save` wrote.

        Args:
            folder: as given to `save`.
            scratch: folder for the new pool's own files.

        Raises:
            InputError: it holds no pool, or its files are shorter or longer than its index says.
        """
        try:
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise InputError(f"{folder}: no saved pool of scores: {error}") from None
        entries = [_Entry(*entry) for entry in index["entries"]]
        size = sum(entry.num_normal + entry.num_anomalous for entry in entries)
        paths = [folder / f"{i}.f32" for i in range(len(index["names"]))]
        for path in paths:
            if not path.is_file() or path.stat().st_size != 4 * size:
                raise InputError(f"{path}: expected {4 * size} bytes of scores; it was cut off or changed")
        pool = cls(index["names"], scratch)
        pool._entries, pool._size = entries, size
        for path, copy in zip(paths, pool._files.values(), strict=True):
            with path.open("rb") as file:
                shutil.copyfileobj(file, copy, 1 << 20)
        return pool

    def runs(self, name: str) -> tuple[list[Float32[np.ndarray, " _N"]], list[Float32[np.ndarray, " _N"]]]:
        """Return sorted scores of anomalous and of normal pixels: a memory map per image, in set order."""
        file = self._files[name]
        file.flush()
        empty = np.zeros(0, dtype=np.float32)
        whole = np.memmap(file, dtype=np.float32, mode="r", shape=(self._size,)) if self._size else empty
        positives, negatives = [], []
        for entry in sorted(self._entries):
            middle = entry.start + entry.num_normal
            negatives.append(np.asarray(whole[entry.start : middle]))
            positives.append(np.asarray(whole[middle : middle + entry.num_anomalous]))
        file.seek(0, 2)
        return positives, negatives

    def sorted_images(self, name: str) -> list[ImageScores]:
        """Return the sorted scores of each image, in set order: views of the file."""
        return [ImageScores(p, n) for p, n in zip(*self.runs(name), strict=True)]

    def metrics(self, name: str, *, fpr_rule: str = "first-at-least") -> PixelMetrics:
        """Compute the metrics of one score over all pixels; independent of the order of images.

        Raises:
            InputError: a class has no pixel, or a score is NaN.
        """
        return exact_curve(self.sorted_images(name)).metrics(fpr_rule)
