"""Writer of shard folders: plan, tar files, manifest; several threads and array tasks, resumable.

A shard appears in the working folder when it is complete, with its entry of the manifest beside it. A single
run works in a folder of its own, which it renames at the end or removes. Array tasks, and runs that may be
resumed, share `.NAME.parts`: each writes those of its shards that are not there, and the task that finds all
of them completes the folder under a lock. The bytes are the same however the work was shared.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from shards.cores import count_cores
from shards.errors import InputError
from shards.files import (
    from_json,
    hash_file,
    hold_lock,
    partial_file,
    read_json,
    remove_partials,
    this_process,
    to_json,
    write_atomically,
)
from shards.index import build_index, write_index
from shards.manifest import MANIFEST_NAME, Manifest, ShardEntry, read_manifest, write_manifest
from shards.output import make_folder, publish, require_free, staged_folder
from shards.prepare.plan import EncodedSample, FolderPlan, ShardPlan
from shards.progress import Progress

logger = logging.getLogger(__name__)

PLAN_NAME = "plan.json"
ENTRY_ENDING = ".entry.json"
"""Ending of a finished shard's entry, while the manifest does not exist yet."""


class _Stopped(Exception):
    """The run failed or was interrupted elsewhere; what this thread does is no longer wanted."""


def write_folder(
    plan: FolderPlan, out: Path, *, workers: int = 0, task: tuple[int, int] | None = None
) -> None:
    """Write the shards that `plan` describes, and complete `out` when all of them are there.

    On an error or Ctrl-C all threads stop after their current sample.

    Args:
        workers: number of threads; 0 takes one per processor.
        task: number and count of those that share the shards, with `.NAME.parts` as the working folder; None
            writes all in a folder of its own.
    """
    began = time.monotonic()
    workers = workers or count_cores()
    if task is not None:
        manifest = _write_share(plan, out, workers, task)
    else:
        with staged_folder(out) as folder:
            _write_missing(plan.shards, folder, workers, plan.kind)
            manifest = _complete(plan, folder)
    if manifest is not None:
        megabytes = sum(entry.num_bytes for entry in manifest.shards) / 1e6
        counts = (manifest.num_samples, len(manifest.shards), megabytes, time.monotonic() - began)
        logger.info("%s: %d samples in %d shards, %.1f MB, %.1f s", out, *counts)


def _write_share(plan: FolderPlan, out: Path, workers: int, task: tuple[int, int]) -> Manifest | None:
    """Write a task's share, with others; return the manifest where it, alone, completes the folder."""
    folder = out.absolute().with_name(f".{out.name}.parts")
    lock = folder.with_name(folder.name + ".lock")
    make_folder(folder.parent)
    with hold_lock(lock, wait_s=math.inf, owner=this_process(), shared=True):
        if _is_complete(plan, out):
            lock.unlink(missing_ok=True)  # nobody needs it any more
            logger.info("%s: is complete already", out)
            return None
        require_free(out)
        make_folder(folder)
        _require_same_plan(folder, plan)
        _write_missing(plan.shards[task[0] :: task[1]], folder, workers, plan.kind)
        missing = [shard.name for shard in plan.shards if not _is_done(folder, shard)]
    if not missing and (manifest := _complete_parts(plan, folder, out, lock)):
        return manifest
    rest = f"{len(missing)} shards of other tasks are missing yet" if missing else "all are complete"
    logger.info("%s: task %d/%d has written its share; %s", out, *task, rest)
    return None


def write_shard(path: Path, samples: Iterable[EncodedSample]) -> tuple[str, ...]:
    """Write one tar file and return the keys of its samples, in order.

    Plain USTAR headers; every member has mode 0644, time 0 and no owner, so that equal samples give equal
    bytes on any machine. Members of a sample are sorted by suffix.
    """
    from webdataset import TarWriter  # loads torch, which only a process that writes should wait for

    keys = []
    with path.open("wb") as file, TarWriter(file, "", "", 0o644, False, False, mtime=0) as writer:
        writer.tarstream.format = tarfile.USTAR_FORMAT  # TarWriter takes a format, and forgets it
        for key, members in samples:
            writer.write({"__key__": key, **members})
            keys.append(key)
    return tuple(keys)


def _entry_path(folder: Path, shard: ShardPlan) -> Path:
    return folder / (shard.name + ENTRY_ENDING)


def _is_done(folder: Path, shard: ShardPlan) -> bool:
    return _entry_path(folder, shard).is_file() or (folder / MANIFEST_NAME).is_file()


def _is_complete(plan: FolderPlan, out: Path) -> bool:
    """Say whether another task has completed `out` with these options."""
    if not (out / MANIFEST_NAME).is_file():
        return False
    found, wanted = read_manifest(out), plan.manifest()
    same_kind = (found.kind, found.image_encoding) == (wanted.kind, wanted.image_encoding)
    return same_kind and found.options == wanted.options


def _complete(plan: FolderPlan, folder: Path) -> Manifest:
    """Write the manifest and remove what only an unfinished folder holds."""
    if (folder / MANIFEST_NAME).is_file():  # of a task that was killed on its way through here
        manifest = read_manifest(folder)
    else:
        manifest = plan.manifest(tuple(_read_entry(_entry_path(folder, shard)) for shard in plan.shards))
        for name, text in plan.texts.items():
            write_atomically(folder / name, text)
        write_manifest(manifest, folder)
    for path in [*(_entry_path(folder, shard) for shard in plan.shards), folder / PLAN_NAME]:
        path.unlink(missing_ok=True)
    remove_partials(folder)
    return manifest


def _complete_parts(plan: FolderPlan, folder: Path, out: Path, lock: Path) -> Manifest | None:
    """Make `out` of the parts; None where another task was first."""
    with hold_lock(lock, wait_s=math.inf, owner=this_process()):
        manifest = None
        if folder.is_dir():
            manifest = _complete(plan, folder)
            publish(folder, out)
        lock.unlink(missing_ok=True)
        return manifest


def _read_entry(path: Path) -> ShardEntry:
    try:
        return read_json(ShardEntry, path)
    except InputError as error:
        raise InputError(f"{path}: is damaged; remove it and run its task again ({error})") from None


def _require_same_plan(folder: Path, plan: FolderPlan) -> None:
    options = {**plan.manifest().options, "kind": plan.kind, "image_encoding": plan.image_encoding}
    shards = [[shard.name, shard.num_samples] for shard in plan.shards]
    text = to_json({"options": options, "shards": shards}, indent=None, sort_keys=True)
    path = folder / PLAN_NAME
    if not path.is_file():
        write_atomically(path, text)
    if (before := path.read_text(encoding="utf-8")) == text:
        return
    earlier = from_json(dict[str, Any], before, str(path))
    old = earlier["options"]
    names = sorted(name for name in old.keys() | options.keys() if old.get(name) != options.get(name))
    changed = f"files ({len(earlier['shards'])} shards, now {len(shards)}, or other numbers of samples)"
    if names:
        changed = f"options ({names[0]}: {old.get(names[0])}, now {options.get(names[0])})"
    advice = "give the same, or remove the folder to start anew"
    raise InputError(f"{folder}: was begun with other {changed}; {advice}")


def _write_missing(shards: Sequence[ShardPlan], folder: Path, workers: int, title: str) -> None:
    todo = [shard for shard in shards if not _is_done(folder, shard)]
    lock, stop = threading.Lock(), threading.Event()
    with (
        _ctrl_c_noticed() as asked,
        Progress(total=sum(s.num_samples for s in todo), desc=title, unit="sample") as bar,
        ThreadPoolExecutor(workers) as pool,  # decoders, encoders and hashes hold no lock
    ):

        def after_sample() -> None:
            if stop.is_set():
                raise _Stopped
            with lock:
                bar.update()

        try:
            pending = {pool.submit(_write_with_entry, shard, folder, after_sample) for shard in todo}
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                if asked.is_set():
                    raise KeyboardInterrupt
                for future in done:
                    future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def _ctrl_c_noticed() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets; an exception might be swallowed in a callback or leave a lock held."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals are the main thread's
        return
    before = signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _write_with_entry(shard: ShardPlan, folder: Path, after_sample: Callable[[], object]) -> None:
    """Write a shard, its index, and its entry of the manifest."""

    def samples() -> Iterator[EncodedSample]:
        for sample in shard.samples():
            yield sample
            after_sample()

    if _is_done(folder, shard):
        return  # another process with the same share was faster
    path = folder / shard.name
    with partial_file(path) as partial_path:
        keys = write_shard(partial_path, samples())
    write_index(path, build_index(path))
    entry = ShardEntry(shard.name, shard.split, len(keys), path.stat().st_size, hash_file(path), keys)
    write_atomically(_entry_path(folder, shard), to_json(entry, indent=None))
