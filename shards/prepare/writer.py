"""Tar files whose bytes depend on their samples alone, written by several processes."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import signal
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TypeVar

import cv2
from tqdm import tqdm

from shards.files import hash_file, partial_file, write_atomically
from shards.index import build_index, write_index
from shards.manifest import ShardEntry

MIN_SHARDS = 8
"""A small set is still cut into this many shards (or 1 per sample), for readers that want one per worker."""

ENTRY_ENDING = ".entry.json"
"""Of a finished shard's entry, while the manifest does not exist yet; see `shards/prepare/parts.py`."""

EncodedSample = tuple[str, Mapping[str, bytes]]
"""A sample's key, and its members by suffix, such as `image.png`."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be written."""

    name: str
    """File name, such as `cityscapes-train-000000.tar`."""
    split: str
    num_samples: int
    samples: Callable[[], Iterable[EncodedSample]]
    """Makes the samples, in order; runs in another process, so it must be picklable (a `partial`)."""


class _Stopped(Exception):
    """The run failed or was interrupted elsewhere; what this worker does is no longer wanted."""


def split_into_shards(
    items: Sequence[Item], largest: int, weights: Sequence[int] | None = None
) -> list[list[Item]]:
    """Cut a sequence into consecutive pieces of about equal weight, for one shard each.

    There are as many pieces as `largest` asks for, but at least `MIN_SHARDS` where there are so many samples.
    Without weights the sizes differ by at most 1; with weights a piece may weigh more than `largest`, by less
    than its last item.

    Args:
        items: what to distribute.
        largest: most samples in one shard, at least 1.
        weights: number of samples that each item yields, at least 1; 1 each if absent.
    """
    weights = [1] * len(items) if weights is None else weights
    total = sum(weights)
    num_shards = max(-(-total // largest), min(total, MIN_SHARDS))
    pieces: list[list[Item]] = [[] for _ in range(num_shards)]
    start = 0
    for item, weight in zip(items, weights, strict=True):
        pieces[start * num_shards // total].append(item)
        start += weight
    return [piece for piece in pieces if piece]


def write_shards(
    plans: Sequence[ShardPlan],
    folder: Path,
    *,
    workers: int,
    description: str = "shards",
    record: bool = False,
) -> tuple[ShardEntry, ...]:
    """Write every planned shard into `folder`; the result does not depend on `workers`.

    On an error or Ctrl-C all workers stop after their current sample, and the folder is left to the caller,
    who stages it. Workers also end when this process is killed.

    Args:
        plans: what to write, one shard each; the order of the result.
        folder: an existing folder.
        workers: number of processes; with 1, or one shard only, no other process is started.
        description: title of the progress bar.
        record: write each shard's entry beside it (`ENTRY_ENDING`) as soon as the shard is complete.

    Raises:
        InputError: raised while making a sample, as `ShardPlan.samples` documents.
        RuntimeError: a worker process died, for lack of memory most likely.
    """
    bar = tqdm(total=sum(plan.num_samples for plan in plans), desc=description, unit="sample", disable=None)
    workers = min(workers, len(plans))
    with bar:
        if workers <= 1:
            return tuple(_write_shard(plan, folder, lambda: bar.update(), record) for plan in plans)
        return _write_in_processes(plans, folder, workers, bar, record)


def write_shard(path: Path, samples: Iterable[EncodedSample]) -> tuple[str, ...]:
    """Write one tar file and return the keys of its samples, in order.

    Plain USTAR headers; every member has mode 0644, time 0 and no owner, so that equal samples give equal
    bytes on any machine. Members of a sample are sorted by suffix.
    """
    keys = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, members in samples:
            for suffix in sorted(members):
                header = tarfile.TarInfo(f"{key}.{suffix}")  # time, user and group are 0, mode is 0644
                header.size = len(members[suffix])
                archive.addfile(header, io.BytesIO(members[suffix]))
            keys.append(key)
    return tuple(keys)


def _write_shard(
    plan: ShardPlan, folder: Path, after_sample: Callable[[], object], record: bool
) -> ShardEntry:
    def samples() -> Iterator[EncodedSample]:
        for sample in plan.samples():
            yield sample
            after_sample()

    path = folder / plan.name
    with partial_file(path) as partial:
        keys = write_shard(partial, samples())
    write_index(path, build_index(path))
    entry = ShardEntry(
        name=plan.name,
        split=plan.split,
        num_samples=len(keys),
        num_bytes=path.stat().st_size,
        sha256=hash_file(path),
        keys=keys,
    )
    if record:
        write_atomically(folder / (plan.name + ENTRY_ENDING), json.dumps(asdict(entry)) + "\n")
    return entry


def _write_in_processes(
    plans: Sequence[ShardPlan], folder: Path, workers: int, bar: tqdm, record: bool
) -> tuple[ShardEntry, ...]:
    # Workers are spawned: a fork of a process with threads (torch, tqdm) may deadlock.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    entries: dict[str, ShardEntry] = {}
    with (
        _ctrl_c_noticed() as interrupted,
        ProcessPoolExecutor(workers, context, _start_worker, (stop,)) as pool,
    ):
        try:
            with _ctrl_c_held_back():
                pending = {pool.submit(_write_in_worker, plan, folder, record) for plan in plans}
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                if interrupted.is_set():
                    raise KeyboardInterrupt
                for entry in (future.result() for future in done):
                    entries[entry.name] = entry
                    bar.update(entry.num_samples)
        except BaseException as error:
            stop.set()
            pool.shutdown(cancel_futures=True)  # waits: a worker that is still starting needs this process
            if isinstance(error, BrokenProcessPool):
                raise RuntimeError(
                    f"one of {workers} workers died, for lack of memory most likely"
                ) from error
            raise
    return tuple(entries[plan.name] for plan in plans)


@contextlib.contextmanager
def _ctrl_c_noticed() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets, instead of raising in the middle of whatever runs just then.

    An exception out of a signal may be swallowed, if it strikes in a callback, or leave a lock held.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals are the main thread's
        return
    before = signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Let processes started in this block never see Ctrl-C, so that only this one reacts to it.

    The signal mask is inherited. A Ctrl-C in the block reaches this process at the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_stop: Event | None = None  # set in worker processes


def _start_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    cv2.setNumThreads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when the main process is gone, however that died; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _write_in_worker(plan: ShardPlan, folder: Path, record: bool) -> ShardEntry:
    return _write_shard(plan, folder, _raise_if_stopped, record)


def _raise_if_stopped() -> None:
    assert _stop is not None
    if _stop.is_set():
        raise _Stopped
