"""Closed-set quality of a network: mIoU and calibration on labelled scenes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from torch import Tensor
from tqdm import tqdm

from eval.bootstrap import bootstrap_interval
from eval.calibration import count_confidence, expected_calibration_error
from eval.miou import ConfusionMatrix, mean_iou_of
from eval.ranks import ALONE, Ranks
from eval.scores import msp
from eval.windows import Segment, segment_in_windows, to_tensor
from shards.schema import CITYSCAPES_CLASSES, NUM_CLASSES, OUTLIER_ID, VOID_ID, Sample

_STRIP_ROWS = 32


class MiouResult(NamedTuple):
    """Closed-set quality; fractions in [0, 1]."""

    miou: float
    iou: dict[str, float | None]
    """By class name; None where the class occurs neither in ground truth nor prediction."""
    num_images: int
    miou_ci: tuple[float, float] | None
    """95 % over images."""
    ece: float
    """Calibration error of max softmax of the evidence, over all labelled pixels."""
    ece_ci: tuple[float, float] | None


class ClosedSetCounts(NamedTuple):
    """What frames add up to, a row per frame."""

    confusion: Int64[np.ndarray, "R C C"]
    confidence: Float64[np.ndarray, "R 3 K"]
    """As `eval.calibration.count_confidence` returns it."""


def evaluate_miou(
    segment: Segment,
    samples: Iterable[Sample],
    *,
    window: tuple[int, int],
    windows_at_once: int = 4,
    num_samples: int | None = None,
    intervals: bool = True,
    scratch: Path | None = None,
    ranks: Ranks = ALONE,
    keep: Callable[[int, UInt8[np.ndarray, "H W"]], None] | None = None,
) -> MiouResult:
    """Compare predicted classes (argmax of evidence at native size) with the labels of `samples`.

    Args:
        samples: of this rank: position i of all samples where i mod ranks is the rank.
        window: (h, w), the input size of the network.
        windows_at_once: windows per call of `segment`; bounds its memory.
        num_samples: for the progress bar, where `samples` has no length.
        intervals: resample images for the 95 % intervals too.
        scratch: folder that all ranks see.
        ranks: this process among those that share the work; all get the same result.
        keep: called after each image with its position among all samples and its labels.

    Raises:
        InputError: a label holds a value that is no train id, outlier or void, or all are void.
    """
    counts = count_samples(
        segment,
        samples,
        window=window,
        windows_at_once=windows_at_once,
        num_samples=num_samples,
        ranks=ranks,
        keep=keep,
    )
    counts = ClosedSetCounts(*(ranks.interleave(rows, scratch) for rows in counts))
    return measure_closed_set(counts, intervals=intervals)


def count_samples(
    segment: Segment,
    samples: Iterable[Sample],
    *,
    window: tuple[int, int],
    windows_at_once: int = 4,
    num_samples: int | None = None,
    ranks: Ranks = ALONE,
    keep: Callable[[int, UInt8[np.ndarray, "H W"]], None] | None = None,
) -> ClosedSetCounts:
    """Count the frames of this rank; arguments as for `evaluate_miou`.

    Raises:
        InputError: a label holds a value that is no train id, outlier or void.
    """
    matrices, confidences = [], []
    progress = tqdm(samples, desc="mIoU", unit="image", total=num_samples, disable=None)
    for position, sample in enumerate(progress):
        evidence = segment_in_windows(to_tensor(sample.image), segment, window, windows_at_once)
        confidence, prediction = _most_likely(evidence[:NUM_CLASSES])  # no query scores
        if keep is not None:
            keep(ranks.rank + position * ranks.count, sample.label)
        matrix = ConfusionMatrix()
        matrix.add(sample.label, prediction)
        matrices.append(matrix.counts)
        labelled = (sample.label != VOID_ID) & (sample.label != OUTLIER_ID)
        is_right = prediction == sample.label
        confidences.append(count_confidence(confidence, is_right, labelled))
    return ClosedSetCounts(np.array(matrices), np.array(confidences))


@torch.no_grad()
def _most_likely(
    evidence: Float[Tensor, "C H W"],
) -> tuple[Float32[np.ndarray, "H W"], UInt8[np.ndarray, "H W"]]:
    """Return max softmax and the class it is of."""
    confidence = torch.empty(evidence.shape[1:])
    prediction = torch.empty(evidence.shape[1:], dtype=torch.uint8)
    for top in range(0, evidence.shape[1], _STRIP_ROWS):
        rows = slice(top, top + _STRIP_ROWS)
        confidence[rows] = 1 - msp(evidence[None, :, rows])[0]
        prediction[rows] = evidence[:, rows].max(dim=0).indices
    return confidence.numpy(), prediction.numpy()


def measure_closed_set(counts: ClosedSetCounts, *, intervals: bool = True) -> MiouResult:
    """Add frames up, and resample them where `intervals` are asked for.

    Raises:
        InputError: no pixel is labelled.
    """
    confusion, sure = counts
    whole = ConfusionMatrix()
    whole.counts = confusion.sum(axis=0)
    by_class = zip(CITYSCAPES_CLASSES, whole.iou().tolist(), strict=True)
    iou = {entry.name: None if math.isnan(value) else value for entry, value in by_class}

    def miou_of(weights: Float64[np.ndarray, "B R"]) -> Float64[np.ndarray, " B"]:
        return mean_iou_of(np.tensordot(weights, confusion.astype(np.float64), axes=1))

    def ece_of(weights: Float64[np.ndarray, "B R"]) -> Float64[np.ndarray, " B"]:
        return expected_calibration_error(np.tensordot(weights, sure, axes=1))

    return MiouResult(
        whole.mean_iou(),
        iou,
        len(confusion),
        bootstrap_interval(miou_of, len(confusion)) if intervals else None,
        float(expected_calibration_error(sure.sum(axis=0))),
        bootstrap_interval(ece_of, len(confusion)) if intervals else None,
    )
