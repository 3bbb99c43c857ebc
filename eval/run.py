"""The evaluation itself: a callable that segments windows goes in, records come out.

Nothing here knows a model. `segment` takes windows of the network's input size (UInt8, B 3 h w) and returns
their evidence and, behind it, the maps of those scores that evidence does not suffice for (see `Segment`).
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor
from tqdm import tqdm

from eval.bootstrap import bootstrap_interval
from eval.calibration import count_confidence, expected_calibration_error
from eval.component import DEFAULT_SEGMENTS, SMALLEST_SEGMENTS
from eval.datasets import Frame, TestSet, read_image, read_target, require_same_size, resize_target
from eval.gallery import Gallery, choose_extremes, make_gallery
from eval.maps import MapStore
from eval.measure import ImageMetrics, Measurement, measure_components, measure_images, measure_score
from eval.miou import ConfusionMatrix, mean_iou_of
from eval.pictures import Exhibit, choose_exhibits, shrink_exhibit
from eval.pool import ScorePool
from eval.protocol import Protocol
from eval.ranks import ALONE, Ranks
from eval.report import Record
from eval.scores import DEFAULT_SCORES, QUERY_SCORES, SCORES
from eval.windows import Segment, resize_image, segment_in_windows
from shards.schema import CITYSCAPES_CLASSES, NUM_CLASSES, OUTLIER_ID, VOID_ID, Sample

logger = logging.getLogger(__name__)

_STRIP_ROWS = 32
"""Scores are computed in strips: their intermediate results then stay in the processor's cache."""
_MANY_TIES = 0.005
"""Share of normal pixels tied at the threshold of FPR95 from which on a warning says so."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is evaluated, as records name it."""

    model: str
    checkpoint: str
    miou: float | None = None
    miou_ci: tuple[float, float] | None = None
    ece: float | None = None
    ece_ci: tuple[float, float] | None = None


class Cell(NamedTuple):
    """One score of one test set under one protocol, with what its record does not say."""

    record: Record
    measurement: Measurement
    images: list[ImageMetrics]
    stems: list[str]
    """By position in the set."""
    folder: str
    """Of the test set, as its convention calls it."""
    gallery: Gallery | None = None
    """Pictures and slices, where maps were kept."""


class TestSetResult(NamedTuple):
    """What one test set yields."""

    cells: list[Cell]
    """One per protocol and score."""
    exhibits: list[Exhibit]
    """The frames chosen for the picture."""

    @property
    def records(self) -> list[Record]:
        """The cells' records."""
        return [cell.record for cell in self.cells]


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
    protocols: Protocol | Sequence[Protocol],
    subject: Subject,
    *,
    window: tuple[int, int],
    windows_at_once: int = 4,
    scores: Sequence[str] = DEFAULT_SCORES,
    num_exhibits: int = 3,
    components: bool = True,
    scratch: Path | None = None,
    ranks: Ranks = ALONE,
    keep: Callable[[int, UInt8[np.ndarray, "H W"]], None] | None = None,
) -> TestSetResult:
    """Score all frames of a test set; each is decoded and segmented once for all scores and protocols of a
    size.

    Args:
        window: (h, w), the input size of the network.
        windows_at_once: windows per call of `segment`; bounds its memory.
        scores: names of scores; `segment` answers the maps of those among `QUERY_SCORES`, in this order.
        num_exhibits: frames to keep, shrunk, for a picture.
        components: compute component metrics too, which takes 4 more bytes of disk per pixel and score.
        scratch: folder for the pooled scores (4 bytes per pixel and score) and maps; None is the system's.
        All
            ranks must see it where there are several.
        ranks: this process among those that share the work. All but the first get an empty result.
        keep: called after each image with its position and target, such as to save what the network said.

    Raises:
        InputError: a file is broken or breaks the convention, sizes differ, no pixel is anomalous, or the
            model answers NaN.
    """
    protocols = [protocols] if isinstance(protocols, Protocol) else list(protocols)
    cells: list[Cell] = []
    exhibits: list[Exhibit] = []
    for size in dict.fromkeys(protocol.size for protocol in protocols):
        of_size = [protocol for protocol in protocols if protocol.size == size]
        with _shared_folder(scratch, ranks, test_set) as folder:
            maps = MapStore(folder / "maps")
            with ScorePool(scores, folder) as pool:
                for image, frame in ranks.share(test_set.frames, test_set.name):
                    frame_image, target = _read(frame, test_set, size)
                    evidence = segment_in_windows(_to_tensor(frame_image), segment, window, windows_at_once)
                    answers = answer_pixels(evidence, scores)
                    if keep is not None and size is None:
                        keep(image, target)
                    pool.add(answers.scores, target, image)
                    if components or image in choose_exhibits(len(test_set), num_exhibits):
                        maps.add(image, answers.scores, target, answers.prediction)
                ranks.merge_pools(pool, folder)
                if ranks.is_first:
                    found = [
                        _measure(pool, maps if components else None, name, test_set, protocol, subject)
                        for protocol in of_size
                        for name in scores
                    ]
                    if components:
                        found = _add_galleries(found, maps, test_set, size)
                    cells += found
                    exhibits = exhibits or _exhibits(maps, test_set, num_exhibits, size, scores)
                ranks.wait()
    order = {protocol.name: i for i, protocol in enumerate(protocols)}
    cells.sort(key=lambda cell: order[cell.record.protocol])
    return TestSetResult(cells, exhibits)


@contextmanager
def _shared_folder(scratch: Path | None, ranks: Ranks, test_set: TestSet) -> Iterator[Path]:
    """Yield a folder that all ranks share and that is gone afterwards."""
    assert scratch is not None or ranks.count == 1, "several ranks need a folder that all of them see"
    if ranks.count == 1:
        with tempfile.TemporaryDirectory(dir=scratch) as name:
            yield Path(name)
        return
    assert scratch is not None
    folder = scratch / f".{test_set.convention.folder}"
    folder.mkdir(exist_ok=True)
    ranks.wait()
    try:
        yield folder
    finally:
        ranks.wait()
        if ranks.is_first:
            shutil.rmtree(folder, ignore_errors=True)
        ranks.wait()


def _read(
    frame: Frame, test_set: TestSet, size: tuple[int, int] | None
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
    image, target = read_image(frame), read_target(frame, test_set.convention)
    require_same_size(frame, image, target)
    if size is None:
        return image, target
    return resize_image(_to_tensor(image), size).permute(1, 2, 0).numpy(), resize_target(target, size)


def _exhibits(
    maps: MapStore, test_set: TestSet, count: int, size: tuple[int, int] | None, scores: Sequence[str]
) -> list[Exhibit]:
    exhibits = []
    for i in sorted(choose_exhibits(len(test_set), count)):
        image, target = _read(test_set.frames[i], test_set, size)
        found = {name: maps.scores(i, name) for name in scores}
        exhibits.append(shrink_exhibit(test_set.frames[i].stem, image, target, maps.prediction(i), found))
    return exhibits


def _add_galleries(
    cells: Sequence[Cell], maps: MapStore, test_set: TestSet, size: tuple[int, int] | None
) -> list[Cell]:
    """Add pictures and slices to the cells of the first protocol; the others read the same maps."""
    first = [cell for cell in cells if cell.record.protocol == cells[0].record.protocol]
    chosen = {cell.record.score: choose_extremes(cell.images) for cell in first}
    positions = {row.image for rows in chosen.values() for _, row in rows}
    images = {i: _read(test_set.frames[i], test_set, size)[0] for i in sorted(positions)}
    found = []
    for cell in first:
        score = cell.record.score
        gallery = make_gallery(maps, images, chosen[score], cell.images, cell.measurement, score, cell.stems)
        found.append(cell._replace(gallery=gallery))
    return found + list(cells[len(first) :])


def _measure(
    pool: ScorePool,
    maps: MapStore | None,
    score: str,
    test_set: TestSet,
    protocol: Protocol,
    subject: Subject,
) -> Cell:
    measured = measure_score(pool, score, protocol)
    if measured.tied > _MANY_TIES:
        logger.warning(
            "%s, %s, protocol %s: %.1f %% of the normal pixels have exactly the score where FPR95 is read; "
            "FPR95 says little there",
            test_set.name, score, protocol.name, 100 * measured.tied,
        )  # fmt: skip
    metrics, intervals = measured.metrics, measured.intervals
    rows = measure_images(pool, score, protocol)
    found = None
    if maps is not None:
        smallest = SMALLEST_SEGMENTS.get(test_set.convention.folder, DEFAULT_SEGMENTS)
        counted = [row.image for row in rows]
        found = measure_components(maps, counted, score, metrics.f1_threshold, protocol, smallest)
    record = Record(
        model=subject.model,
        checkpoint=subject.checkpoint,
        score=score,
        temperature=1.0,
        temperature_from=None,
        dataset=test_set.name,
        protocol=protocol.name,
        num_images=measured.num_images,
        num_pixels=measured.num_pixels,
        ap=metrics.ap,
        ap_ci=intervals["ap"],
        fpr95=metrics.fpr95,
        fpr95_ci=intervals["fpr95"],
        auroc=metrics.auroc,
        miou=subject.miou,
        auroc_ci=intervals["auroc"],
        miou_ci=subject.miou_ci,
        best_f1=metrics.best_f1,
        best_f1_ci=intervals["best_f1"],
        siou=found.siou if found else None,
        ppv=found.ppv if found else None,
        f1_star=found.f1_star if found else None,
        f1_star_ci=found.f1_star_ci if found else None,
        ece=subject.ece,
        ece_ci=subject.ece_ci,
    )
    return Cell(record, measured, rows, [frame.stem for frame in test_set.frames], test_set.convention.folder)


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


def evaluate_miou(
    segment: Segment,
    samples: Iterable[Sample],
    *,
    window: tuple[int, int],
    windows_at_once: int = 4,
    num_samples: int | None = None,
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
        scratch: folder that all ranks see.
        ranks: this process among those that share the work; all get the same result.
        keep: called after each image with its position among all samples and its labels.

    Raises:
        InputError: a label holds a value that is no train id, outlier or void, or all are void.
    """
    matrices, confidences = [], []
    progress = tqdm(samples, desc="mIoU", unit="image", total=num_samples, disable=None)
    for position, sample in enumerate(progress):
        evidence = segment_in_windows(_to_tensor(sample.image), segment, window, windows_at_once)
        answers = answer_pixels(evidence[:NUM_CLASSES], ("MSP",))  # no query scores
        if keep is not None:
            keep(ranks.rank + position * ranks.count, sample.label)
        matrix = ConfusionMatrix()
        matrix.add(sample.label, answers.prediction)
        matrices.append(matrix.counts)
        labelled = (sample.label != VOID_ID) & (sample.label != OUTLIER_ID)
        is_right = answers.prediction == sample.label
        confidences.append(count_confidence(1 - answers.scores["MSP"], is_right, labelled))
    counts = ranks.interleave(np.array(matrices), scratch)
    sure = ranks.interleave(np.array(confidences), scratch)
    whole = ConfusionMatrix()
    whole.counts = counts.sum(axis=0)
    by_class = zip(CITYSCAPES_CLASSES, whole.iou().tolist(), strict=True)
    iou = {entry.name: None if math.isnan(value) else value for entry, value in by_class}

    def miou_of(weights: Float64[np.ndarray, "B R"]) -> Float64[np.ndarray, " B"]:
        return mean_iou_of(np.tensordot(weights, counts.astype(np.float64), axes=1))

    def ece_of(weights: Float64[np.ndarray, "B R"]) -> Float64[np.ndarray, " B"]:
        return expected_calibration_error(np.tensordot(weights, sure, axes=1))

    return MiouResult(
        whole.mean_iou(),
        iou,
        len(counts),
        bootstrap_interval(miou_of, len(counts)),
        float(expected_calibration_error(sure.sum(axis=0))),
        bootstrap_interval(ece_of, len(counts)),
    )


def _to_tensor(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[Tensor, "3 H W"]:
    return torch.from_numpy(image).permute(2, 0, 1)
