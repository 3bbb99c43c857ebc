"""Benchmarks that packages are written for, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.submissions import bravo, fishyscapes, smiyc
from eval.submissions.picture import BenchmarkImage, PictureAnswer, Stored
from shards.errors import InputError


@dataclass(frozen=True)
class Benchmark:
    """Images and files of one benchmark; images are called by their key."""

    name: str
    find_pictures: Callable[[Path, Sequence[str]], tuple[BenchmarkImage, ...]]
    """Root and wanted parts to images; parts that are not wanted may be among them."""
    files: tuple[str, ...]
    """Names of an image's files in a package, with {key} and {method}."""
    file_pattern: re.Pattern[str]
    """The way back: groups key and, where names have it, method."""
    encode: Callable[[str, PictureAnswer], tuple[bytes, ...]]
    """Score's name and answers to the contents of the files."""
    decode: Callable[[Sequence[bytes], Sequence[str]], Stored]
    """Contents and names, for messages, to what they say."""
    known_counts: Mapping[str, int]
    """Images of each part, where its authors say so."""
    expects: str
    """What must lie below the root, for messages."""
    together: bool
    """Whether its parts go into one package."""
    needs_classes: bool
    """Whether it wants predicted classes too."""

    def name_files(self, key: str, method: str) -> tuple[str, ...]:
        """Return the names of an image's files in a package."""
        return tuple(file.format(key=key, method=method) for file in self.files)

    def read_name(self, name: str) -> tuple[str, str] | None:
        """Return key and method ("" where names do not say) that a file is of; None: it is none of these."""
        match = self.file_pattern.fullmatch(name)
        return (match["key"], match.groupdict().get("method", "")) if match else None


BENCHMARKS: dict[str, Benchmark] = {
    module.NAME: Benchmark(
        module.NAME,
        module.find_pictures,
        module.FILES,
        module.FILE_PATTERN,
        module.encode,
        module.decode,
        module.KNOWN_COUNTS,
        expects,
        together,
        needs_classes,
    )
    for module, expects, together, needs_classes in (
        (smiyc, "dataset_AnomalyTrack, dataset_ObstacleTrack or LostAndFound", True, False),
        (fishyscapes, "NNNN_*.png, fishyscapes_lostandfound or fs_val_v3", False, True),
        (bravo, ", ".join(f"bravo_{subset}" for subset in bravo.SUBSETS), True, True),
    )
}


def choose_pictures(
    benchmark: Benchmark, root: Path, parts: Sequence[str] = (), setting: str = "--datasets"
) -> tuple[BenchmarkImage, ...]:
    """List the images of a benchmark below `root`, at least one.

    Args:
        parts: of which parts, which must be there and go into one package; none named: all that are there.
    """
    if not root.is_dir():
        raise InputError(f"{setting} {root}: no such folder")
    pictures = benchmark.find_pictures(root, parts)
    present = tuple(dict.fromkeys(picture.part for picture in pictures))
    if not pictures and not parts:
        lacking = f"no image of {benchmark.name} in it; expected {benchmark.expects}"
        raise InputError(f"{setting} {root}: {lacking}")
    for part in parts:
        if part not in present:
            there = dict.fromkeys(picture.part for picture in benchmark.find_pictures(root, ()))
            raise InputError(f"--parts: got {part!r}; below {root} are {', '.join(there) or 'none'}")
    chosen = parts or present
    if len(chosen) > 1 and not benchmark.together:
        expected = f"name one of them for a package of {benchmark.name}"
        raise InputError(f"--parts: {', '.join(chosen)} number their images alike; {expected}")
    return tuple(picture for picture in pictures if picture.part in chosen)
