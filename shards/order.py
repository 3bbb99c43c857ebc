"""Order of the samples: a pure function of (seed, epoch), whatever the number of processes and workers.

The samples of a data set, shuffled anew for every epoch, form one endless sequence. Step s takes the next
`global_batch` of them; rank r of a step takes the r-th piece. So one process with batches of 4 trains on
exactly the samples of two processes with batches of 2, and a position in the sequence is all that a
checkpoint has to remember.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from shards.errors import InputError


class SampleOrder:
    """The endless sequence of sample numbers: epoch 0's permutation, then epoch 1's, and so on."""

    def __init__(self, num_samples: int, seed: int) -> None:
        if num_samples < 1:
            raise InputError(f"shards: hold {num_samples} samples; at least one is needed")
        if seed < 0:
            raise InputError(f"seed: got {seed}; a whole number >= 0 is needed")
        self.num_samples = num_samples
        self.seed = seed
        self._permutations: dict[int, Int64[np.ndarray, " N"]] = {}

    def at(self, position: int) -> tuple[int, int]:
        """Return (epoch, sample number) of a position in the sequence, counted from 0."""
        epoch, place = divmod(position, self.num_samples)
        return epoch, int(self.permutation(epoch)[place])

    def permutation(self, epoch: int) -> Int64[np.ndarray, " N"]:
        """Return the order of one epoch: the ranks of N random 64-bit numbers.

        The numbers come from the bit generator itself. NumPy promises that its streams never change, and
        does not promise that for `Generator.permutation`, so that a run resumed under a newer NumPy goes
        on with the same samples.
        """
        if epoch not in self._permutations:
            if len(self._permutations) > 1:  # a batch may span two epochs, never three in a row for long
                del self._permutations[next(iter(self._permutations))]
            draws = np.random.PCG64([self.seed, epoch]).random_raw(self.num_samples)
            self._permutations[epoch] = np.argsort(draws, kind="stable")
        return self._permutations[epoch]


@dataclass(frozen=True, kw_only=True)
class BatchPositions:
    """The positions of one process's batches: `start + step * global_batch + rank * batch_size + slot`."""

    start: int
    """Position at which the stream begins."""
    rank: int
    world_size: int
    batch_size: int
    """Samples per process; with gradient accumulation every micro-batch is a step."""
    num_batches: int | None = None
    """Where to end; None never does."""

    @property
    def global_batch(self) -> int:
        """Samples that all processes together take per step."""
        return self.world_size * self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count() if self.num_batches is None else range(self.num_batches):
            first = self.start + step * self.global_batch + self.rank * self.batch_size
            yield list(range(first, first + self.batch_size))


def sample_generator(purpose: str, seed: int, epoch: int, key: str) -> np.random.Generator:
    """Return the random numbers of one sample in one epoch, for one purpose.

    They depend on nothing else: not on the process, the worker, or what was drawn before. Two purposes
    have independent numbers, so that switching pasting on does not change the crops.
    """
    digest = hashlib.blake2b(f"{purpose}\0{seed}\0{epoch}\0{key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
