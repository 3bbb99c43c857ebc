"""Saving the network's predictions while an evaluation runs, for `jobs.temperature`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from eval.kept_file import Key
from eval.predict.predictions import (
    CachedSet,
    CacheInfo,
    PredictionRecorder,
    read_index,
    read_info,
    remove_index,
    write_frame,
    write_index,
    write_info,
)
from shards.errors import InputError
from shards.files import make_folder, require_free


class SavedPredictions:
    """A cache under construction; sets that an earlier run finished stay."""

    def __init__(self, cache: Path, info: CacheInfo) -> None:
        """Remember the folder.

        Args:
            cache: new, empty, or of an evaluation of the same network that was not finished.
            info: whose predictions they are.

        Raises:
            InputError: the folder holds other files, or another network's predictions.
        """
        self._cache, self._info = cache, info
        before = read_info(cache)
        if before is None:
            require_free(cache, "--cache")
        elif before.fingerprint != info.fingerprint:
            raise InputError(
                f"--cache {cache}: holds predictions of {before.checkpoint} with other weights, code or "
                f"settings; choose another folder or empty it"
            )

    def start(self) -> None:
        """Make the folder."""
        make_folder(self._cache, "--cache")
        write_info(self._cache, self._info)

    def has(self, folder: str, fingerprint: str) -> bool:
        """Whether a set is complete, of this data."""
        found = read_index(self._cache, folder)
        return found is not None and found.fingerprint == fingerprint

    def keeper(self, folder: str, recorder: PredictionRecorder | None) -> Callable[[int, np.ndarray], None]:
        """Return what saves the predictions of each frame of a set, which is unfinished from now on."""
        assert recorder is not None
        remove_index(self._cache, folder)

        def keep(position: int, target: np.ndarray) -> None:
            write_frame(self._cache / folder, position, target, recorder.take())

        return keep

    def finish(self, cached: CachedSet) -> None:
        """Say that all frames of a set are there."""
        write_index(self._cache, cached)


def fingerprint_of(key: Key) -> str:
    """Return a key as one word."""
    return hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
