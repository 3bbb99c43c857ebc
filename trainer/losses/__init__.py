"""The registry of losses: base objective × classification loss × outlier terms, by name.

A loss turns a prediction and a batch into unweighted scalar terms; weights are configuration. To add an
outlier term: a subclass of `OutlierTerm` and a dataclass of its options in a file of their own, and one line
each in `LossOptions`, `OUTLIER_TERMS` and `DEFAULT_WEIGHTS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from models.eomt import Prediction
from shards.batch import Batch
from shards.errors import InputError
from trainer.losses.classification import ClassTerm, CrossEntropy, IsoMaxPlus, LogitNorm, LogitNormOptions
from trainer.losses.mask import MaskLoss, MaskOptions
from trainer.losses.mixture import Mixture
from trainer.losses.outlier import (
    EnergyOptions,
    EnergyTerm,
    Mask2AnomalyOptions,
    Mask2AnomalyTerm,
    OutlierTerm,
    RbaOptions,
    RbaTerm,
    SoleClaimOptions,
    SoleClaimTerm,
)
from trainer.losses.targets import StepTotals


@runtime_checkable
class Loss(Protocol):
    """Compares a prediction with a batch; returns the batch's share of the step's unweighted terms.

    Shares of all micro-batches and ranks of a step add up to the step's value (see `StepTotals`).
    """

    terms: tuple[str, ...]

    def __call__(
        self, prediction: Prediction, batch: Batch, totals: StepTotals, generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        """Return one scalar per name in `terms`."""
        ...

    def floors(self, prediction: Prediction) -> dict[str, float]:
        """Return the values that terms cannot get below, by name; logged beside them as `floor/NAME`."""
        ...


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Options of each part of a loss, under the part's name."""

    mask: MaskOptions = field(default_factory=MaskOptions)
    logit_norm: LogitNormOptions = field(default_factory=LogitNormOptions)
    rba: RbaOptions = field(default_factory=RbaOptions)
    energy: EnergyOptions = field(default_factory=EnergyOptions)
    mask2anomaly: Mask2AnomalyOptions = field(default_factory=Mask2AnomalyOptions)
    sole_claim: SoleClaimOptions = field(default_factory=SoleClaimOptions)


BASES: dict[str, Callable[[LossOptions, ClassTerm, bool], MaskLoss]] = {
    "mask": lambda options, class_term, outlier_class: MaskLoss(options.mask, class_term, outlier_class),
}
CLASS_TERMS: dict[str, Callable[[LossOptions], ClassTerm]] = {
    "cross_entropy": lambda options: CrossEntropy(),
    "logit_norm": lambda options: LogitNorm(options.logit_norm),
    "isomax_plus": lambda options: IsoMaxPlus(),
}
OUTLIER_TERMS: dict[str, Callable[[LossOptions], OutlierTerm]] = {
    "rba": lambda options: RbaTerm(options.rba),
    "energy": lambda options: EnergyTerm(options.energy),
    "mask2anomaly": lambda options: Mask2AnomalyTerm(options.mask2anomaly),
    "sole_claim": lambda options: SoleClaimTerm(options.sole_claim),
}
OUTLIER_CLASS_TERM = "uno"
"""The outlier term without a scalar of its own: outliers are segments of one more class in the base's."""
DEFAULT_WEIGHTS: dict[str, float] = {
    **{"mask": 5.0, "dice": 5.0, "class": 2.0},
    **{"rba": 1.0, "energy": 0.1, "mask2anomaly": 1.0, "sole_claim": 1.0},
}
"""As published: EoMT's, and those of each outlier term's source."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised: a base objective, its classification loss, and outlier terms."""

    name: str = "mask"
    """Base objective. mask: Hungarian matching, mask BCE, dice, and a classification loss."""
    classification: str = "cross_entropy"
    """cross_entropy, logit_norm, or isomax_plus (which needs model.class_head isomax)."""
    outlier: tuple[str, ...] = ()
    """Outlier terms, any number of: rba, energy, mask2anomaly, sole_claim; and uno, which makes outliers a
    class of the base objective (with model.outlier_class trained) and has no weight. All need pasted
    outliers (paste.probability above 0)."""
    options: LossOptions = field(default_factory=LossOptions)
    """Options of the parts above; only of those that are used."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each term: those of the base (mask, dice, class) and the outlier terms, by name, no more and
    no less. Empty: the published ones. On the command line `--loss.weights mask 5 dice 5 class 2` gives all
    anew, and `--loss.weights.dice 7` changes one of a file."""

    def __post_init__(self) -> None:
        for setting, known, given in (
            ("name", BASES, (self.name,)),
            ("classification", CLASS_TERMS, (self.classification,)),
            ("outlier", (*OUTLIER_TERMS, OUTLIER_CLASS_TERM), self.outlier),
        ):
            for name in given:
                if name not in known:
                    raise InputError(f"loss.{setting}: unknown {name!r}; known: {', '.join(known)}")
        if len(set(self.outlier)) < len(self.outlier):
            raise InputError(f"loss.outlier: got {', '.join(self.outlier)}; each term at most once")
        self._check_options()
        self._check_weights()

    def _check_options(self) -> None:
        active = (self.name, self.classification, *self.outlier)
        for part in dataclasses.fields(self.options):
            value = getattr(self.options, part.name)
            if part.name not in active and value != type(value)():
                raise InputError(
                    f"loss.options.{part.name}: nothing here reads it; this loss consists of "
                    f"{', '.join(active)}"
                )

    def _check_weights(self) -> None:
        terms = build_loss(self).terms
        allowed = f"exactly one weight for each of {', '.join(terms)} is needed (or none, for the defaults)"
        if self.weights:
            missing = [term for term in terms if term not in self.weights]
            unused = [term for term in self.weights if term not in terms]
            if missing:
                raise InputError(f"loss.weights: {missing[0]} is missing; {allowed}")
            if unused:
                raise InputError(f"loss.weights: {unused[0]} is no term of this loss; {allowed}")
        for term, weight in self.weights.items():
            if weight < 0:
                raise InputError(f"loss.weights.{term} must be 0 or more, got {weight}")

    def completed(self) -> LossConfig:
        """Write out the default weights, if none are given."""
        weights = self.weights or {term: DEFAULT_WEIGHTS[term] for term in build_loss(self).terms}
        return dataclasses.replace(self, weights=weights)


def build_loss(config: LossConfig) -> Mixture:
    """Build the loss that a configuration names."""
    class_term = CLASS_TERMS[config.classification](config.options)
    base = BASES[config.name](config.options, class_term, OUTLIER_CLASS_TERM in config.outlier)
    scalars = [name for name in config.outlier if name != OUTLIER_CLASS_TERM]
    return Mixture(base, {name: OUTLIER_TERMS[name](config.options) for name in scalars})


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Add the terms, each times its weight."""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()
