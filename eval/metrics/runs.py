"""Many sorted arrays, in memory or on disk, read as one sorted sequence without ever joining them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class SortedRuns:
    """The scores of one class: a sorted run per image, together a sorted sequence of `size` scores."""

    def __init__(self, runs: Sequence[Float32[np.ndarray, " _N"]]) -> None:
        """Keep references; nothing is copied.

        Args:
            runs: each sorted upwards; arrays or memory maps; may be empty. NaN sorts last.
        """
        self.runs = [run for run in runs if run.size]
        self.size = sum(run.size for run in self.runs)

    def count_nan(self) -> int:
        """Return how many scores are NaN; one look per run, as they are sorted last."""
        return sum(int(np.isnan(run).sum()) for run in self.runs if np.isnan(run[-1]))

    def count_below(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return, for each value, how many scores are smaller."""
        return self._count(values, "left")

    def count_not_above(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return, for each value, how many scores are smaller or equal."""
        return self._count(values, "right")

    def _count(self, values: NDArray[np.float32], side: str) -> NDArray[np.int64]:
        counts = np.zeros(np.shape(values), dtype=np.int64)
        for run in self.runs:
            counts += np.searchsorted(run, values, side=side)  # type: ignore[call-overload]
        return counts

    def nth(self, index: int) -> np.float32:
        """Return the score at position `index` of the whole sequence, counted from 0.

        Bisection over the bit patterns of float32, so that nothing is gathered.
        """
        assert 0 <= index < self.size, (index, self.size)
        if len(self.runs) == 1:
            return np.float32(self.runs[0][index])
        low, high = _pattern(np.float32(-np.inf)), _pattern(np.float32(np.inf))
        while low < high:
            middle = (low + high) // 2
            if self.count_not_above(np.array(_value(middle), dtype=np.float32)) > index:
                high = middle
            else:
                low = middle + 1
        return _value(low)

    def sample(self, stride: int) -> Floats:
        """Return every `stride`-th score of each run, unsorted."""
        return np.concatenate([np.asarray(run[stride - 1 :: stride]) for run in self.runs])


def _pattern(value: np.float32) -> int:
    """Return an integer that is ordered as floats are."""
    bits = int(value.view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF) - 1


def _value(pattern: int) -> np.float32:
    bits = pattern if pattern >= 0 else (-pattern - 1) - 0x80000000
    return np.int32(bits).view(np.float32)


def choose_splitters(sequences: Sequence[SortedRuns], most: int) -> Floats:
    """Choose values that cut the sequences' union into open intervals of at most `most` scores.

    A value that occurs often becomes a splitter itself, and what equals a splitter lies in no interval: ties,
    however many, never make an interval large.

    Sampling every s-th score of each of R runs leaves fewer than s scores of a run between two neighbours of
    its sample, so an interval with m samples inside has at most (m + R) · s scores.
    """
    num_runs = sum(len(sequence.runs) for sequence in sequences)
    if sum(sequence.size for sequence in sequences) <= most or num_runs == 0:
        return np.zeros(0, dtype=np.float32)
    stride = max(1, most // (2 * num_runs))
    samples = np.concatenate([sequence.sample(stride) for sequence in sequences if sequence.runs])
    samples.sort()
    every = max(1, most // (2 * stride))
    return np.unique(samples[every - 1 :: every])


class Interval(NamedTuple):
    """The scores strictly between two splitters."""

    positives: Floats
    negatives: Floats
    positives_below: int
    """Positives of all lower intervals and splitters."""
    negatives_below: int


def cut(positives: SortedRuns, negatives: SortedRuns, splitters: Floats) -> Iterator[Interval]:
    """Yield the open intervals between the splitters, from the lowest, each gathered and sorted."""
    sides = [(sequence, *_bounds(sequence.runs, splitters)) for sequence in (positives, negatives)]
    for i in range(splitters.size + 1):
        parts = [_gather(sequence.runs, starts[i], ends[i]) for sequence, starts, ends in sides]
        below = [int(starts[i].sum()) for _, starts, _ in sides]
        yield Interval(parts[0], parts[1], below[0], below[1])


Positions = NDArray[np.int64]


def _bounds(runs: Sequence[Floats], splitters: Floats) -> tuple[Positions, Positions]:
    """Return where each interval (first axis) starts and ends in each run (second axis)."""
    starts = np.zeros((splitters.size + 1, len(runs)), dtype=np.int64)
    ends = np.zeros_like(starts)
    for i, run in enumerate(runs):
        starts[1:, i] = np.searchsorted(run, splitters, side="right")
        ends[:-1, i] = np.searchsorted(run, splitters, side="left")
        ends[-1, i] = run.size
    return starts, ends


def _gather(runs: Sequence[Floats], starts: Positions, ends: Positions) -> Floats:
    pieces = [runs[i][starts[i] : ends[i]] for i in np.flatnonzero(ends > starts).tolist()]
    if len(pieces) == 1:
        return np.asarray(pieces[0])  # sorted already, and no copy
    if not pieces:
        return np.zeros(0, dtype=np.float32)
    joined = np.concatenate(pieces)
    joined.sort()
    return joined
