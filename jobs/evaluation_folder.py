"""The folder of an evaluation: finished parts are kept in it, so that one that was killed goes on.

OUT/cells/{test set}.{protocol}.npz    finished, with the key of what they were made from
OUT/.scratch/                          pools and maps of the part under way; gone afterwards
OUT/.shares/                           of tasks, until all have scored theirs; see evaluation_shares.py
OUT/results.json, ...                  written when all cells are there, results.json last
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eval.kept_file import SUFFIX, Kept, Key, differing, read_kept, write_kept
from eval.ranks import Ranks
from shards.errors import InputError
from shards.files import LockTaken, hold_lock, make_folder, require_free, this_process
from shards.task import Task

logger = logging.getLogger(__name__)

CELLS, SCRATCH, SHARES, LOCK = "cells", ".scratch", ".shares", ".lock"
RESULTS = "results.json"
Earlier = Literal["continue", "replace", "ignore"]


class EvaluationFolder:
    """Reads and writes what is kept."""

    def __init__(self, path: Path, earlier: Earlier, scratch: str = SCRATCH) -> None:
        """Use a folder that `evaluation_folder` or `task_folder` opened.

        Args:
            earlier: what is done with what an earlier evaluation left; see `EvaluateOptions`.
            scratch: name of the folder within for what is under way.
        """
        self.path = path
        self.scratch = path / scratch
        self._earlier = earlier

    def find(self, keys: Mapping[str, Key]) -> set[str]:
        """Return the names whose kept result has the key asked for.

        Raises:
            InputError: finished results would lose something that they were made from.
        """
        kept = {path.name.removesuffix(SUFFIX): path for path in (self.path / CELLS).glob(f"*{SUFFIX}")}
        found, lost = set(), []
        for name, path in sorted(kept.items()):
            content = None if self._earlier == "ignore" else read_kept(path)
            if name not in keys:
                lost.append(f"{name}, which is not asked for now")
            elif content is not None and (names := differing(content.key, keys[name])):
                lost.append(f"{name} with other {' and '.join(names)}")
                if not (self.path / RESULTS).is_file() or self._earlier == "replace":
                    logger.info("%s: kept with other %s; computed anew", name, " and ".join(names))
            elif content is not None:
                found.add(name)
        if lost and self._earlier == "continue" and (self.path / RESULTS).is_file():
            raise InputError(
                f"--out {self.path}: holds results of {lost[0]}; --earlier replace puts the new ones in "
                f"their place"
            )
        return found

    def withdraw_results(self) -> None:
        """Remove results that are being replaced: until new ones are there, they would speak for others."""
        if self._earlier != "continue":
            (self.path / RESULTS).unlink(missing_ok=True)

    def read(self, name: str) -> Kept:
        """Read what `find` found or `write` wrote."""
        kept = read_kept(self.path / CELLS / f"{name}{SUFFIX}")
        if kept is None:
            raise InputError(f"{self.path / CELLS / name}{SUFFIX}: was removed or damaged meanwhile")
        return kept

    def write(self, name: str, key: Key, content: Any, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep a result."""
        write_kept(self.path / CELLS / f"{name}{SUFFIX}", key, content, arrays)

    def finish(self, written: Path, keys: Mapping[str, Key]) -> None:
        """Take the files of a finished evaluation over, and drop what no longer belongs to it.

        Args:
            written: folder within `scratch`; its results.json comes last, so that it speaks for the others.
            keys: all that the results are made of.
        """
        (self.path / RESULTS).unlink(missing_ok=True)
        for path in (self.path / CELLS).glob(f"*{SUFFIX}"):
            name = path.name.removesuffix(SUFFIX)
            if name not in keys:
                (self.path / f"{name.rpartition('.')[0]}.png").unlink(missing_ok=True)
                path.unlink()
        for path in sorted(written.iterdir(), key=lambda path: path.name == RESULTS):
            if path.is_dir():
                shutil.rmtree(self.path / path.name, ignore_errors=True)
            path.replace(self.path / path.name)
        shutil.rmtree(self.path / SHARES, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait until no other task measures, and keep it so."""
        with hold_lock(self.path / CELLS / LOCK, wait_s=math.inf, owner=this_process()):
            yield


def require_place(out: Path) -> None:
    """Check that `out` is new, empty or an evaluation's.

    Raises:
        InputError: it holds other files.
    """
    if not (out / CELLS).is_dir():
        require_free(out)


@contextmanager
def evaluation_folder(out: Path, earlier: Earlier, ranks: Ranks) -> Iterator[EvaluationFolder]:
    """Open `out`, which is new, empty or an earlier evaluation's, for all ranks.

    Raises:
        InputError: it holds other files, or another evaluation is writing to it.
    """
    folder = EvaluationFolder(out.absolute(), earlier)
    if not ranks.is_first:
        ranks.wait()
        yield folder
        ranks.wait()
        return
    require_place(out)
    make_folder(out / CELLS)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(hold_lock(out / CELLS / LOCK, wait_s=0.0, owner=this_process()))
        except LockTaken:
            raise InputError(f"--out {out}: another evaluation is writing to it") from None
        try:
            shutil.rmtree(folder.scratch, ignore_errors=True)  # of one that was killed
            folder.scratch.mkdir()
            ranks.wait()
            yield folder
            ranks.wait()
        finally:
            shutil.rmtree(folder.scratch, ignore_errors=True)
            _remove_if_empty(out)


@contextmanager
def task_folder(out: Path, earlier: Earlier, task: Task) -> Iterator[EvaluationFolder]:
    """Open `out`, as above, for one of several tasks, each of which does so.

    Raises:
        InputError: it holds other files.
    """
    require_place(out)
    make_folder(out / CELLS)
    folder = EvaluationFolder(out.absolute(), earlier, f"{SCRATCH}-{task.number}")
    shutil.rmtree(folder.scratch, ignore_errors=True)
    folder.scratch.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder.scratch, ignore_errors=True)


def _remove_if_empty(out: Path) -> None:
    """Leave nothing where an evaluation failed before anything was finished."""
    if [path.name for path in (out / CELLS).iterdir()] == [LOCK] and len(list(out.iterdir())) == 1:
        shutil.rmtree(out)
