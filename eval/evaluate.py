"""The evaluation of a test set: a callable that segments windows goes in, cells come out.

Nothing here knows a model. `segment` takes windows of the network's input size (UInt8, B 3 h w) and returns
their evidence and, behind it, the maps of those scores that evidence does not suffice for (see `Segment`).
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from eval.cell import Cell, Subject, TestSetResult
from eval.maps import MapStore
from eval.metrics.components import DEFAULT_SEGMENTS, SMALLEST_SEGMENTS
from eval.metrics.measure import (
    ComponentMeasurement,
    Measurement,
    measure_components,
    measure_images,
    measure_score,
)
from eval.pool import ScorePool
from eval.predict.scores import DEFAULT_SCORES
from eval.predict.strips import PixelAnswers, answer_pixels
from eval.predict.windows import Segment, resize_image, segment_in_windows, to_tensor
from eval.protocol import Protocol
from eval.ranks import ALONE, Ranks
from eval.report.figures import Exhibit, choose_exhibits, shrink_exhibit
from eval.report.gallery import choose_extremes, make_gallery
from eval.report.record import Record
from eval.sets.registry import Frame, TestSet, read_image, read_target, require_same_size, resize_target

logger = logging.getLogger(__name__)

_MANY_TIES = 0.005
"""Share of normal pixels tied at the threshold of FPR95 from which on a warning says so."""
Answer = Callable[[UInt8[np.ndarray, "H W 3"]], PixelAnswers]
"""An image to what is known of its pixels."""
Keep = Callable[[int, UInt8[np.ndarray, "H W"]], None]
"""Called after each image with its position and target, such as to save what the network said."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass over the frames of a test set, all of them brought to one size; it serves several
    protocols."""

    test_set: TestSet
    size: tuple[int, int] | None
    """(H, W) of image and ground truth; None: as they are."""
    scores: Sequence[str]
    components: bool
    """Whether component metrics, slices and galleries are computed, for which all maps are kept."""
    num_exhibits: int
    intervals: bool = True
    """Whether images are resampled for the 95 % intervals."""

    def read(self, position: int) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
        """Return image and target of a frame at the pass's size."""
        return _read(self.test_set.frames[position], self.test_set, self.size)

    @property
    def exhibits(self) -> frozenset[int]:
        """Positions of the frames that the picture shows."""
        return choose_exhibits(len(self.test_set), self.num_exhibits)


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
    intervals: bool = True,
    scratch: Path | None = None,
    ranks: Ranks = ALONE,
    keep: Keep | None = None,
) -> TestSetResult:
    """Score all frames of a test set; each is decoded and segmented once for all scores and protocols of a
    size.

    Args:
        window: (h, w), the input size of the network.
        windows_at_once: windows per call of `segment`; bounds its memory.
        scores: names of scores; `segment` answers the maps of those among `QUERY_SCORES`, in this order.
        num_exhibits: frames to keep, shrunk, for a picture.
        components: compute component metrics too, which takes 4 more bytes of disk per pixel and score.
        intervals: compute 95 % intervals too, for which images are resampled.
        scratch: folder for the pooled scores (4 bytes per pixel and score) and maps; None is the system's.
            All ranks must see it where there are several.
        ranks: this process among those that share the work. All but the first get an empty result.
        keep: called after each image of native size.

    Raises:
        InputError: a file is broken or breaks the convention, sizes differ, no pixel is anomalous, or the
            model answers NaN.
    """
    protocols = [protocols] if isinstance(protocols, Protocol) else list(protocols)
    answer = answer_by_windows(segment, window, windows_at_once, scores)
    cells: list[Cell] = []
    exhibits: list[Exhibit] = []
    for size in dict.fromkeys(protocol.size for protocol in protocols):
        of_size = [protocol for protocol in protocols if protocol.size == size]
        over = Pass(
            test_set=test_set,
            size=size,
            scores=scores,
            components=components,
            num_exhibits=num_exhibits,
            intervals=intervals,
        )
        with shared_folder(scratch, ranks, test_set) as folder, ScorePool(scores, folder) as pool:
            maps = MapStore(folder / "maps")
            collect(over, answer, pool, maps, ranks, keep)
            ranks.merge_pools(pool, folder)
            if ranks.is_first:
                cells += measure(over, pool, maps, of_size, subject)
                exhibits = exhibits or make_exhibits(over, maps)
            ranks.wait()
    order = {protocol.name: i for i, protocol in enumerate(protocols)}
    cells.sort(key=lambda cell: order[cell.record.protocol])
    return TestSetResult(cells, exhibits)


def answer_by_windows(
    segment: Segment, window: tuple[int, int], windows_at_once: int, scores: Sequence[str]
) -> Answer:
    """Return what answers images by sliding windows; arguments as for `evaluate_test_set`."""

    def answer(image: UInt8[np.ndarray, "H W 3"]) -> PixelAnswers:
        return answer_pixels(segment_in_windows(to_tensor(image), segment, window, windows_at_once), scores)

    return answer


def collect(
    over: Pass,
    answer: Answer,
    pool: ScorePool,
    maps: MapStore,
    ranks: Ranks = ALONE,
    keep: Keep | None = None,
) -> None:
    """Score this rank's frames into `pool`, and put their maps into `maps`."""
    for image, _ in ranks.share(over.test_set.frames, over.test_set.name):
        picture, target = over.read(image)
        answers = answer(picture)
        if keep is not None and over.size is None:
            keep(image, target)
        pool.add(answers.scores, target, image)
        if over.components or image in over.exhibits:
            maps.add(image, answers.scores, target, answers.prediction)


def measure(
    over: Pass, pool: ScorePool, maps: MapStore, protocols: Sequence[Protocol], subject: Subject
) -> list[Cell]:
    """Turn the collected pixels of all frames into cells, by protocol, then score."""
    kept = maps if over.components else None
    found = [
        _measure(over, pool, kept, name, protocol, subject) for protocol in protocols for name in over.scores
    ]
    return _add_galleries(over, found, maps, protocols) if over.components else found


@contextmanager
def shared_folder(scratch: Path | None, ranks: Ranks, test_set: TestSet) -> Iterator[Path]:
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
    return resize_image(to_tensor(image), size).permute(1, 2, 0).numpy(), resize_target(target, size)


def make_exhibits(over: Pass, maps: MapStore) -> list[Exhibit]:
    """Shrink the frames that the picture shows."""
    exhibits = []
    for i in sorted(over.exhibits):
        image, target = over.read(i)
        found = {name: maps.scores(i, name) for name in over.scores}
        exhibits.append(
            shrink_exhibit(over.test_set.frames[i].stem, image, target, maps.prediction(i), found)
        )
    return exhibits


def _add_galleries(
    over: Pass, cells: Sequence[Cell], maps: MapStore, protocols: Sequence[Protocol]
) -> list[Cell]:
    """Add pictures and slices; each protocol has its own threshold, images that count and float type."""
    chosen = [choose_extremes(cell.images) for cell in cells]
    positions = {row.image for rows in chosen for _, row in rows}
    images = {i: over.read(i)[0] for i in sorted(positions)}
    by_name = {protocol.name: protocol for protocol in protocols}
    found = []
    for cell, extremes in zip(cells, chosen, strict=True):
        of_cell = cell.images, cell.measurement, cell.record.score, cell.stems
        gallery = make_gallery(maps, images, extremes, *of_cell, by_name[cell.record.protocol])
        found.append(cell._replace(gallery=gallery))
    return found


def _measure(
    over: Pass, pool: ScorePool, maps: MapStore | None, score: str, protocol: Protocol, subject: Subject
) -> Cell:
    test_set = over.test_set
    images = pool.sorted_images(score)
    measured = measure_score(images, protocol, intervals=over.intervals, scratch=pool.folder)
    if measured.tied > _MANY_TIES:
        logger.warning(
            "%s, %s, protocol %s: %.1f %% of the normal pixels have exactly the score where FPR95 is read; "
            "FPR95 says little there",
            test_set.name, score, protocol.name, 100 * measured.tied,
        )  # fmt: skip
    rows = measure_images(images, protocol)
    found = None
    if maps is not None:
        smallest = SMALLEST_SEGMENTS.get(test_set.convention.folder, DEFAULT_SEGMENTS)
        frames = ((maps.scores(row.image, score), maps.target(row.image)) for row in rows)
        threshold = measured.metrics.f1_threshold
        found = measure_components(frames, threshold, protocol, smallest, intervals=over.intervals)
    record = _record(subject, score, test_set.name, protocol.name, measured, found)
    stems = [frame.stem for frame in test_set.frames]
    return Cell(record, measured, rows, stems, test_set.convention.folder)


def _record(
    subject: Subject,
    score: str,
    dataset: str,
    protocol: str,
    measured: Measurement,
    found: ComponentMeasurement | None,
) -> Record:
    metrics, intervals = measured.metrics, measured.intervals
    return Record(
        model=subject.model,
        checkpoint=subject.checkpoint,
        score=score,
        temperature=1.0,
        temperature_from=None,
        dataset=dataset,
        protocol=protocol,
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
        siou_ci=found.siou_ci if found else None,
        ppv_ci=found.ppv_ci if found else None,
        f1_star_ci=found.f1_star_ci if found else None,
        ece=subject.ece,
        ece_ci=subject.ece_ci,
    )
