"""Weights beside the model they are for: what fits, name by name, and what does not."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from models.weights.files import render_shape, some
from shards.errors import InputError

logger = logging.getLogger(__name__)

Shapes = tuple[tuple[int, ...], tuple[int, ...]]
"""Shapes of one weight in the file and in the model."""


@dataclass(frozen=True)
class LoadReport:
    """Fate of every weight of a file and of every weight of the model it is loaded into."""

    loaded: tuple[str, ...] = ()
    """Model weights that were filled."""
    missing: tuple[str, ...] = ()
    """Model weights that the file does not have, and nobody asked to leave out."""
    unexpected: tuple[str, ...] = ()
    """Weights of the file that the model has no place for."""
    misshapen: dict[str, Shapes] = field(default_factory=dict)
    """Shapes that cannot be reconciled, by name."""
    resized: dict[str, Shapes] = field(default_factory=dict)
    """Shapes of what was resampled to fit, by name."""
    skipped: tuple[str, ...] = ()
    """Model weights left as initialised because the user, or the kind of file, says so."""
    remedy: str = ""
    """What to take instead, where something does not fit."""

    @property
    def fits(self) -> bool:
        """Whether nothing is missing, left over or of another shape."""
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        kinds = ("loaded", "missing", "unexpected", "misshapen", "resized", "skipped")
        return ", ".join(f"{len(getattr(self, kind))} {kind}" for kind in kinds)

    def explain(self) -> str:
        """Say in one line what does not fit."""
        shapes = [f"{n} {render_shape(a)}, model {render_shape(b)}" for n, (a, b) in self.misshapen.items()]
        groups = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": shapes}
        wrong = ", ".join(f"{len(names)} {kind} {some(names)}" for kind, names in groups.items() if names)
        return f"{wrong}; {self.remedy}" if self.remedy else wrong

    def require_fit(self, where: str) -> None:
        """Check that all fits, or raise an InputError."""
        if not self.fits:
            raise InputError(f"{where}: the weights do not fit the model: {self.explain()}")

    def require(self, weights: Mapping[str, Tensor], where: str) -> None:
        """Check that all fits, and that what is loaded of `weights` is finite, or raise an InputError."""
        self.require_fit(where)
        if broken := find_not_finite({name: weights[name] for name in self.loaded}):
            raise InputError(f"{where}: NaN or infinite values in {len(broken)} weights {some(broken)}")


def compare_weights(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], skip: Sequence[str] = ()
) -> LoadReport:
    """Say what loading `weights` in place of those that are `expected` would do, name by name.

    What `skip` names is not loaded: full names, or their first words up to a dot.
    """
    wanted = [name for name in expected if not is_under(name, skip)]
    shapes = {n: (tuple(weights[n].shape), tuple(expected[n].shape)) for n in wanted if n in weights}
    misshapen = {name: (theirs, ours) for name, (theirs, ours) in shapes.items() if theirs != ours}
    return LoadReport(
        loaded=tuple(n for n in shapes if n not in misshapen),
        missing=tuple(n for n in wanted if n not in shapes),
        unexpected=tuple(n for n in weights if n not in expected and not is_under(n, skip)),
        misshapen=misshapen,
        skipped=tuple(n for n in expected if is_under(n, skip)),
    )


def load_strictly(
    module: nn.Module, weights: Mapping[str, Tensor], where: str, skip: Sequence[str] = ()
) -> LoadReport:
    """Fill `module` from `weights`, which must have exactly its names and shapes, but for `skip`.

    What is missing, left over, of another shape, or not finite is an InputError, which names `where` they are
    from and leaves the module unchanged; `skip` is as for `compare_weights`.
    """
    report = compare_weights(module.state_dict(), weights, skip)
    report.require(weights, where)
    loaded = {name: weights[name] for name in report.loaded}
    if zero := find_all_zero(loaded):
        logger.warning("%s: only zeros in %d weights %s", where, len(zero), some(zero))
    module.load_state_dict(loaded, strict=False)
    return report


def find_not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """List the tensors with a NaN or an infinite value."""
    return [name for name, value in weights.items() if not bool(value.isfinite().all())]


def find_all_zero(weights: Mapping[str, Tensor]) -> list[str]:
    """List the matrices and convolutions (two or more dimensions) without a value other than 0."""
    return [n for n, v in weights.items() if v.ndim > 1 and v.numel() and not bool(v.any())]


def is_under(name: str, prefixes: Sequence[str]) -> bool:
    """Say whether `name` is one of `prefixes`, or is below one: `class_head.bias` is below `class_head`."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
