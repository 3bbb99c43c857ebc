"""A finished result on disk, with the key of what it was made from: taken only where every part of it agrees.

One `.npz` per result: arrays, and a member `head` of JSON. Every member has a checksum, so a file that was
cut off or changed is found out when it is read.
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.files import write_atomically

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of the files; one of another format is not read."""
SUFFIX = ".npz"

Key = Mapping[str, str]
"""What a result depends on, by name."""


class Kept(NamedTuple):
    """What a file holds."""

    key: dict[str, str]
    content: Any
    """As JSON gives it back."""
    arrays: dict[str, np.ndarray]


def write_kept(path: Path, key: Key, content: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a result, complete or not at all, in place of what is there.

    Args:
        content: anything that JSON holds.
        arrays: by name, which is not `head`.
    """
    assert "head" not in arrays
    head = json.dumps({"format": FORMAT, "key": dict(key), "content": content})
    file = io.BytesIO()
    np.savez_compressed(file, head=np.frombuffer(head.encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, file.getvalue())


def read_kept(path: Path) -> Kept | None:
    """Read a result; None where there is none, or none that can be read, which the log says."""
    if not path.is_file():
        return None
    try:
        # From memory: NumPy leaves a file open whose end is missing.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        head = json.loads(arrays.pop("head").tobytes())
        if head["format"] != FORMAT:
            logger.warning("%s: of format %s, not %d; it is computed anew", path, head["format"], FORMAT)
            return None
        return Kept({str(k): str(v) for k, v in head["key"].items()}, head["content"], arrays)
    except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        logger.warning("%s: is damaged (%s); it is computed anew", path, error)
        return None


def differing(kept: Key, asked: Key) -> list[str]:
    """Name what differs between two keys, in the order of `asked`."""
    names = [*asked, *(name for name in kept if name not in asked)]
    return [name for name in names if kept.get(name) != asked.get(name)]
