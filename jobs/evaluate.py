"""Score a checkpoint on the anomaly test sets: numbers, tables and pictures.

python -m jobs.evaluate --checkpoint RUN --datasets Validation_Dataset --out RUN/eval

Under `torchrun --nproc_per_node N -m jobs.evaluate ...` N processes share the images; the numbers are the
same.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from eval.cache import (
    CLOSED_SET,
    CachedSet,
    CacheInfo,
    write_frame,
    write_index,
    write_info,
)
from eval.cell import Cell, Subject
from eval.closed_set import MiouResult, evaluate_miou
from eval.datasets import TestSet, check_masks, find_test_sets
from eval.own_sets import read_own_sets
from eval.pictures import draw_grid, encode_png
from eval.protocol import Protocol, get_protocols
from eval.ranks import ALONE, Ranks
from eval.report import Record, render_markdown
from eval.run import evaluate_test_set
from jobs.command_line import parse_options, run_program
from jobs.evaluate_options import EvaluateOptions, choose_device, model_name
from jobs.launched import launched_ranks, shared_staged_folder
from jobs.model_source import find_source, open_source
from jobs.result_files import write_results
from jobs.segmenter import Segmenter
from shards.errors import InputError
from shards.reader import ShardReader, open_shards
from shards.scene import decode_scene
from shards.staging import make_folder, require_free

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Run one evaluation from the command line and print its table."""
    options: EvaluateOptions = parse_options(EvaluateOptions, arguments, program="jobs.evaluate")
    with launched_ranks() as ranks:
        records = evaluate(options, ranks)
    if ranks.is_first:
        print(render_markdown(records), end="")


def evaluate(options: EvaluateOptions, ranks: Ranks = ALONE) -> list[Record]:
    """Check all inputs, then load the model, score every test set, and write the results.

    Args:
        ranks: the processes that share the images; the first one measures and writes, the others return
            nothing.

    Raises:
        InputError: an option, test set, shard or checkpoint is wrong. Nothing is written then.
    """
    require_free(options.out)
    if options.cache is not None:
        require_free(options.cache, "--cache")
    ranks.wait()  # before the first one makes the folder
    checkpoint = find_source(options)  # once: a run that still trains saves newer ones
    device = choose_device(options.device)
    protocols = get_protocols(options.protocol)
    if options.cache is not None and any(protocol.size is not None for protocol in protocols):
        raise InputError("--cache: predictions are saved at native size, so without protocol course-512")
    own = read_own_sets(options.sets) if options.sets else ()
    test_sets = find_test_sets(options.datasets, options.limit, own=own)
    for test_set in test_sets:
        check_masks(test_set)
    reader = open_shards([str(options.cityscapes)], "val") if options.cityscapes else None
    segmenter, scores = open_source(checkpoint, device, options, test_sets)
    options = dataclasses.replace(options, scores=scores)
    with shared_staged_folder(options.out, ranks) as folder:
        subject = Subject(model=model_name(options, checkpoint), checkpoint=str(checkpoint))
        if options.cache is not None and ranks.is_first:
            make_folder(options.cache, "--cache")
            write_info(options.cache, CacheInfo(model=subject.model, checkpoint=subject.checkpoint))
        ranks.wait()
        if reader is not None:
            measured = _miou(segmenter, reader, options, folder, ranks)
            subject = dataclasses.replace(
                subject,
                miou=measured.miou,
                miou_ci=measured.miou_ci,
                ece=measured.ece,
                ece_ci=measured.ece_ci,
            )
        cells: list[Cell] = []
        for test_set in test_sets:
            cells += _evaluate_one(segmenter, test_set, protocols, subject, options, folder, ranks)
        records = [cell.record for cell in cells]
        if ranks.is_first:
            write_results(folder, cells, f"{subject.model}: road anomalies")
    logger.info("%s: results of %d test sets", options.out, len(test_sets))
    return records


def _evaluate_one(
    segmenter: Segmenter,
    test_set: TestSet,
    protocols: Sequence[Protocol],
    subject: Subject,
    options: EvaluateOptions,
    folder: Path,
    ranks: Ranks,
) -> list[Cell]:
    logger.info("%s: %d images", test_set.name, len(test_set))
    result = evaluate_test_set(
        segmenter.segment,
        test_set,
        protocols,
        subject,
        window=segmenter.window,
        windows_at_once=options.windows_at_once,
        scores=options.scores,
        num_exhibits=options.pictures,
        components=options.components,
        scratch=folder,
        ranks=ranks,
        keep=_keeper(segmenter, options, test_set.convention.folder),
    )
    if ranks.is_first:
        stems = tuple(frame.stem for frame in test_set.frames)
        convention = test_set.convention
        _finish_cache(options, segmenter, convention.folder, convention.name, convention.is_benchmark, stems)
    for record in result.records:
        assert record.ap is not None
        assert record.fpr95 is not None
        logger.info("  %-10s AP %6.2f  FPR95 %6.2f", record.score, 100 * record.ap, 100 * record.fpr95)
    if result.exhibits:
        picture = draw_grid(f"{subject.model} on {test_set.name}", result.exhibits)
        (folder / f"{test_set.convention.folder}.png").write_bytes(encode_png(picture))
    return result.cells


def _miou(
    segmenter: Segmenter, reader: ShardReader, options: EvaluateOptions, folder: Path, ranks: Ranks
) -> MiouResult:
    count = min(options.limit or len(reader), len(reader))
    logger.info("Cityscapes val: %d images", count)
    mine = range(ranks.rank, count, ranks.count)
    result = evaluate_miou(
        segmenter.segment,
        (decode_scene(reader, i) for i in mine),
        window=segmenter.window,
        windows_at_once=options.windows_at_once,
        num_samples=len(mine),
        scratch=folder,
        ranks=ranks,
        keep=_keeper(segmenter, options, CLOSED_SET),
    )
    if ranks.is_first:
        _finish_cache(options, segmenter, CLOSED_SET, "Cityscapes val", False, tuple(reader.keys[:count]))
    logger.info("  mIoU %.2f, ECE %.2f", 100 * result.miou, 100 * result.ece)
    return result


def _keeper(
    segmenter: Segmenter, options: EvaluateOptions, folder: str
) -> Callable[[int, np.ndarray], None] | None:
    """Return what saves the predictions of each frame of a set; None without --cache."""
    if options.cache is None or segmenter.recorder is None:
        return None
    path, recorder = options.cache / folder, segmenter.recorder

    def keep(position: int, target: np.ndarray) -> None:
        write_frame(path, position, target, recorder.take())

    return keep


def _finish_cache(
    options: EvaluateOptions,
    segmenter: Segmenter,
    folder: str,
    name: str,
    is_benchmark: bool,
    stems: tuple[str, ...],
) -> None:
    if options.cache is not None:
        cached = CachedSet(
            folder=folder, name=name, is_benchmark=is_benchmark, window=segmenter.window, stems=stems
        )
        write_index(options.cache, cached)


if __name__ == "__main__":
    run_program(main)
