"""What evidence says of every pixel: all scores and the predicted classes, in one pass of strips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from eval.log_odds import FORMS, spread_of
from eval.scores import SCORES
from shards.schema import VOID_ID

_STRIP_ROWS = 32
"""Scores are computed in strips: their intermediate results then stay in the processor's cache."""


class PixelAnswers(NamedTuple):
    """What evidence says of every pixel."""

    scores: dict[str, Float32[np.ndarray, "H W"]]
    """Each in the form in which it is compared; see `eval.log_odds`."""
    prediction: UInt8[np.ndarray, "H W"]
    """Train ids."""


@torch.no_grad()
def answer_pixels(evidence: Float[Tensor, "N H W"], names: Sequence[str]) -> PixelAnswers:
    """Compute all scores and the predicted classes in one pass over the evidence.

    Args:
        evidence: of C classes; behind it the maps of those `names` that evidence does not suffice for, in
            their order. C is 0 where a model says scores only; then no class is predicted (`VOID_ID`).
        names: names of `eval.scores.SCORES` and `QUERY_SCORES`, or a user's own.
    """
    height, width = evidence.shape[1:]
    read_from_maps = [name for name in names if name not in SCORES]
    num_classes = len(evidence) - len(read_from_maps)
    maps = dict(zip(read_from_maps, evidence[num_classes:], strict=True))
    evidence = evidence[:num_classes]
    scores = {name: torch.empty(height, width, device=evidence.device) for name in names if name in SCORES}
    prediction = torch.full((height, width), VOID_ID, dtype=torch.uint8, device=evidence.device)
    for top in range(0, height if num_classes else 0, _STRIP_ROWS):
        rows = slice(top, top + _STRIP_ROWS)
        strip = evidence[None, :, rows]
        prediction[rows] = strip[0].max(dim=0).indices  # four times as fast as argmax over the first axis
        for name, found in compared_scores(strip, list(scores)).items():
            scores[name][rows] = found[0]
    chosen = {name: (scores | maps)[name].cpu().numpy() for name in names}
    return PixelAnswers(chosen, prediction.cpu().numpy())


def compare_at(
    evidence: Float[Tensor, "C H W"], names: Sequence[str], temperature: float
) -> dict[str, Float32[np.ndarray, "H W"]]:
    """Compute scores of evidence / T, of those in `eval.scores.SCORES`, in strips."""
    scores = {name: torch.empty(evidence.shape[1:]) for name in names}
    for top in range(0, evidence.shape[1], _STRIP_ROWS):
        rows = slice(top, top + _STRIP_ROWS)
        strip = evidence[None, :, rows]
        strip = strip if temperature == 1 else strip / temperature
        for name, found in compared_scores(strip, names).items():
            scores[name][rows] = found[0]
    return {name: score.numpy() for name, score in scores.items()}


def compared_scores(
    evidence: Float[Tensor, "B C H W"], names: Sequence[str]
) -> dict[str, Float[Tensor, "B H W"]]:
    """Compute scores of `eval.scores.SCORES` in the form in which they are compared."""
    spread = spread_of(evidence) if any(name in FORMS for name in names) else None
    return {
        name: FORMS[name](spread) if spread is not None and name in FORMS else SCORES[name](evidence)
        for name in names
    }
