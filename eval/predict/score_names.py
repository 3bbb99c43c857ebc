"""Names of the anomaly scores, and what a network must have for each."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from shards.errors import InputError

DEFAULT_SCORES = ("MSP", "MaxLogit", "MaxEntropy", "RbA")
"""The course's: MSP and MaxEntropy are of softmax(L), whatever L is."""
OF_SHARES = ("NormalizedMSP", "NormalizedEntropy", "EntropyLogMax")
"""Those that read L / ΣL."""
RATIO = "LikelihoodRatio"
BANK_SCORES = ("Mahalanobis", "NearestNeighbor", "StandardizedMaxLogit")
HEAD_SCORES = (RATIO, *BANK_SCORES)
"""Maps of an outlier head, and of a fitted one; measured beside the default ones where there is one."""
NEEDS: dict[
    str,
    Literal["", "queries", "class distances", "an outlier class", "an outlier head", "a fitted outlier head"],
] = {
    **dict.fromkeys(("MSP", "MaxLogit", "MaxEntropy", "RbA", "Energy"), ""),
    **dict.fromkeys(OF_SHARES, "queries"),
    **dict.fromkeys(("MaskEnergy", "EAM", "SoleClaim", "ClassClaim", "ClassClaimEntropy"), "queries"),
    "MinDistance": "class distances",
    "UNO": "an outlier class",
    RATIO: "an outlier head",
    **dict.fromkeys(BANK_SCORES, "a fitted outlier head"),
}
"""Name of a score -> the part that a network must have for it; without one a score reads the L of any."""


def explain_scores(names: Collection[str]) -> str:
    """Say for the footnote of a table which of `names` read which probability; empty where none does."""
    kinds = {
        "softmax(L), of logits and of a mask model's evidence alike": ("MSP", "MaxEntropy"),
        "L / sum(L), a mask model's probabilities": OF_SHARES,
    }
    found = {kind: [name for name in of_kind if name in names] for kind, of_kind in kinds.items()}
    return "".join(f"; {', '.join(given)} of {kind}" for kind, given in found.items() if given)


def describe_scores() -> str:
    """List all scores by what a network must have for them, for `--help`."""
    groups: dict[str, list[str]] = {}
    for name, part in NEEDS.items():
        needed = f"of one with {part}" if part else "of any network"
        groups.setdefault(needed, []).append(name)
    return "; ".join(f"{', '.join(names)} {needed}" for needed, names in groups.items())


def require_scores(names: tuple[str, ...], setting: str = "--scores") -> None:
    """Check that `names` are scores, at least one and each once."""
    known = ", ".join(NEEDS)
    unknown = [name for name in names if name not in NEEDS]
    if unknown:
        raise InputError(f"{setting}: unknown score {unknown[0]!r}; known scores: {known}")
    if not names or len(set(names)) < len(names):
        given = ", ".join(names) or "nothing"
        raise InputError(f"{setting}: got {given}; at least one score, each once, of {known}")
