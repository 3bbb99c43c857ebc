"""The guard of benchmarks: nothing is chosen on them, no checkpoint, no temperature, no end of a run."""

from __future__ import annotations

from pathlib import Path

from eval.sets.registry import EXTRA_SETS, TEST_SETS, official_places
from shards.errors import InputError

_UNREAD_BENCHMARKS = (
    "LostAndFound",
    "RoadObstacle21",
    "SegmentMeIfYouCan",
    "Fishyscapes",
    "bravo",
    "ACDC",
    "StreetHazards",
)
"""Folders of benchmarks that we do not read, or read under another name."""


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def find_benchmark(path: Path) -> str | None:
    """Return the benchmark whose name `path`, the folder above it, or something directly in it bears.

    Names are compared without case and punctuation, as beginnings: `lost_and_found-000000.tar` is one of Lost
    and Found, `RoadAnomaly` is not found in `no-RoadAnomaly`.
    """
    names = [path.name, path.parent.name]
    if path.is_dir():
        names += sorted(entry.name for entry in path.iterdir())
    benchmarks = (*TEST_SETS, *EXTRA_SETS, *official_places(), *_UNREAD_BENCHMARKS)
    for name in map(_plain, names):
        for benchmark in benchmarks:
            if name.startswith(_plain(benchmark)):
                return benchmark
    return None


def require_no_benchmark(place: str, setting: str) -> None:
    """Check that a validation set is none of the benchmarks, as far as names tell.

    Args:
        place: path, pattern or URL.
        setting: for the message.

    Raises:
        InputError: it is one.
    """
    benchmark = find_benchmark(Path(place))
    if benchmark:
        raise InputError(
            f"{setting} {place}: {benchmark} is a benchmark, on which nothing may be chosen; validation "
            f"takes Cityscapes val, or what jobs.paste_validation wrote"
        )
