"""An image to be predicted for a benchmark, and what is stored of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8

from eval.datasets import Convention
from eval.frames import Frame
from shards.errors import InputError


@dataclass(frozen=True)
class Picture:
    """One image; whether its labels are published does not matter."""

    part: str
    """Of the benchmark: what may be chosen with `--parts`."""
    key: str
    """Names the image within the benchmark; the names of its files in a package follow from it."""
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


def require_method(method: str, setting: str) -> None:
    """Check that a method's name can be the name of a folder anywhere.

    Raises:
        InputError: it has other characters than letters, digits, `_`, `-`, `+` and dots inside.
    """
    if not re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*", method):
        raise InputError(
            f"{setting}: got {method!r}; a method's name has letters, digits, _ - + and dots only"
        )
