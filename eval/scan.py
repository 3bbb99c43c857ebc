"""Metrics of many temperatures from one reading of each frame: scores are counted in half precision.

For finding a temperature and for drawing a curve, never for a number of a table: `eval.temperature.Sweep`
measures those in float32. What does not depend on T is done once per frame (the counted pixels are picked,
normal ones first; the largest class is found, and how far the others lie below the second), and nothing is
sorted or kept: a variant is a `HalfHistogram` of 1 MB.

Scores are counted in the forms of `eval.predict.log_odds`, which do not tie at their ends, less the score of
a mask model's sure pixel, of evidence 1 for one class and 0 for the others: float16 is finest about 0.
Of drawn frames (tests/eval/test_scan.py, benchmarks/temperature.py) AP is that of float32 scores to 1e-3, and
FPR95 to 5e-3: a threshold moves by a step of float16, and all pixels of the step with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from eval.metrics.half_histogram import HalfHistogram
from eval.predict.elementwise import exp, log, log1p
from eval.predict.strips import predict_classes
from shards.schema import ANOMALY, NORMAL

SCANNED = ("MSP", "MaxLogit", "MaxEntropy", "RbA")
"""Scores that can be counted."""
Counts = Mapping[tuple[str, float], HalfHistogram]
"""Score and temperature of the evidence -> what has been counted."""
_BLOCK, _STRIP = 1 << 18, 1 << 13
"""Pixels that are counted, and that are scored, at once: a strip stays in the processor's cache."""
_NEVER = np.float32(-1e20)
"""In place of the largest class: its exponential is 0, and so is that times this."""
_TINY = np.float32(1e-30)
_LARGE = np.float32(80)
"""Has the tanh of 1, and an exponential that is finite."""


def count_frame(
    counts: Counts, evidence: Float32[np.ndarray, "C H W"], target: UInt8[np.ndarray, "H W"]
) -> None:
    """Count the scores of evidence / T of a frame's pixels, for each score and T of `counts`.

    Args:
        evidence: of two classes or more.
        target: `NORMAL`, `ANOMALY` or `VOID`, which is not counted.
    """
    assert all(name in SCANNED for name, _ in counts), list(counts)
    flat = evidence.reshape(len(evidence), -1)
    for value in (NORMAL, ANOMALY):
        chosen = np.flatnonzero(target.ravel() == value)
        for begin in range(0, chosen.size, _BLOCK):
            block = chosen[begin : begin + _BLOCK]
            for key, scores in _score_block(list(counts), flat, block).items():
                empty = scores[:0]
                counts[key].add(*((scores, empty) if value == ANOMALY else (empty, scores)))


def _score_block(
    keys: Sequence[tuple[str, float]], flat: Float32[np.ndarray, "C N"], block: np.ndarray
) -> dict[tuple[str, float], np.ndarray]:
    found = {key: torch.empty(block.size, dtype=torch.float16) for key in keys}
    sure = dict(_score_strip(keys, np.eye(len(flat), 1, dtype=np.float32)))
    for begin in range(0, block.size, _STRIP):
        part = slice(begin, begin + _STRIP)
        values = np.ascontiguousarray(np.take(flat, block[part], axis=1))
        for key, scores in _score_strip(keys, values):
            found[key][part] = torch.from_numpy(scores - sure[key])  # a quarter of the time of NumPy's
    return {key: scores.numpy() for key, scores in found.items()}


def _score_strip(
    keys: Sequence[tuple[str, float]], values: Float32[np.ndarray, "C P"]
) -> Iterator[tuple[tuple[str, float], Float32[np.ndarray, " P"]]]:
    """Yield scores of a strip, higher = more anomalous."""
    top = values.max(axis=0)
    largest = predict_classes(torch.from_numpy(values[..., None]))[:, 0].numpy()
    rest = values - top
    rest[largest, np.arange(values.shape[1])] = _NEVER
    second = rest.max(axis=0)
    rest -= second
    scaled, weights = np.empty_like(values), np.empty_like(values)
    for temperature in dict.fromkeys(t for _, t in keys):
        names = [name for name, t in keys if t == temperature]
        inverse = np.float32(1 / temperature)
        if "MaxLogit" in names:
            yield ("MaxLogit", temperature), -top * inverse
        if "RbA" in names:
            yield ("RbA", temperature), _rba(values, inverse, scaled)
        if "MSP" in names or "MaxEntropy" in names:
            np.multiply(rest, inverse, out=scaled)
            exp(scaled, out=weights)
            total = weights.sum(axis=0)
            log_others = second * inverse + log(total)
            others = exp(log_others)
        if "MSP" in names:
            missing = np.maximum(len(values) - 1 - others, _TINY)
            yield ("MSP", temperature), log_others - log(missing)
        if "MaxEntropy" in names:
            gap = -second * inverse - np.einsum("cp,cp->p", weights, scaled) / total
            yield ("MaxEntropy", temperature), _entropy(log_others, others, gap, len(values))


def _rba(
    values: Float32[np.ndarray, "C P"], inverse: np.float32, scaled: Float32[np.ndarray, "C P"]
) -> Float32[np.ndarray, " P"]:
    """Compute -Σ tanh(x) as Σ 2 / (1 + e^2x) - C, to some 1e-6: an exponential is had for less than tanh."""
    np.multiply(values, 2 * inverse, out=scaled)
    np.minimum(scaled, _LARGE, out=scaled)
    exp(scaled, out=scaled)
    scaled += 1
    np.reciprocal(scaled, out=scaled)
    return 2 * scaled.sum(axis=0) - np.float32(len(values))


def _entropy(
    log_others: Float32[np.ndarray, " P"],
    others: Float32[np.ndarray, " P"],
    gap: Float32[np.ndarray, " P"],
    num_classes: int,
) -> Float32[np.ndarray, " P"]:
    """Compute what `eval.predict.log_odds.entropy_log_odds` does, in float32."""
    everything = 1 + others
    small = np.maximum(others, _TINY)
    log_entropy = log_others + log(log1p(small) / small + gap / everything)
    log_mean = log(everything * np.float32(1 / num_classes))
    divergence = -others / everything * gap - log_mean
    return log_entropy - log(np.maximum(divergence, np.float32(math.ulp(1.0))))
