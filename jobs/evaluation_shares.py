"""An evaluation in several tasks that know nothing of each other, such as those of a SLURM array.

Task I of N scores the images I, I + N, ... of every set and leaves them in OUT/.shares, whole or not at all:

    .shares/{test set}.{size}/maps/           score maps of all tasks, a file per image
    .shares/{test set}.{size}/{I}-of-{N}/     pooled scores, and `key.json`: what they were made from
    .shares/cityscapes/{I}-of-{N}.npz         counts of the closed set

Whichever task finds all shares of all sets measures them. Images are put in the order of the set, so the
numbers are those of one process, and a task that starts again goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.cell import TestSetResult
from eval.evaluate import Pass, answer_by_windows, collect, make_exhibits, measure
from eval.kept_file import SUFFIX, read_kept, write_kept
from eval.maps import MapStore
from eval.metrics.closed_set import ClosedSetCounts
from eval.pool import ScorePool
from eval.predict.predictions import CLOSED_SET
from eval.protocol import Protocol
from eval.ranks import Ranks
from eval.sets.registry import TestSet
from jobs.evaluation_folder import SHARES
from jobs.evaluation_parts import (
    NOBODY,
    Work,
    cell_name,
    count_share,
    keep_closed_set,
    keep_set,
    missing_passes,
)
from shards.reader import ShardReader
from shards.task import Task

logger = logging.getLogger(__name__)


def share_closed_set(work: Work, reader: ShardReader, count: int, task: Task) -> None:
    """Count this task's samples, unless it has before."""
    key, path = work.plan.keys[CLOSED_SET], _closed_set_share(work, task)
    kept = read_kept(path)
    if CLOSED_SET in work.plan.missing and (kept is None or kept.key != key):
        rows = count_share(work, reader, count, Ranks(task.number, task.count))
        write_kept(path, key, None, rows._asdict())


def merge_closed_set(work: Work, reader: ShardReader, count: int, task: Task) -> bool:
    """Join the counts of all tasks; return whether all were there."""
    if CLOSED_SET not in work.plan.missing:
        return True
    found = [read_kept(_closed_set_share(work, Task(i, task.count))) for i in range(task.count)]
    kept = [share for share in found if share is not None and share.key == work.plan.keys[CLOSED_SET]]
    if len(kept) < task.count:
        return False
    joined = []
    for name in ClosedSetCounts._fields:
        parts = [share.arrays[name] for share in kept]
        whole = np.empty((count, *max(parts, key=len).shape[1:]), parts[0].dtype)
        for i, part in enumerate(parts):
            whole[i :: task.count] = part.reshape(-1, *whole.shape[1:])
        joined.append(whole)
    keep_closed_set(work, reader, count, ClosedSetCounts(*joined))
    return True


def _closed_set_share(work: Work, task: Task) -> Path:
    return work.folder.path / SHARES / CLOSED_SET / f"{_name(task)}{SUFFIX}"


def share_test_set(work: Work, test_set: TestSet, protocols: Sequence[Protocol], task: Task) -> None:
    """Score this task's images of a test set, unless it has before."""
    for of_size in missing_passes(work, test_set, protocols):
        folder = _pass_folder(work, test_set, of_size)
        share = folder / _name(task)
        if _read_key(share) != _pass_key(work, test_set, of_size):
            _collect(work, _make_pass(work, test_set, of_size), folder, task)
            (folder / f"{share.name}.new" / "key.json").write_text(
                json.dumps(_pass_key(work, test_set, of_size)), encoding="utf-8"
            )
            shutil.rmtree(share, ignore_errors=True)
            (folder / f"{share.name}.new").rename(share)


def _collect(work: Work, over: Pass, folder: Path, task: Task) -> None:
    """Score this task's images into a share that has another name until it is whole."""
    segmenter, convention = work.segmenter, over.test_set.convention
    assert segmenter is not None
    answer = answer_by_windows(segmenter.segment, segmenter.window, work.options.windows_at_once, over.scores)
    unfinished = folder / f"{_name(task)}.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    ranks, keep = Ranks(task.number, task.count), work.keeper(convention.folder)
    logger.info("%s: task %s", over.test_set.name, task)
    with ScorePool(over.scores, work.folder.scratch) as pool:
        collect(over, answer, pool, MapStore(folder / "maps"), ranks, keep)
        pool.save(unfinished)


def merge_test_set(work: Work, test_set: TestSet, protocols: Sequence[Protocol], task: Task) -> bool:
    """Measure the images of all tasks; return whether all were there."""
    is_whole = True
    for of_size in missing_passes(work, test_set, protocols):
        folder = _pass_folder(work, test_set, of_size)
        key = _pass_key(work, test_set, of_size)
        shares = [folder / _name(Task(i, task.count)) for i in range(task.count)]
        if any(_read_key(share) != key for share in shares):
            is_whole = False
            continue
        over, maps = _make_pass(work, test_set, of_size), MapStore(folder / "maps")
        with ScorePool(over.scores, work.folder.scratch) as pool:
            for share in shares:
                with ScorePool.load(share, work.folder.scratch) as other:
                    pool.merge(other)
            cells = measure(over, pool, maps, of_size, NOBODY)
            result = TestSetResult(cells, make_exhibits(over, maps))
        keep_set(work, test_set, of_size, result)
        shutil.rmtree(folder)
    return is_whole


def _name(task: Task) -> str:
    return f"{task.number}-of-{task.count}"


def _make_pass(work: Work, test_set: TestSet, protocols: Sequence[Protocol]) -> Pass:
    options = work.options
    return Pass(
        test_set=test_set,
        size=protocols[0].size,
        scores=options.scores,
        components=options.components,
        num_exhibits=options.pictures,
    )


def _pass_folder(work: Work, test_set: TestSet, protocols: Sequence[Protocol]) -> Path:
    size = "x".join(map(str, protocols[0].size or ("native",)))
    return work.folder.path / SHARES / f"{test_set.convention.folder}.{size}"


def _pass_key(work: Work, test_set: TestSet, protocols: Sequence[Protocol]) -> dict[str, str]:
    """Return what the pooled scores depend on: not on how they are read afterwards."""
    key = dict(work.plan.keys[cell_name(test_set.convention.folder, protocols[0])])
    del key["protocol"]
    return key


def _read_key(share: Path) -> dict[str, str] | None:
    try:
        found = json.loads((share / "key.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
