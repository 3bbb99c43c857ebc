"""A base objective and any number of outlier terms as one loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from models.eomt import Prediction
from shards.batch import Batch
from trainer.losses.mask import MaskLoss
from trainer.losses.outlier import OutlierTerm
from trainer.losses.targets import StepTotals


class Mixture:
    """The terms of a base objective, and one more per outlier term, under its name.

    Args:
        base: which brings its own classification loss.
        outlier: name -> term; may be empty.
    """

    def __init__(self, base: MaskLoss, outlier: Mapping[str, OutlierTerm]) -> None:
        self.base = base
        self.outlier = dict(outlier)
        self.terms: tuple[str, ...] = (*base.terms, *self.outlier)

    def __call__(
        self, prediction: Prediction, batch: Batch, totals: StepTotals, generators: Sequence[torch.Generator]
    ) -> dict[str, Float[Tensor, ""]]:
        """Return this batch's share of the step's terms; the base draws from `generators` first."""
        terms = self.base(prediction, batch, totals, generators)
        for name, term in self.outlier.items():
            terms[name] = term(prediction, batch, totals, generators)
        return terms

    def floors(self, prediction: Prediction) -> dict[str, float]:
        """Return the values that terms cannot get below, as far as they are known and not 0."""
        return self.base.floors(prediction)
