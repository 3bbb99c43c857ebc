"""A folder of RGBA PNG files as objects to paste: alpha is the mask."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from shards.cutout import Cutout, crop_to_mask, shrink_cutout
from shards.errors import InputError

_HEADER = slice(16, 26)
"""Of a PNG file: width, height (4 bytes each), bits per channel, kind of colour."""
_WITH_ALPHA = {(8, 6): "RGBA", (8, 4): "grey with alpha"}


class PngFolder:
    """The PNG files of a folder and of the folders in it, by name; a file's folder names its category."""

    def __init__(self, folder: Path) -> None:
        """List the files, and read the first bytes of each.

        Raises:
            InputError: there are none, or one has no alpha channel of 8 bits.
        """
        self.folder = folder
        found = [path for pattern in ("*.png", "*/*.png") for path in folder.glob(pattern)]
        self.paths = sorted(path for path in found if not path.name.startswith("."))
        if not self.paths:
            raise InputError(
                f"paste.bank: {folder}: holds neither manifest.json, which jobs.prepare writes, nor PNG files"
            )
        for path in self.paths:
            _require_alpha(path)
        self.keys = tuple(path.relative_to(folder).with_suffix("").as_posix() for path in self.paths)
        self._load = lru_cache(maxsize=8)(_load_png)

    def __len__(self) -> int:
        return len(self.paths)

    def category(self, index: int) -> str:
        """Return the name of the folder that the file lies in."""
        return self.paths[index].parent.name

    def shape(self, index: int) -> tuple[int, int]:
        """Return (height, width) of an object, cropped to where it is not transparent."""
        height, width = self._cutout(index).mask.shape
        return height, width

    def decode(self, index: int, shrink: int) -> Cutout:
        """Decode an object at a fraction of its size."""
        cutout = self._cutout(index)
        return cutout if shrink == 1 else shrink_cutout(cutout, shrink)

    def _cutout(self, index: int) -> Cutout:
        return self._load(self.keys[index], self.paths[index])

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_load"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _load=lru_cache(maxsize=8)(_load_png))


def _require_alpha(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(33)
    kind = (start[24], start[25]) if len(start) == 33 and start[:4] == b"\x89PNG" else None
    if kind not in _WITH_ALPHA:
        given = "is no PNG" if kind is None else f"has {kind[0]} bits per channel and colour type {kind[1]}"
        raise InputError(f"paste.bank: {path}: {given}; a PNG of 8 bits with an alpha channel is needed")


def _load_png(key: str, path: Path) -> Cutout:
    content = path.read_bytes()
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None or picture.ndim != 3 or picture.shape[2] != 4:
        raise InputError(f"cut-out {key}: {path} cannot be decoded as a picture with alpha channel")
    cropped = crop_to_mask(cv2.cvtColor(picture, cv2.COLOR_BGRA2RGB), picture[..., 3].copy())
    if cropped is None:
        raise InputError(f"cut-out {key}: {path} is transparent everywhere")
    source_size = (picture.shape[0], picture.shape[1])
    return Cutout(key, cropped[0], cropped[1], path.parent.name, source_size)
