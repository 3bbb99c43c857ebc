"""Processes that share one evaluation: each takes every n-th image, the first one measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from eval.pool import ScorePool

Item = TypeVar("Item")


def _nothing() -> None:
    """Wait for nobody."""


@dataclass(frozen=True)
class Ranks:
    """This process among `count`; `wait` returns when all have called it."""

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = _nothing

    @property
    def is_first(self) -> bool:
        """Whether this process measures and writes."""
        return self.rank == 0

    def share(self, items: Sequence[Item], name: str = "") -> Iterator[tuple[int, Item]]:
        """Yield this rank's items with their positions, behind a progress bar on the first rank."""
        mine = range(self.rank, len(items), self.count)
        for i in tqdm(mine, desc=name, unit="image", disable=None if self.is_first else True):
            yield i, items[i]

    def merge_pools(self, pool: ScorePool, folder: Path) -> None:
        """Give the first rank's pool the images of all others.

        Args:
            pool: this rank's images.
            folder: that all ranks see.
        """
        if not self.is_first:
            pool.save(folder / f"pool-{self.rank}")
        self.wait()
        if self.is_first:
            for rank in range(1, self.count):
                with ScorePool.load(folder / f"pool-{rank}", folder) as other:
                    pool.merge(other)

    def interleave(self, rows: np.ndarray, folder: Path | None) -> np.ndarray:
        """Return the rows of all ranks in the order of the items, on every rank.

        Args:
            rows: one per item of this rank.
            folder: that all ranks see; not needed by one process.
        """
        if self.count == 1:
            return rows
        assert folder is not None, "several ranks need a folder that all of them see"
        paths = [folder / f".rows-{rank}.npy" for rank in range(self.count)]
        np.save(paths[self.rank], rows)
        self.wait()
        parts = [np.load(path) for path in paths]
        shape = next(part.shape[1:] for part in parts if part.size)
        joined = np.zeros((sum(len(part) for part in parts), *shape), dtype=parts[0].dtype)
        for rank, part in enumerate(parts):
            joined[rank :: self.count] = part.reshape(-1, *shape)
        self.wait()
        paths[self.rank].unlink()
        return joined


ALONE = Ranks()
