"""Benchmarks that packages are written for: their images, and the files of each in a package."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8

from eval.predict.strips import PixelPrediction
from eval.sets.frames import Frame
from eval.sets.registry import Convention
from shards.errors import InputError


@dataclass(frozen=True)
class BenchmarkImage:
    """One image; whether its labels are published does not matter."""

    part: str
    """Part of the benchmark, as `--parts` takes it."""
    key: str
    """Name within the benchmark, from which the names of its files in a package follow."""
    image: Path
    overlay: Path | None = None
    truth: tuple[Frame, Convention] | None = None
    """Published labels, which say whether scores are the right way up."""


class Stored(NamedTuple):
    """What a package holds of an image, decoded."""

    anomaly: Shaped[np.ndarray, "H W"]
    """Higher where more anomalous, as exact as it is stored."""
    classes: UInt8[np.ndarray, "_h _w"] | None
    """Predicted train ids, where the benchmark asks for them."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Images and files of one benchmark; images are called by their key."""

    name: str
    expects: str
    """What must lie below the root, for messages."""
    find_pictures: Callable[[Path, Sequence[str]], tuple[BenchmarkImage, ...]]
    """Root and wanted parts to images; parts that are not wanted may be among them."""
    files: tuple[str, ...]
    """Names of an image's files in a package, with {key} and {method}."""
    file_pattern: re.Pattern[str]
    """The way back: groups key and, where names have it, method."""
    encode: Callable[[str, PixelPrediction], tuple[bytes, ...]]
    """Score's name, and it as `eval.predict.scores` defines it with classes, to the contents of the files."""
    decode: Callable[[Sequence[bytes], Sequence[str]], Stored]
    """Contents and names, for messages, to what they say; an InputError of what the benchmark cannot read."""
    known_counts: Mapping[str, int] = field(default_factory=dict)
    """Images of each part, where its authors say so."""
    together: bool = True
    """Whether its parts go into one package."""
    needs_classes: bool = True
    """Whether it wants predicted classes too."""

    def name_files(self, key: str, method: str) -> tuple[str, ...]:
        """Return the names of an image's files in a package."""
        return tuple(file.format(key=key, method=method) for file in self.files)

    def read_name(self, name: str) -> tuple[str, str] | None:
        """Return key and method ("" where names do not say) that a file is of; None: it is none of these."""
        match = self.file_pattern.fullmatch(name)
        return (match["key"], match.groupdict().get("method", "")) if match else None

    def choose_pictures(self, root: Path, parts: Sequence[str] = ()) -> tuple[BenchmarkImage, ...]:
        """List the images below `root`, at least one.

        Args:
            parts: those wanted, which must be there and go into one package; none named: all there are.
        """
        if not root.is_dir():
            raise InputError(f"--datasets {root}: no such folder")
        pictures = self.find_pictures(root, parts)
        present = tuple(dict.fromkeys(picture.part for picture in pictures))
        if not pictures and not parts:
            raise InputError(f"--datasets {root}: no image of {self.name} in it; expected {self.expects}")
        for part in parts:
            if part not in present:
                there = dict.fromkeys(picture.part for picture in self.find_pictures(root, ()))
                raise InputError(f"--parts: got {part!r}; below {root} are {', '.join(there) or 'none'}")
        chosen = parts or present
        if len(chosen) > 1 and not self.together:
            expected = f"name one of them for a package of {self.name}"
            raise InputError(f"--parts: {', '.join(chosen)} number their images alike; {expected}")
        return tuple(picture for picture in pictures if picture.part in chosen)
