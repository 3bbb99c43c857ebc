"""The benchmarks that packages are written for, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.submissions import bravo, fishyscapes, smiyc
from eval.submissions.picture import Picture, PictureAnswer, Stored
from shards.errors import InputError


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark finds its images and wants its files."""

    name: str
    find_pictures: Callable[[Path, Sequence[str]], tuple[Picture, ...]]
    """Root and wanted parts to images; parts that are not wanted may be among them."""
    name_files: Callable[[str, str], tuple[str, ...]]
    """Key and method to the names of an image's files."""
    read_name: Callable[[str], tuple[str, str] | None]
    """The way back, from one of them."""
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


BENCHMARKS: dict[str, Benchmark] = {
    module.NAME: Benchmark(
        module.NAME,
        module.find_pictures,
        module.name_files,
        module.read_name,
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
) -> tuple[Picture, ...]:
    """List the images of a benchmark below `root`.

    Args:
        parts: of which parts; none named: all that are there.

    Raises:
        InputError: there is none, a part is not there, or several are that do not go into one package.
    """
    if not root.is_dir():
        raise InputError(f"{setting} {root}: no such folder")
    pictures = benchmark.find_pictures(root, parts)
    present = tuple(dict.fromkeys(picture.part for picture in pictures))
    if not pictures and not parts:
        raise InputError(
            f"{setting} {root}: no image of {benchmark.name} in it; expected {benchmark.expects}"
        )
    for part in parts:
        if part not in present:
            there = dict.fromkeys(picture.part for picture in benchmark.find_pictures(root, ()))
            raise InputError(f"--parts: got {part!r}; below {root} are {', '.join(there) or 'none'}")
    chosen = parts or present
    if len(chosen) > 1 and not benchmark.together:
        raise InputError(
            f"--parts: {', '.join(chosen)} number their images alike; name one of them for a package of "
            f"{benchmark.name}"
        )
    return tuple(picture for picture in pictures if picture.part in chosen)
