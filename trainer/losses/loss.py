"""Losses by name: the mask objective, its classification loss, and outlier terms.

A loss turns a prediction and a batch into unweighted scalar terms; weights are configuration. To add an
outlier term: its options in `options.py`, and a subclass of them and of `OutlierTerm` in `outlier.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from models.eomt import Prediction
from shards.batch import Batch
from trainer.losses.classification import CLASS_TERMS
from trainer.losses.mask import MaskLoss, OutlierLoss
from trainer.losses.options import OUTLIER_CLASS_TERM, LossConfig
from trainer.losses.outlier import OUTLIER_TERMS, LikelihoodRatio
from trainer.losses.targets import StepTotals


@runtime_checkable
class Loss(Protocol):
    """Compares a prediction with a batch; returns the batch's share of the step's unweighted terms.

    Shares of all micro-batches and ranks of a step add up to the step's value (see `StepTotals`).
    """

    area_exponent: float
    """As of `trainer.losses.targets.count_totals`, which the step's totals are counted with."""

    def __call__(
        self, prediction: Prediction, batch: Batch, totals: StepTotals, generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        """Return one scalar per term."""

    def lower_bounds(self, prediction: Prediction) -> dict[str, float]:
        """Return the known lower bounds of terms that are not 0; logged as `lower_bound/NAME`."""


def build_loss(config: LossConfig) -> OutlierLoss:
    """Build the loss that a configuration names."""
    if config.trains_head:
        return OutlierLoss([LikelihoodRatio()], config.area_exponent)
    options: Any = config.options
    given = getattr(options, config.classification, None)
    class_term = CLASS_TERMS[config.classification](**vars(given) if given else {})
    scalars = (name for name in config.outlier if name != OUTLIER_CLASS_TERM)
    outlier_terms = [OUTLIER_TERMS[name](**vars(getattr(options, name))) for name in scalars]
    has_class = OUTLIER_CLASS_TERM in config.outlier
    return MaskLoss(options.mask, class_term, has_class, outlier_terms, config.area_exponent)


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Add the terms, each times its weight."""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()
