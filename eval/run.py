"""The evaluation itself: a callable that segments windows goes in, records come out.

Nothing here knows a model. `segment` takes windows of the network's input size (UInt8, B 3 h w) and returns
their evidence and, behind it, the maps of those scores that evidence does not suffice for (see `Segment`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from tqdm import tqdm

from eval.datasets import TestSet, read_image, read_target, require_same_size
from eval.miou import ConfusionMatrix
from eval.pictures import Exhibit, choose_exhibits, shrink_exhibit
from eval.pool import ANOMALY, ScorePool
from eval.protocol import Protocol
from eval.report import Record
from eval.scores import DEFAULT_SCORES, QUERY_SCORES, SCORES
from eval.windows import Segment, segment_in_windows
from shards.schema import CITYSCAPES_CLASSES, NUM_CLASSES, Sample

_STRIP_ROWS = 32
"""Scores are computed in strips: their intermediate results then stay in the processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is evaluated, as records name it."""

    model: str
    checkpoint: str
    miou: float | None = None


class TestSetResult(NamedTuple):
    """What one test set yields."""

    records: list[Record]
    """One per score."""
    exhibits: list[Exhibit]
    """The frames chosen for the picture."""


class PixelAnswers(NamedTuple):
    """What evidence says of every pixel."""

    scores: dict[str, Float32[np.ndarray, "H W"]]
    prediction: UInt8[np.ndarray, "H W"]
    """Train ids."""


@torch.no_grad()
def answer_pixels(evidence: Float[Tensor, "N H W"], names: Sequence[str]) -> PixelAnswers:
    """Compute all scores and the predicted classes in one pass over the evidence.

    Args:
        evidence: of C classes; behind it the maps of those `names` that are query scores, in their order.
        names: names of `eval.scores.SCORES` and `QUERY_SCORES`.
    """
    height, width = evidence.shape[1:]
    read_from_queries = [name for name in names if name in QUERY_SCORES]
    num_classes = len(evidence) - len(read_from_queries)
    maps = dict(zip(read_from_queries, evidence[num_classes:], strict=True))
    evidence = evidence[:num_classes]
    scores = {name: torch.empty(height, width, device=evidence.device) for name in names if name in SCORES}
    prediction = torch.empty(height, width, dtype=torch.uint8, device=evidence.device)
    for top in range(0, height, _STRIP_ROWS):
        rows = slice(top, top + _STRIP_ROWS)
        strip = evidence[None, :, rows]
        prediction[rows] = strip[0].max(dim=0).indices  # four times as fast as argmax over the first axis
        for name, score in scores.items():
            score[rows] = SCORES[name](strip)[0]
    found = {name: (scores | maps)[name].cpu().numpy() for name in names}
    return PixelAnswers(found, prediction.cpu().numpy())


def evaluate_test_set(
    segment: Segment,
    test_set: TestSet,
    protocol: Protocol,
    subject: Subject,
    *,
    window: tuple[int, int],
    windows_at_once: int = 4,
    scores: Sequence[str] = DEFAULT_SCORES,
    num_exhibits: int = 3,
    scratch: Path | None = None,
) -> TestSetResult:
    """Score all frames of a test set; each is decoded and segmented once, whatever the number of scores.

    Args:
        window: (h, w), the input size of the network.
        windows_at_once: windows per call of `segment`; bounds its memory.
        scores: names of scores; `segment` answers the maps of those among `QUERY_SCORES`, in this order.
        num_exhibits: frames to keep, shrunk, for a picture.
        scratch: folder for the pooled scores (4 bytes per pixel and score); None is the system's.

    Raises:
        InputError: a file is broken or breaks the convention, sizes differ, no pixel is anomalous, or the
            model answers NaN.
    """
    chosen = choose_exhibits(len(test_set), num_exhibits)
    exhibits = []
    with ScorePool(scores, scratch) as pool:
        for i, frame in enumerate(tqdm(test_set.frames, desc=test_set.name, unit="image", disable=None)):
            image, target = read_image(frame), read_target(frame, test_set.convention)
            require_same_size(frame, image, target)
            evidence = segment_in_windows(_to_tensor(image), segment, window, windows_at_once)
            answers = answer_pixels(evidence, scores)
            if protocol.images_without_anomaly == "kept" or (target == ANOMALY).any():
                pool.add(answers.scores, target)
            if i in chosen:
                exhibits.append(shrink_exhibit(frame.stem, image, target, answers.prediction, answers.scores))
        records = [_record(pool, name, test_set, protocol, subject) for name in scores]
    return TestSetResult(records, exhibits)


def _record(pool: ScorePool, score: str, test_set: TestSet, protocol: Protocol, subject: Subject) -> Record:
    metrics = pool.metrics(score, fpr_rule=protocol.fpr_rule)
    return Record(
        model=subject.model,
        checkpoint=subject.checkpoint,
        score=score,
        temperature=1.0,
        temperature_from=None,
        dataset=test_set.name,
        protocol=protocol.name,
        num_images=pool.num_images,
        num_pixels=pool.num_pixels,
        ap=metrics.ap,
        ap_ci=None,
        fpr95=metrics.fpr95,
        fpr95_ci=None,
        auroc=metrics.auroc,
        miou=subject.miou,
    )


class MiouResult(NamedTuple):
    """Closed-set quality; fractions in [0, 1]."""

    miou: float
    iou: dict[str, float | None]
    """By class name; None where the class occurs neither in ground truth nor prediction."""
    num_images: int


def evaluate_miou(
    segment: Segment,
    samples: Iterable[Sample],
    *,
    window: tuple[int, int],
    windows_at_once: int = 4,
    num_samples: int | None = None,
) -> MiouResult:
    """Compare predicted classes (argmax of evidence at native size) with the labels of `samples`.

    Args:
        window: (h, w), the input size of the network.
        windows_at_once: windows per call of `segment`; bounds its memory.
        num_samples: for the progress bar, where `samples` has no length.

    Raises:
        InputError: a label holds a value that is no train id, outlier or void, or all are void.
    """
    matrix = ConfusionMatrix()
    num_images = 0
    for sample in tqdm(samples, desc="mIoU", unit="image", total=num_samples, disable=None):
        evidence = segment_in_windows(_to_tensor(sample.image), segment, window, windows_at_once)
        matrix.add(sample.label, answer_pixels(evidence[:NUM_CLASSES], ()).prediction)  # no query scores
        num_images += 1
    by_class = zip(CITYSCAPES_CLASSES, matrix.iou().tolist(), strict=True)
    iou = {entry.name: None if math.isnan(value) else value for entry, value in by_class}
    return MiouResult(matrix.mean_iou(), iou, num_images)


def _to_tensor(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(image).permute(2, 0, 1)
