"""Losses by name: the mask objective, its classification loss, and outlier terms.

A loss turns a prediction and a batch into unweighted scalar terms; weights are configuration. To add an
outlier term: a subclass of `OutlierTerm`, whose fields are its options, and its place in `OUTLIER_TERMS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
import tyro
from torch import Tensor

from models.eomt import Prediction
from shards.batch import Batch
from shards.errors import InputError
from trainer.losses.classification import CLASS_TERMS
from trainer.losses.mask import MaskLoss, MaskOptions
from trainer.losses.outlier import OUTLIER_TERMS
from trainer.losses.targets import StepTotals

BASES = ("mask",)
OUTLIER_CLASS_TERM = "uno"
"""The outlier term without a scalar of its own: outliers are segments of one more class in the base's."""
BASE_WEIGHTS = {"mask": 5.0, "dice": 5.0, "class": 2.0}
"""Terms of the base objective, weighted as in EoMT; outlier terms know their own."""


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


def _make_options() -> Any:
    """Make a dataclass of the options of every part of a loss that has any, under the part's name."""
    parts: dict[str, Any] = {"mask": MaskOptions, **CLASS_TERMS, **OUTLIER_TERMS}
    fields = []
    for name, part in parts.items():
        if dataclasses.fields(part):
            shown = tyro.conf.arg(help=(part.__doc__ or "").partition("\n")[0])
            fields.append((name, Annotated[part, shown], field(default_factory=part)))
    return dataclasses.make_dataclass("LossOptions", fields, frozen=True, kw_only=True)


LossOptions = _make_options()
OUTLIER_HELP = f"""Outlier terms, any number of: {", ".join(OUTLIER_TERMS)}; and {OUTLIER_CLASS_TERM},
which makes outliers a class of the base objective (with model.outlier_class trained) and has no weight. All
need outliers: pasted ones (paste.probability above 0), or labels that hold 254."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised: a base objective, its classification loss, and outlier terms."""

    name: str = "mask"
    """Base objective. mask: Hungarian matching, mask BCE, dice, and a classification loss."""
    classification: str = "cross_entropy"
    """cross_entropy, logit_norm, or isomax_plus (which needs model.class_head isomax)."""
    outlier: Annotated[tuple[str, ...], tyro.conf.arg(help=OUTLIER_HELP)] = ()
    area_exponent: float = 0.0
    """An outlier pixel weighs the area of its object, in pixels, to the power of minus this, 0 to 1. 0: the
    published mean over pixels, in which large objects have the say; 1: every object counts alike."""
    options: LossOptions = field(default_factory=LossOptions)  # type: ignore[valid-type]
    """Options of the parts above; only of those that are used."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each term: those of the base (mask, dice, class) and the outlier terms, by name, no more and
    no less. Empty: the default ones. On the command line `--loss.weights mask 5 dice 5 class 2` gives all
    anew, and `--loss.weights.dice 7` changes one of a file."""

    def __post_init__(self) -> None:
        for setting, known, names in (
            ("name", BASES, (self.name,)),
            ("classification", CLASS_TERMS, (self.classification,)),
            ("outlier", (*OUTLIER_TERMS, OUTLIER_CLASS_TERM), self.outlier),
        ):
            for name in names:
                if name not in known:
                    raise InputError(f"loss.{setting}: unknown {name!r}; known: {', '.join(known)}")
        if not 0 <= self.area_exponent <= 1:
            raise InputError(f"loss.area_exponent must be in [0, 1], got {self.area_exponent}")
        if self.area_exponent and not set(self.outlier) - {OUTLIER_CLASS_TERM}:
            raise InputError("loss.area_exponent: no outlier term with a scalar reads it; leave it at 0")
        if len(set(self.outlier)) < len(self.outlier):
            raise InputError(f"loss.outlier: got {', '.join(self.outlier)}; each term at most once")
        active = (self.name, self.classification, *self.outlier)
        for part in dataclasses.fields(self.options):
            value = getattr(self.options, part.name)
            if part.name not in active and value != type(value)():
                consists = f"this loss consists of {', '.join(active)}"
                raise InputError(f"loss.options.{part.name}: nothing here reads it; {consists}")
        self._check_weights()

    def _check_weights(self) -> None:
        terms = self.default_weights()
        allowed = f"exactly one weight for each of {', '.join(terms)} is needed (or none, for the defaults)"
        for term in terms if self.weights else ():
            if term not in self.weights:
                raise InputError(f"loss.weights: {term} is missing; {allowed}")
        for term, weight in self.weights.items():
            if term not in terms:
                raise InputError(f"loss.weights: {term} is no term of this loss; {allowed}")
            if weight < 0:
                raise InputError(f"loss.weights.{term} must be 0 or more, got {weight}")

    def default_weights(self) -> dict[str, float]:
        """Return the default weight of each term of this loss, which belongs to its options."""
        scalars = [name for name in self.outlier if name != OUTLIER_CLASS_TERM]
        return BASE_WEIGHTS | {name: getattr(self.options, name).weight for name in scalars}

    def completed(self) -> LossConfig:
        """Write out the default weights, if none are given."""
        return dataclasses.replace(self, weights=self.weights or self.default_weights())


def build_loss(config: LossConfig) -> MaskLoss:
    """Build the loss that a configuration names."""
    options: Any = config.options
    class_term = getattr(options, config.classification, None) or CLASS_TERMS[config.classification]()
    outlier_terms = [getattr(options, name) for name in config.outlier if name != OUTLIER_CLASS_TERM]
    has_class = OUTLIER_CLASS_TERM in config.outlier
    return MaskLoss(options.mask, class_term, has_class, outlier_terms, config.area_exponent)


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Add the terms, each times its weight."""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()
