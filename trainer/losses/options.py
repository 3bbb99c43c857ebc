"""Options of the parts of a loss, and the section `loss`, without what takes seconds to load."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import tyro

from shards.errors import InputError

HEAD_LOSS = "likelihood_ratio"
BASES = ("mask", HEAD_LOSS)
OUTLIER_CLASS_TERM = "uno"
"""The outlier term without a scalar of its own: outliers are segments of one more class in the base's."""
BASE_WEIGHTS = {"mask": 5.0, "dice": 5.0, "class": 2.0}
"""Terms of the base objective, weighted as in EoMT; outlier terms know their own."""


RBA_PRESETS: dict[str, tuple[float, float]] = {
    "reachable": (-0.7, -0.1),
    "released": (0.0, 5.0),
    "code": (-1.0, -0.1),
}
"""Name -> (inlier_upper, outlier_lower)."""


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """Options of base objective `mask`."""

    num_points: int = 12544
    """Points per mask; EoMT uses 12544 (= 112²) for crops of 1024²."""
    no_object_weight: float = 0.1
    """Weight of "no object" in the classification loss, in (0, 1]."""
    match_mask: float = 5.0
    """Weight of the mask cost in the matching."""
    match_dice: float = 5.0
    """The same for dice."""
    match_class: float = 2.0
    """The same for the class."""

    def __post_init__(self) -> None:
        if self.num_points < 1:
            raise InputError(f"loss.options.mask.num_points must be at least 1, got {self.num_points}")
        if not 0 < self.no_object_weight <= 1:
            given = f"must be in (0, 1], got {self.no_object_weight}"
            raise InputError(f"loss.options.mask.no_object_weight {given}")


@dataclass(frozen=True, kw_only=True)
class LogitNormOptions:
    """Cross-entropy of logits of one length: −log softmax(z / (‖z‖ + 1e-7) / temperature)[y]."""

    temperature: float = 0.3
    """Divisor of normalised logits: the lower, the sharper. 1.0 is the authors' code, 0.04 that of
    OpenOOD; about 0.3 was the best of those that others tried on EoMT queries. It sets the loss's lower
    bound, see docs/losses.md."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise InputError(f"loss.options.logit_norm.temperature must be above 0, got {self.temperature}")


@dataclass(frozen=True, kw_only=True)
class OutlierOptions:
    """Options of every outlier term."""

    name: ClassVar[str]
    """Name in `loss.outlier`, `loss.options` and `loss.weights`."""
    layers: int = 0
    """Number of supervised depths, from the last, that the term sums over; 0: all."""

    @property
    def weight(self) -> float:
        """Weight where none is given: the published one, where its options are."""
        return 1.0

    def __post_init__(self) -> None:
        if self.layers < 0:
            raise InputError(f"loss.options.{self.name}.layers must be 0 (all) or more, got {self.layers}")


@dataclass(frozen=True, kw_only=True)
class RbaOptions(OutlierOptions):
    """RbA outlier exposure: pixels of outliers should be rejected by all classes."""

    name: ClassVar[str] = "rba"

    preset: Literal["reachable", "released", "code"] = "reachable"
    """Thresholds by name. reachable: -0.7, -0.1, ours; released: 0.0, 5.0, of RbA's released checkpoints;
    code: -1.0, -0.1, the defaults of its code. What each can do: docs/losses.md."""
    inlier_upper: float | None = None
    """Inliers should score below this; None: as the preset."""
    outlier_lower: float | None = None
    """Outliers should score above this; None: as the preset."""

    @property
    def weight(self) -> float:
        """5 with thresholds of ours, whose pull is weaker; 1, as published, with those of RbA."""
        return 5.0 if self.preset == "reachable" else 1.0

    @property
    def thresholds(self) -> tuple[float, float]:
        upper, lower = RBA_PRESETS[self.preset]
        upper = upper if self.inlier_upper is None else self.inlier_upper
        return upper, lower if self.outlier_lower is None else self.outlier_lower


@dataclass(frozen=True, kw_only=True)
class EnergyOptions(OutlierOptions):
    """A squared hinge on the free energy of the log-class scores, as PEBAL's energy loss."""

    name: ClassVar[str] = "energy"

    inlier_upper: float = 0.15
    """Inliers should have less energy: here, classes should claim exp(-0.15) = 0.86 of a pixel together."""
    outlier_lower: float = 2.3
    """Outliers should have more: no more than exp(-2.3) = 0.1 of a pixel should be claimed."""

    @property
    def weight(self) -> float:
        return 0.1

    @property
    def thresholds(self) -> tuple[float, float]:
        return self.inlier_upper, self.outlier_lower


@dataclass(frozen=True, kw_only=True)
class Mask2AnomalyOptions(OutlierOptions):
    """Mask2Anomaly's contrastive margin on s = 1 − max_c L[c], about [0, 1]: 0 where one class is sure."""

    name: ClassVar[str] = "mask2anomaly"

    margin: float = 0.75
    """Outliers should score above this, in (0, 1]; 0.75 is the paper's, 1.0 the code's."""

    def __post_init__(self) -> None:
        if not 0 < self.margin <= 1:
            raise InputError(f"loss.options.mask2anomaly.margin must be in (0, 1], got {self.margin}")
        super().__post_init__()

    @property
    def thresholds(self) -> tuple[float, float]:
        return 0.0, self.margin


@dataclass(frozen=True, kw_only=True)
class ClassClaimOptions(OutlierOptions):
    """The likelihood that its class and no other claims an inlier, and that no class claims an outlier."""

    name: ClassVar[str] = "class_claim"


OUTLIER_OPTIONS: dict[str, type[OutlierOptions]] = {
    options.name: options for options in (RbaOptions, EnergyOptions, Mask2AnomalyOptions, ClassClaimOptions)
}
CLASS_HEADS: dict[str, Literal["linear", "isomax"]] = {
    "cross_entropy": "linear",
    "logit_norm": "linear",
    "isomax_plus": "isomax",
}
"""Classification loss -> the class head (`model.class_head`) whose logits it is meant for."""


def _make_options() -> Any:
    """Make a dataclass of the options of every part of a loss that has any, under the part's name."""
    parts: dict[str, Any] = {"mask": MaskOptions, "logit_norm": LogitNormOptions, **OUTLIER_OPTIONS}
    fields = []
    for name, part in parts.items():
        shown = tyro.conf.arg(help=(part.__doc__ or "").partition("\n")[0])
        fields.append((name, Annotated[part, shown], field(default_factory=part)))
    return dataclasses.make_dataclass("LossOptions", fields, frozen=True, kw_only=True)


LossOptions = _make_options()
OUTLIER_HELP = f"""Outlier terms, any number of: {", ".join(OUTLIER_OPTIONS)}; and {OUTLIER_CLASS_TERM},
which makes outliers a class of the base objective (with model.outlier_class trained) and has no weight. All
need outliers: pasted ones (paste.probability above 0), or labels that hold 254."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised: a base objective, its classification loss, and outlier terms."""

    name: str = "mask"
    """Base objective. mask: Hungarian matching, mask BCE, dice, and a classification loss; likelihood_ratio:
    alone, of adapt.mode outlier_head."""
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
            ("classification", CLASS_HEADS, (self.classification,)),
            ("outlier", (*OUTLIER_OPTIONS, OUTLIER_CLASS_TERM), self.outlier),
        ):
            for name in names:
                if name not in known:
                    raise InputError(f"loss.{setting}: unknown {name!r}; known: {', '.join(known)}")
        if not 0 <= self.area_exponent <= 1:
            raise InputError(f"loss.area_exponent must be in [0, 1], got {self.area_exponent}")
        if self.area_exponent and not (self.trains_head or set(self.outlier) - {OUTLIER_CLASS_TERM}):
            raise InputError("loss.area_exponent: no outlier term with a scalar reads it; leave it at 0")
        if len(set(self.outlier)) < len(self.outlier):
            raise InputError(f"loss.outlier: got {', '.join(self.outlier)}; each term at most once")
        active = (self.name, self.classification, *self.outlier)
        for part in dataclasses.fields(self.options):
            value = getattr(self.options, part.name)
            if part.name not in active and value != type(value)():
                consists = f"this loss consists of {', '.join(active)}"
                raise InputError(f"loss.options.{part.name}: nothing here reads it; {consists}")
        if self.trains_head and (self.outlier or self.classification != "cross_entropy"):
            given = (
                f"got loss.outlier {', '.join(self.outlier) or 'none'}, classification {self.classification}"
            )
            raise InputError(f"loss.name: {self.name} stands alone, as nothing else trains; {given}")
        self._check_weights()

    @property
    def trains_head(self) -> bool:
        """Whether it is the loss of an outlier head."""
        return self.name == HEAD_LOSS

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
        base = {self.name: 1.0} if self.trains_head else BASE_WEIGHTS
        return base | {name: getattr(self.options, name).weight for name in scalars}

    def completed(self) -> LossConfig:
        """Write out the default weights, if none are given."""
        return dataclasses.replace(self, weights=self.weights or self.default_weights())
