"""Losses by name: a loss turns a prediction and a batch into unweighted scalar terms."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from models.eomt import Prediction
from shards.batch import Batch
from shards.errors import InputError
from trainer.losses.mask_terms import MaskLoss
from trainer.losses.outlier_terms import MaskRbaLoss
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


LOSSES: dict[str, Callable[..., Loss]] = {
    "mask": MaskLoss,
    "mask_rba": MaskRbaLoss,
}


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised."""

    name: str = "mask"
    """mask: Hungarian matching, mask BCE, dice, class cross-entropy; mask_rba: the same and the RbA outlier
    hinge, which needs pasted outliers (paste.probability > 0) to have anything to say."""
    options: dict[str, float] = field(default_factory=dict)
    """Options of that loss, such as num_points, no_object_weight, inlier_upper, outlier_lower."""
    weights: dict[str, float] = field(
        default_factory=lambda: {"mask": 5.0, "dice": 5.0, "class": 2.0, "outlier": 1.0}
    )
    """Weight of each term; every term of the loss needs one. `outlier` is unused by loss `mask`."""

    def __post_init__(self) -> None:
        loss = build_loss(self)
        missing = [term for term in loss.terms if term not in self.weights]
        known = {term for build in LOSSES.values() for term in build.terms}  # type: ignore[attr-defined]
        unknown = [term for term in self.weights if term not in known]
        negative = [term for term, weight in self.weights.items() if weight < 0]
        if negative:
            raise InputError(f"loss.weights.{negative[0]} must be 0 or more, got {self.weights[negative[0]]}")
        if missing:
            raise InputError(f"loss.weights: {self.name!r} needs a weight for {', '.join(missing)}")
        if unknown:
            raise InputError(
                f"loss.weights: unknown term {unknown[0]!r}; known terms: {', '.join(sorted(known))}"
            )


def build_loss(config: LossConfig) -> Loss:
    """Build the loss that a configuration names.

    Raises:
        InputError: unknown loss or unknown option; the text lists the known ones.
    """
    if config.name not in LOSSES:
        raise InputError(f"loss.name: unknown loss {config.name!r}; known losses: {', '.join(LOSSES)}")
    known = known_options(config.name)
    unknown = [option for option in config.options if option not in known]
    if unknown:
        raise InputError(
            f"loss.options: {config.name!r} has no option {unknown[0]!r}; it takes {', '.join(known)}"
        )
    return LOSSES[config.name](**config.options)


def known_options(name: str) -> list[str]:
    """List the options of a loss."""
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    own = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    passes_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return [*own, *(known_options("mask") if passes_on else [])]


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Add the terms, each times its weight."""
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()
