"""The parts of an evaluation, computed one after the other and kept as each is finished."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eval.cell import Subject, TestSetResult
from eval.evaluate import evaluate_test_set
from eval.kept_cells import KeptSet, pack_set
from eval.metrics.closed_set import ClosedSetCounts, count_samples
from eval.predict.predictions import CLOSED_SET, CachedSet
from eval.protocol import Protocol
from eval.ranks import Ranks
from eval.report.figures import draw_panels, encode_png
from eval.sets.registry import TestSet
from jobs.evaluate_options import EvaluateOptions
from jobs.evaluation_folder import EvaluationFolder
from jobs.saved_predictions import SavedPredictions
from models.segmenter import Segmenter
from shards.reader import ShardReader
from shards.scene import decode_scene

logger = logging.getLogger(__name__)

NOBODY = Subject(model="", checkpoint="")
"""A kept part is a network's, not a name's: who it is of is put in when the results are written."""


@dataclass(frozen=True)
class Plan:
    """What is asked for, and what of it is to be done."""

    network: dict[str, str]
    """Key of the network's answers."""
    data: dict[str, str]
    """Hash of the data, by folder of the test set."""
    keys: dict[str, dict[str, str]]
    """Of every part."""
    missing: set[str]
    """Parts that are computed now."""


@dataclass(frozen=True)
class Work:
    """All that computing a part needs."""

    options: EvaluateOptions
    plan: Plan
    folder: EvaluationFolder
    ranks: Ranks
    segmenter: Segmenter | None
    """None where no part is missing."""
    saved: SavedPredictions | None
    """Where predictions are saved, too."""

    def keeper(self, folder: str) -> Callable[[int, np.ndarray], None] | None:
        """Return what saves the predictions of each frame of a set; None without --cache."""
        if self.saved is None or self.segmenter is None:
            return None
        return self.saved.keeper(folder, self.segmenter.recorder)

    def finish_saved(self, folder: str, name: str, is_benchmark: bool, stems: Sequence[str]) -> None:
        """Say that all predictions of a set are saved."""
        if self.saved is not None and self.segmenter is not None:
            self.saved.finish(
                CachedSet(
                    folder=folder,
                    name=name,
                    is_benchmark=is_benchmark,
                    window=self.segmenter.window,
                    stems=tuple(stems),
                    fingerprint=self.plan.data[folder],
                )
            )


def cell_name(folder: str, protocol: Protocol) -> str:
    """Name the part of a test set (by its folder) under a protocol."""
    return f"{folder}.{protocol.name}"


def finish_closed_set(work: Work, reader: ShardReader, count: int) -> None:
    """Count the first samples of the closed set, unless they are kept."""
    if CLOSED_SET not in work.plan.missing:
        return
    ranks = work.ranks
    rows = count_share(work, reader, count, ranks)
    counts = ClosedSetCounts(*(ranks.interleave(part, work.folder.scratch) for part in rows))
    if ranks.is_first:
        keep_closed_set(work, reader, count, counts)


def count_share(work: Work, reader: ShardReader, count: int, ranks: Ranks) -> ClosedSetCounts:
    """Count those of the first samples that are this rank's."""
    assert work.segmenter is not None
    logger.info("Cityscapes val: %d images", count)
    mine = range(ranks.rank, count, ranks.count)
    return count_samples(
        work.segmenter.segment,
        (decode_scene(reader, i) for i in mine),
        window=work.segmenter.window,
        windows_at_once=work.options.windows_at_once,
        num_samples=len(mine),
        ranks=ranks,
        keep=work.keeper(CLOSED_SET),
    )


def keep_closed_set(work: Work, reader: ShardReader, count: int, counts: ClosedSetCounts) -> None:
    """Keep the counts of all samples."""
    work.finish_saved(CLOSED_SET, "Cityscapes val", False, reader.keys[:count])
    work.folder.write(CLOSED_SET, work.plan.keys[CLOSED_SET], None, counts._asdict())


def finish_test_set(work: Work, test_set: TestSet, protocols: Sequence[Protocol]) -> None:
    """Evaluate a test set under those protocols that are not kept; one pass per size."""
    for of_size in missing_passes(work, test_set, protocols):
        _finish_pass(work, test_set, of_size)


def missing_passes(work: Work, test_set: TestSet, protocols: Sequence[Protocol]) -> list[list[Protocol]]:
    """Group the protocols that are not kept by the size of their frames."""
    folder = test_set.convention.folder
    missing = [protocol for protocol in protocols if cell_name(folder, protocol) in work.plan.missing]
    sizes = dict.fromkeys(protocol.size for protocol in missing)
    return [[protocol for protocol in missing if protocol.size == size] for size in sizes]


def _finish_pass(work: Work, test_set: TestSet, protocols: Sequence[Protocol]) -> None:
    assert work.segmenter is not None
    logger.info("%s: %d images", test_set.name, len(test_set))
    convention, options = test_set.convention, work.options
    result = evaluate_test_set(
        work.segmenter.segment,
        test_set,
        protocols,
        NOBODY,
        window=work.segmenter.window,
        windows_at_once=options.windows_at_once,
        scores=options.scores,
        num_exhibits=options.pictures,
        components=options.components,
        scratch=work.folder.scratch,
        ranks=work.ranks,
        keep=work.keeper(convention.folder),
    )
    if work.ranks.is_first:
        keep_set(work, test_set, protocols, result)


def keep_set(work: Work, test_set: TestSet, protocols: Sequence[Protocol], result: TestSetResult) -> None:
    """Keep what all frames of a test set yield."""
    convention = test_set.convention
    stems = [frame.stem for frame in test_set.frames]
    work.finish_saved(convention.folder, convention.name, convention.is_benchmark, stems)
    panels = encode_png(draw_panels(result.exhibits)) if result.exhibits else b""
    for record in result.records:
        assert record.ap is not None
        assert record.fpr95 is not None
        logger.info("  %-10s AP %6.2f  FPR95 %6.2f", record.score, 100 * record.ap, 100 * record.fpr95)
    for protocol in protocols:
        cells = [cell for cell in result.cells if cell.record.protocol == protocol.name]
        name = cell_name(convention.folder, protocol)
        work.folder.write(name, work.plan.keys[name], *pack_set(KeptSet(cells, panels)))
