"""What evidence says of every pixel: all scores and the predicted classes, in one pass of strips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from eval.log_odds import FORMS, Spread, spread_of
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
        if any(name in FORMS for name in names):
            spread = spread_of(strip)
            prediction[rows] = spread.winner[0]
        else:
            spread = None
            prediction[rows] = strip[0].max(dim=0).indices  # four times as fast as argmax over the first axis
        for name, score in scores.items():
            score[rows] = _compared(name, strip, spread)[0]
    found = {name: (scores | maps)[name].cpu().numpy() for name in names}
    return PixelAnswers(found, prediction.cpu().numpy())


def compare_by(name: str, evidence: Float[Tensor, "C H W"]) -> Float[Tensor, "H W"]:
    """Compute one score of `eval.scores.SCORES` in the form in which it is compared, in strips."""
    scores = torch.empty(evidence.shape[1:], device=evidence.device)
    for top in range(0, evidence.shape[1], _STRIP_ROWS):
        strip = evidence[None, :, top : top + _STRIP_ROWS]
        spread = spread_of(strip) if name in FORMS else None
        scores[top : top + _STRIP_ROWS] = _compared(name, strip, spread)[0]
    return scores


def _compared(name: str, strip: Tensor, spread: Spread | None) -> Tensor:
    if name not in FORMS:
        return SCORES[name](strip)
    assert spread is not None
    return FORMS[name](spread)
