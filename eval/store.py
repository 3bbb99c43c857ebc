"""Files of an evaluation: arrays with a key, complete or absent; one file per image of a set.

The key says what a file was made from, and each array has a checksum. So whoever scores images skips those
whose file is there with the key asked for: a process that was killed goes on, and several processes share a
set, each writing the files of every n-th image.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from torch import distributed

from eval.metrics.curve import ImageScores, PixelMetrics, exact_curve
from shards.errors import InputError
from shards.files import partial_file
from shards.progress import Progress
from shards.rendezvous import meet, read_launch
from shards.schema import ANOMALY, NORMAL
from shards.source import ZIP_DAMAGES

logger = logging.getLogger(__name__)

SUFFIX = ".npz"
Key = Mapping[str, str]
"""Hashes and settings that a file depends on, by name."""
_HEAD = "head"
_DAMAGES = (*ZIP_DAMAGES, TypeError, AttributeError)


class Cached(NamedTuple):
    """Content of a file."""

    key: dict[str, str]
    content: Any
    """As JSON gives it back."""
    arrays: dict[str, np.ndarray]


def write_cached(
    path: Path,
    key: Key,
    content: Any,
    arrays: Mapping[str, np.ndarray],
    save: Callable[..., None] = np.savez_compressed,
) -> None:
    """Write JSON and arrays by `save` in place of what is there; no array may be called `head`."""
    head = json.dumps({"key": dict(key), "content": content}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial_file(path) as partial, partial.open("wb") as file:
        save(file, **{_HEAD: np.frombuffer(head, np.uint8)}, **arrays)


def read_cached(path: Path) -> Cached | None:
    """Read a file and check it; None where it is absent, or damaged, which the log says."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as members:
            arrays = {name: members[name] for name in members.files}
        head = json.loads(arrays.pop(_HEAD).tobytes())
        return Cached({str(k): str(v) for k, v in head["key"].items()}, head["content"], arrays)
    except _DAMAGES as error:
        logger.warning("%s: is damaged (%s); it is computed anew", path, error)
        return None


@dataclass(frozen=True)
class Worker:
    """One of `count` processes that share the images of a set: a rank, an array task, or the only one."""

    number: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None
    """Barrier of all ranks; array tasks wait for nobody."""
    ask: Callable[[], None] = lambda: None
    """Called by all ranks before each image but odd ones at the end; raises where all leave."""
    is_task: bool = False
    """Whether the others are array tasks, which may run at another time."""

    @property
    def part(self) -> str:
        """Name of an array task's share; empty where it does not share with others."""
        return f"{self.number}-of-{self.count}" if self.is_task else ""

    @property
    def leads(self) -> bool:
        """Whether this is the rank that measures and writes."""
        return self.number == 0 and not self.is_task


ALONE = Worker()


@contextmanager
def launched_worker() -> Iterator[Worker]:
    """Join the ranks that `torchrun` or `accelerate launch` announced, over gloo; else be alone."""
    if read_launch()[1] == 1:
        yield ALONE
        return

    def wait() -> None:
        distributed.barrier()

    meet("gloo")
    try:
        yield Worker(distributed.get_rank(), distributed.get_world_size(), wait)
    finally:
        distributed.destroy_process_group()


def score_arrays(
    scores: Mapping[str, Float32[np.ndarray, "*P"]], target: UInt8[np.ndarray, "*P"], **arrays: np.ndarray
) -> dict[str, np.ndarray]:
    """Return an image's arrays as an `ImageStore` names them.

    Args:
        scores: maps (H, W), or lists of pixels, by name, higher = more anomalous.
        target: 0 normal, 1 anomaly, 255 void.
        arrays: others, such as `prediction`, the predicted train ids.
    """
    return {f"score.{name}": score for name, score in scores.items()} | {"target": target} | arrays


class ImageStore:
    """The images of one set: arrays by name in FOLDER/{position}.npz.

    Score maps take 4 bytes per pixel and score, target and predicted classes one byte each. Sorted scores are
    made of the maps, one score at a time, so that metrics never hold more than an image in memory.
    """

    def __init__(self, folder: Path, keys: Sequence[Key]) -> None:
        """Use `folder`, which need not exist; `keys` has one per image."""
        self._folder, self._keys = folder, keys

    def __len__(self) -> int:
        return len(self._keys)

    def path(self, image: int) -> Path:
        """Return the file of an image."""
        return self._folder / f"{image}{SUFFIX}"

    def has(self, image: int) -> bool:
        """Whether the image's file is there, undamaged, with the key asked for."""
        cached = read_cached(self.path(image))
        return cached is not None and cached.key == self._keys[image]

    def write(self, image: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the arrays of an image."""
        write_cached(self.path(image), self._keys[image], None, arrays, np.savez)

    def fill(
        self,
        make: Callable[[int], Mapping[str, np.ndarray]],
        worker: Worker = ALONE,
        title: str = "",
        is_done: Callable[[int], bool] = lambda image: True,
    ) -> None:
        """Write the files of this worker's images that are missing, and say on the first one how far it is.

        Args:
            make: position of an image to its arrays.
            is_done: whether an image that is here needs nothing else of `make`.
        """
        mine = range(worker.number, len(self), worker.count)
        for image in Progress(mine, desc=title, unit="image", disable=worker.number != 0):
            if image - worker.number + worker.count <= len(self):
                worker.ask()
            if not (self.has(image) and is_done(image)):
                self.write(image, make(image))

    def read(self, image: int, name: str) -> np.ndarray:
        """Read one array of an image.

        An InputError says that its file was removed or damaged since it was found.
        """
        try:
            with self.path(image).open("rb") as file, np.load(file, allow_pickle=False) as members:
                return members[name]
        except _DAMAGES as error:
            raise InputError(f"{self.path(image)}: was removed or damaged meanwhile: {error}") from None

    def scores(self, image: int, name: str) -> Float32[np.ndarray, "*P"]:
        """Read the scores of an image by their name."""
        return self.read(image, f"score.{name}")

    @contextmanager
    def sorted_scores(self, name: str) -> Iterator[list[ImageScores]]:
        """Yield one score of all images, sorted, as memory maps that hold within the block only.

        They lie in a file without a name (4 bytes per pixel), so nothing is left behind, not even by a killed
        process.
        """
        with tempfile.TemporaryFile(dir=self._folder) as file:
            ends = []
            for image in range(len(self)):
                scores, target = self.scores(image, name), self.read(image, "target")
                for value in (ANOMALY, NORMAL):
                    file.write(np.sort(scores[target == value]).data)  # a full disk is an OSError of its own
                    ends.append(file.tell() // scores.itemsize)
            file.flush()
            whole = np.zeros(0, np.float32)
            if ends[-1]:
                whole = np.asarray(np.memmap(file, np.float32, "r", shape=(ends[-1],)))
            runs = np.split(whole, ends[:-1])
            yield [ImageScores(p, n) for p, n in zip(runs[::2], runs[1::2], strict=True)]

    def measure(self, name: str) -> PixelMetrics:
        """Compute the metrics of one score over all pixels.

        An InputError says that a class has no pixel, or a score is NaN.
        """
        with self.sorted_scores(name) as images:
            return exact_curve(images).metrics()

    def remove(self) -> None:
        """Give the disk space back."""
        shutil.rmtree(self._folder, ignore_errors=True)
