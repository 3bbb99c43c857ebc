"""A loss that diverges on one scene."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from models.eomt import Prediction
from shards.batch import Batch
from trainer.losses import Loss
from trainer.losses.targets import StepTotals


class PoisonedLoss:
    """A loss whose dice term is NaN wherever a batch holds a certain scene."""

    def __init__(self, loss: Loss, key: str) -> None:
        self._loss, self._key = loss, key

    def __getattr__(self, name: str) -> object:
        return getattr(self._loss, name)

    def __call__(
        self, output: Prediction, batch: Batch, totals: StepTotals, generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        terms = dict(self._loss(output, batch, totals, generators))
        if self._key in batch.keys:
            terms["dice"] = terms["dice"] * math.nan
        return terms
