"""Score a checkpoint on the anomaly test sets: numbers, tables and pictures.

python -m jobs.evaluate --checkpoint RUN --datasets Validation_Dataset --out RUN/eval

Under `torchrun --nproc_per_node N -m jobs.evaluate ...` N processes share the images; the numbers are the
same. With `--task I/N` they need not even run at the same time. What is finished is kept, so an evaluation
that was killed goes on when it is started again.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from eval.cell import Subject
from eval.kept_cells import KeptSet, unpack_set
from eval.metrics.closed_set import ClosedSetCounts, measure_closed_set
from eval.predict.predictions import CacheInfo
from eval.protocol import Protocol, get_protocols
from eval.ranks import ALONE, Ranks
from eval.report.record import Record
from eval.report.tables import render_markdown
from eval.sets.benchmarks import read_own_sets
from eval.sets.registry import TestSet, check_masks, find_test_sets
from jobs.evaluate_options import EvaluateOptions, choose_device, model_name
from jobs.evaluation_folder import EvaluationFolder, evaluation_folder, require_place, task_folder
from jobs.evaluation_key import closed_set_key, hash_checkpoint, hash_test_set, network_key, set_key
from jobs.evaluation_parts import CLOSED_SET, Plan, Work, cell_name, finish_closed_set, finish_test_set
from jobs.evaluation_shares import merge_closed_set, merge_test_set, share_closed_set, share_test_set
from jobs.launched import launched_ranks, share_object
from jobs.model_source import OwnSource, find_source, open_own, wrap_checkpoint
from jobs.result_files import write_results
from jobs.saved_predictions import SavedPredictions, fingerprint_of
from shards.errors import InputError
from shards.reader import ShardReader, open_shards
from shards.settings import parse_options, run_program
from shards.task import Task, parse_task

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Request:
    """What is evaluated, looked up and checked."""

    options: EvaluateOptions
    checkpoint: Path
    device: torch.device
    protocols: tuple[Protocol, ...]
    test_sets: tuple[TestSet, ...]
    reader: ShardReader | None
    own_model: OwnSource | None
    """Where no checkpoint is evaluated."""

    @property
    def num_samples(self) -> int:
        """Labelled scenes of the closed set that are looked at."""
        available = len(self.reader) if self.reader else 0
        return min(self.options.limit or available, available)


def main(arguments: Sequence[str]) -> None:
    """Run one evaluation from the command line and print its table."""
    options: EvaluateOptions = parse_options(EvaluateOptions, arguments, program="jobs.evaluate")
    with launched_ranks() as ranks:
        records = evaluate(options, ranks)
    if records:
        print(render_markdown(records), end="")


def evaluate(options: EvaluateOptions, ranks: Ranks = ALONE) -> list[Record]:
    """Check all inputs, then load the model, score what is not finished yet, and write the results.

    Args:
        ranks: the processes that share the images; the first one measures and writes, the others return
            nothing.

    Raises:
        InputError: an option, test set, shard or checkpoint is wrong. Nothing is written then.
    """
    task = parse_task(options.task) if options.task else None
    if task is not None and ranks.count > 1:
        raise InputError(f"--task {options.task}: tasks are single processes; under torchrun leave it out")
    if task is not None and options.earlier == "ignore":
        raise InputError("--task: --earlier ignore would drop what other tasks did; give replace")
    request = _read_request(options)
    if task is not None:
        return _evaluate_share(request, task)
    with evaluation_folder(options.out, options.earlier, ranks) as folder:
        plan = share_object(lambda: _plan(request, folder), ranks)
        work = _begin(request, plan, folder, ranks)
        if request.reader is not None:
            finish_closed_set(work, request.reader, request.num_samples)
        for test_set in request.test_sets:
            finish_test_set(work, test_set, request.protocols)
        return _write(request, plan, folder) if ranks.is_first else []


def _evaluate_share(request: Request, task: Task) -> list[Record]:
    """Score the images of one task; where all others have done so, measure and write the results."""
    options, reader, protocols = request.options, request.reader, request.protocols
    with task_folder(options.out, options.earlier, task) as folder:
        plan = _plan(request, folder)
        work = _begin(request, plan, folder, ALONE)
        if reader is not None:
            share_closed_set(work, reader, request.num_samples, task)
        for test_set in request.test_sets:
            share_test_set(work, test_set, protocols, task)
        with folder.locked():
            plan.missing.intersection_update(_plan(request, folder).missing)  # another may have been first
            done = [merge_test_set(work, test_set, protocols, task) for test_set in request.test_sets]
            if reader is not None:
                done.append(merge_closed_set(work, reader, request.num_samples, task))
            if all(done):
                return _write(request, plan, folder)
    logger.info("%s: task %s is done; others are not yet", options.out, task)
    return []


def _write(request: Request, plan: Plan, folder: EvaluationFolder) -> list[Record]:
    """Write the results of what is kept, which is all now."""
    sets = _read_sets(request, folder)
    written = folder.scratch / "results"
    written.mkdir()
    write_results(written, sets, model_name(request.options, request.checkpoint))
    folder.finish(written, plan.keys)
    logger.info("%s: results of %d test sets", request.options.out, len(request.test_sets))
    return [cell.record for kept in sets for cell in kept.cells]


def _read_request(options: EvaluateOptions) -> Request:
    """Look everything up, in the order of what costs least."""
    require_place(options.out)
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
    own_model = open_own(checkpoint, options, test_sets)
    if own_model is not None:
        options = dataclasses.replace(options, scores=own_model.scores)
    return Request(options, checkpoint, device, protocols, test_sets, reader, own_model)


def _plan(request: Request, folder: EvaluationFolder) -> Plan:
    """Compare what is asked for with what is kept."""
    options = request.options
    content = request.own_model.fingerprint if request.own_model else hash_checkpoint(request.checkpoint)
    network = network_key(content, options, request.device)
    data = {test_set.convention.folder: hash_test_set(test_set) for test_set in request.test_sets}
    keys = {
        cell_name(name, protocol): {**network, **set_key(of_data, protocol, options)}
        for name, of_data in data.items()
        for protocol in request.protocols
    }
    if request.reader is not None:
        of_closed_set = closed_set_key(request.reader, request.num_samples)
        keys[CLOSED_SET] = {**network, **of_closed_set}
        data[CLOSED_SET] = of_closed_set["data"]
    missing = set(keys) - folder.find(keys)
    if options.cache is not None:
        saved = SavedPredictions(options.cache, _cache_info(request, network))
        unsaved = {name for name, of_data in data.items() if not saved.has(name, of_data)}
        missing |= {name for name in keys if name.rpartition(".")[0] in unsaved or name in unsaved}
    if len(missing) < len(keys):
        logger.info("%s: %d of %d parts are kept", options.out, len(keys) - len(missing), len(keys))
    return Plan(network, data, keys, missing)


def _begin(request: Request, plan: Plan, folder: EvaluationFolder, ranks: Ranks) -> Work:
    """Load the network, if anything is left to do."""
    options, saved = request.options, None
    segmenter = None
    if plan.missing and request.own_model is not None:
        segmenter = request.own_model.segmenter
    elif plan.missing:
        segmenter = wrap_checkpoint(request.checkpoint, request.device, options)
    if plan.missing and ranks.is_first:
        folder.withdraw_results()
    if options.cache is not None:
        saved = SavedPredictions(options.cache, _cache_info(request, plan.network))
        ranks.wait()
        if ranks.is_first:
            saved.start()
        ranks.wait()
    return Work(options, plan, folder, ranks, segmenter, saved)


def _cache_info(request: Request, network: dict[str, str]) -> CacheInfo:
    return CacheInfo(
        model=model_name(request.options, request.checkpoint),
        checkpoint=str(request.checkpoint),
        fingerprint=fingerprint_of(network),
    )


def _read_sets(request: Request, folder: EvaluationFolder) -> list[KeptSet]:
    """Read all parts back, as the model's that is evaluated."""
    subject = Subject(
        model=model_name(request.options, request.checkpoint), checkpoint=str(request.checkpoint)
    )
    if request.reader is not None:
        arrays = folder.read(CLOSED_SET).arrays
        found = measure_closed_set(ClosedSetCounts(arrays["confusion"], arrays["confidence"]))
        subject = dataclasses.replace(
            subject, miou=found.miou, miou_ci=found.miou_ci, ece=found.ece, ece_ci=found.ece_ci
        )
        logger.info("Cityscapes val: mIoU %.2f, ECE %.2f", 100 * found.miou, 100 * found.ece)
    names = [cell_name(t.convention.folder, p) for t in request.test_sets for p in request.protocols]
    return [unpack_set(kept.content, kept.arrays, subject) for kept in map(folder.read, names)]


if __name__ == "__main__":
    run_program(main)
