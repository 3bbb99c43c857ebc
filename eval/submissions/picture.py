"""Images to be predicted for a benchmark, and their predictions in memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped, UInt8
from torch import Tensor

from eval.predict.strips import find_classes, plain_scores, score_strips, split_maps
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


class PictureAnswer(NamedTuple):
    """What a model says of an image."""

    score: Float32[np.ndarray, "H W"]
    """As `eval.predict.scores` defines it, or a user's own; higher = more anomalous."""
    classes: UInt8[np.ndarray, "_H _W"]
    """Predicted train ids; `VOID_ID` where the model says scores only."""


@torch.no_grad()
def predict_from_class_scores(maps: Float[Tensor, "N H W"], score: str) -> PictureAnswer:
    """Compute one score and the predicted classes of what a `Predictor` built for `score` alone returns."""
    class_scores, given = split_maps(maps, [score])
    values = (score_strips(class_scores, [score], plain_scores) | given)[score]
    return PictureAnswer(values.cpu().numpy(), find_classes(class_scores).cpu().numpy())


class Stored(NamedTuple):
    """What a package holds of an image, decoded."""

    anomaly: Shaped[np.ndarray, "H W"]
    """Higher where more anomalous, as exact as it is stored."""
    classes: UInt8[np.ndarray, "_h _w"] | None
    """Predicted train ids, where the benchmark asks for them."""


def require_method(method: str, setting: str) -> None:
    """Check that a method's name can be the name of a folder anywhere."""
    if not re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*", method):
        allowed = "a method's name has letters, digits, _ - + and dots only"
        raise InputError(f"{setting}: got {method!r}; {allowed}")
