"""Fingerprints of frames, by which a benchmark is known under other names, in other formats and sizes.

The image's is a difference hash: a thumbnail of 8 x 17 grey values, each compared with its right neighbour
(Krawetz, Kind of Like That, 2013). The mask's are the cells of a grid of 8 x 16 that hold an anomalous pixel.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from eval.sets.registry import TEST_SETS, Convention, TestSet, read_image, read_target
from shards.schema import ANOMALY

_ROWS, _COLUMNS = 8, 16
_KNOWN = Path(__file__).with_name("known_frames.txt")
MOST_BITS = 20
"""Bits, of 128, in which a copy may differ. Of the 130 known frames, JPEG of quality 50, halves, 512 x 256
and a fifth more brightness change 13 at most; the nearest of 3474 frames of Cityscapes differs in 32 from
those of sets whose images are their own."""
MOST_CELLS = 0.3
"""Cells in which the mask of a copy may differ, of all that either has. Other sizes change 0.17 at most where
masks matter (FS Static); no two of its masks are nearer than 0.43."""


class Fingerprint(NamedTuple):
    """Of one frame; bits of two integers."""

    image: int
    """0 where the image is blank, which tells nothing."""
    mask: int


class Original(NamedTuple):
    """One frame of a benchmark."""

    name: str
    """Set and image, for messages."""
    fingerprint: Fingerprint
    by_image: bool
    """Whether its image alone gives it away; else its mask has to be the same, too."""


def take_fingerprint(image: UInt8[np.ndarray, "H W 3"], target: UInt8[np.ndarray, "H W"]) -> Fingerprint:
    """Return the fingerprint of an image (R, G, B) and its target (0 normal, 1 anomaly, 255 void)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    thumbnail = cv2.resize(grey, (_COLUMNS + 1, _ROWS), interpolation=cv2.INTER_AREA)
    anomalous = (target == ANOMALY).astype(np.float32)
    cells = cv2.resize(anomalous, (_COLUMNS, _ROWS), interpolation=cv2.INTER_AREA)
    return Fingerprint(_pack(thumbnail[:, 1:] > thumbnail[:, :-1]), _pack(cells > 0))


def _pack(bits: Bool[np.ndarray, "8 16"]) -> int:
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def list_originals(test_set: TestSet) -> list[Original]:
    """Read all frames of a benchmark."""
    convention = test_set.convention
    pairs = ((frame.stem, read_image(frame), read_target(frame, convention)) for frame in test_set.frames)
    return [_original(convention, stem, take_fingerprint(*pair)) for stem, *pair in pairs]


@functools.cache
def known_originals() -> tuple[Original, ...]:
    """Return the frames of benchmarks that are known without having their files."""
    found = []
    for line in _KNOWN.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            folder, stem, image, mask = line.split()
            found.append(_original(TEST_SETS[folder], stem, Fingerprint(int(image, 16), int(mask, 16))))
    return tuple(found)


def _original(convention: Convention, stem: str, fingerprint: Fingerprint) -> Original:
    return Original(f"{convention.name}, image {stem}", fingerprint, convention.own_images)


def find_original(
    image: UInt8[np.ndarray, "H W 3"], target: UInt8[np.ndarray, "H W"], originals: Iterable[Original]
) -> str:
    """Return the name of the frame that this one is a copy of, mirrored or not; empty: of none."""
    candidates = [
        take_fingerprint(image, target),
        take_fingerprint(np.ascontiguousarray(image[:, ::-1]), target[:, ::-1]),
    ]
    for original in originals:
        if any(_is_copy(candidate, original) for candidate in candidates):
            return original.name
    return ""


def _is_copy(frame: Fingerprint, original: Original) -> bool:
    of_image, of_mask = original.fingerprint
    if not frame.image or not of_image or (frame.image ^ of_image).bit_count() > MOST_BITS:
        return False
    if original.by_image:
        return True
    differing, cells = (frame.mask ^ of_mask).bit_count(), (frame.mask | of_mask).bit_count()
    return cells > 0 and differing <= MOST_CELLS * cells
