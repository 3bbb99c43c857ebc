"""Banks of objects to paste, in shards or PNG files; decoded when, and as large as, they are used."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from shards.cutout import (
    CUTOUT_SUFFIXES,
    MASK_SUFFIX,
    META_SUFFIX,
    SHRINKS,
    Cutout,
    crop_to_mask,
    decode_cutout,
    decode_description,
    shrink_cutout,
)
from shards.errors import InputError
from shards.manifest import MANIFEST_NAME
from shards.picture import COLOUR_ALPHA, GREY_ALPHA, decode_numbers, read_size, require_kind
from shards.reader import ShardReader, open_shards
from shards.source import list_visible

BYTES_PER_MB = 2**20
_WITH_ALPHA = (COLOUR_ALPHA, GREY_ALPHA)


class ShardStore:
    """Cut-outs in shards, as `jobs.prepare` writes them."""

    def __init__(self, reader: ShardReader) -> None:
        if not len(reader):
            raise InputError(f"paste.bank: {', '.join(map(str, reader.shards))}: holds no cut-outs")
        for index, key in enumerate(reader.keys):
            suffixes = reader.suffixes(index)
            if not set(CUTOUT_SUFFIXES) <= set(suffixes):
                held, needed = ", ".join(suffixes), ", ".join(CUTOUT_SUFFIXES)
                lacks = f"it has {held}; needed are {needed}; jobs.prepare coco writes such shards"
                raise InputError(f"paste.bank: sample {key} is no cut-out: {lacks}")
        self.keys = reader.keys
        self._reader = reader

    def category(self, index: int) -> str:
        """Name an object's category."""
        description = self._reader.read(index, (META_SUFFIX,))[META_SUFFIX]
        return decode_description(self.keys[index], description)[0]

    def shape(self, index: int) -> tuple[int, int]:
        """Return an object's (height, width), out of its mask's first bytes."""
        mask = self._reader.read(index, (MASK_SUFFIX,))[MASK_SUFFIX]
        return read_size(mask, f"cut-out {self.keys[index]}: {MASK_SUFFIX}")

    def decode(self, index: int, shrink: int) -> Cutout:
        """Decode an object at 1 / `shrink` of its height and width."""
        return decode_cutout(self.keys[index], self._reader.read(index), shrink=shrink)


class PngFolder:
    """The RGBA PNG files of a folder and of the folders in it: alpha is the mask, the folder the category."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(list_visible(folder, "*.png") + list_visible(folder, "*/*.png"))
        if not self.paths:
            lacks = "holds neither manifest.json, which jobs.prepare writes, nor PNG files"
            raise InputError(f"paste.bank: {folder}: {lacks}")
        for path in self.paths:
            with path.open("rb") as file:
                require_kind(file.read(4096), f"paste.bank: {path}", _WITH_ALPHA)
        self.keys = tuple(path.relative_to(folder).with_suffix("").as_posix() for path in self.paths)

    def category(self, index: int) -> str:
        """Name the folder that the file lies in."""
        return self.paths[index].parent.name

    def shape(self, index: int) -> tuple[int, int]:
        """Return (height, width) of an object, cropped to where it is not transparent."""
        height, width = self.decode(index, 1).mask.shape
        return height, width

    def decode(self, index: int, shrink: int) -> Cutout:
        """Decode an object at 1 / `shrink` of its height and width."""
        cutout = _load_png(self.keys[index], self.paths[index])
        return cutout if shrink == 1 else shrink_cutout(cutout, shrink)


Store = ShardStore | PngFolder
"""Origin of objects: names, and by number a category, a shape and a picture."""


@lru_cache(maxsize=8)
def _load_png(key: str, path: Path) -> Cutout:
    picture = decode_numbers(path.read_bytes(), f"paste.bank: {path}", _WITH_ALPHA)
    cropped = crop_to_mask(cv2.cvtColor(picture, cv2.COLOR_BGRA2RGB), picture[..., 3].copy())
    if cropped is None:
        raise InputError(f"cut-out {key}: {path} is transparent everywhere")
    return Cutout(key, *cropped, path.parent.name, (picture.shape[0], picture.shape[1]))


class CutoutBank:
    """Objects by number, with the decoded ones kept in a bounded memory; safe to pickle and to fork.

    The memory forgets what was used longest ago. It is each process's own, does not travel in a pickle,
    and changes nothing but the time: what is kept are pictures at a fraction 1 / `shrink` of their size,
    and the same fraction is taken, and decoded, where nothing is kept.
    """

    def __init__(
        self, store: Store, numbers: Sequence[int], cache_mb: int, pool: int, pool_refresh: float
    ) -> None:
        """Serve the objects of `store` with these numbers; see `open_bank`."""
        self._store = store
        self._numbers = np.array(numbers, np.int64)
        self._pool, self._refresh = pool, pool_refresh
        # shuffled once and for all, by the bit generator itself, whose stream NumPy never changes
        self._order = np.argsort(np.random.PCG64(len(numbers)).random_raw(len(numbers)), kind="stable")
        self._shapes = np.zeros((len(self._numbers), 2), np.int32)
        self._cache_bytes = cache_mb * BYTES_PER_MB
        self._cached: OrderedDict[tuple[int, int], Cutout] = OrderedDict()
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the objects, by number."""
        return tuple(self._store.keys[number] for number in self._numbers)

    def draw(self, generator: np.random.Generator, epoch: int = 0) -> int:
        """Draw an object of those that are in use in an epoch.

        With a pool, epoch e uses `pool` objects from place e * `pool_refresh` * `pool` on of a fixed shuffled
        order of the bank, cyclically: over the epochs all of them have their turn.
        """
        if not 0 < self._pool < len(self):
            return int(generator.integers(len(self)))
        first = epoch * max(1, round(self._pool * self._refresh)) if self._refresh else 0
        return int(self._order[(first + int(generator.integers(self._pool))) % len(self)])

    def shape(self, index: int) -> tuple[int, int]:
        """Return (height, width) of an object."""
        if not self._shapes[index, 0]:
            self._shapes[index] = self._store.shape(int(self._numbers[index]))
        return int(self._shapes[index, 0]), int(self._shapes[index, 1])

    def get(self, index: int, shrink: int = 1) -> Cutout:
        """Return an object at 1 / `shrink` of its height and width, rounded up; `shrink` is one of `SHRINKS`.

        Several callers may share it: do not write to its arrays.
        """
        if (cached := self._cached.get((index, shrink))) is not None:
            self._cached.move_to_end((index, shrink))
            return cached
        cutout = self._store.decode(int(self._numbers[index]), shrink)
        if shrink == 1 and not (cutout.mask >= 128).any():
            needed = "an object needs values of 128 or more"
            raise InputError(f"cut-out {cutout.key}: {MASK_SUFFIX} is empty; {needed}")
        if (size := _num_bytes(cutout)) <= self._cache_bytes:
            self._cached[index, shrink] = cutout
            self._cached_bytes += size
            while self._cached_bytes > self._cache_bytes:
                _, forgotten = self._cached.popitem(last=False)
                self._cached_bytes -= _num_bytes(forgotten)
        return cutout

    def category_counts(self) -> Counter[str]:
        """Count the objects of each category, from all descriptions and no picture."""
        return Counter(self._store.category(int(number)) for number in self._numbers)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": OrderedDict(), "_cached_bytes": 0}


def open_bank(
    path: str,
    cache_mb: int = 64,
    *,
    pool: tuple[int, float] = (0, 0.0),
    held_out: float = 0.0,
    take_held_out: bool = False,
) -> CutoutBank:
    """Open a folder written by `jobs.prepare`, a tar, a pattern of tars, or a folder of RGBA PNG files.

    Args:
        cache_mb: size of the memory in MiB of decoded pixels; 0 decodes every time.
        pool: number of objects in use at a time, 0 for all, and share of them that the next epoch exchanges.
        held_out: share of the photographs that are not for training.
        take_held_out: serve those, and not the others.
    """
    store: Store
    if Path(path).is_dir() and not (Path(path) / MANIFEST_NAME).is_file():
        store = PngFolder(Path(path))
    else:
        store = ShardStore(open_shards([path], None, "paste.bank"))
    chosen = [i for i, key in enumerate(store.keys) if is_held_out(key, held_out) == take_held_out]
    if not chosen:
        part = "all of" if held_out else "none of"
        effect = f"which holds {part} the {len(store.keys)} objects of {path} out"
        raise InputError(f"paste.held_out: is {held_out}, {effect}; give another share, or a larger bank")
    return CutoutBank(store, chosen, cache_mb, *pool)


def photo_of(key: str) -> str:
    """Return what an object was cut from: the key's part before its last dash, such as COCO's image id."""
    return key.rpartition("-")[0] or key


def is_held_out(key: str, share: float) -> bool:
    """Say whether an object is kept from training: by its photograph's name alone, the same in any bank."""
    digest = hashlib.blake2b(f"held out\0{photo_of(key)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64


def fitting_shrink(shape: tuple[int, int], wanted: tuple[int, int]) -> int:
    """Return by how much an object may be smaller before it is brought to the wanted (height, width).

    The largest of `SHRINKS` that leaves it at least as large, so that it is halved at most once more.
    """
    factor = min(shape[0] / wanted[0], shape[1] / wanted[1])
    return max((shrink for shrink in SHRINKS if shrink <= factor), default=1)


def resize_cutout(cutout: Cutout, height: int, width: int, *, mirrored: bool) -> Cutout:
    """Bring a cut-out to its final size and perhaps mirror it; the mask gets a soft edge."""
    image, mask = cutout.image, cutout.mask
    if mask.shape != (height, width):
        averages = mask.shape[0] > 2 * height or mask.shape[1] > 2 * width
        method = cv2.INTER_AREA if averages else cv2.INTER_LINEAR
        image = cv2.resize(image, (width, height), interpolation=method)
        mask = cv2.resize(mask, (width, height), interpolation=method)
    if mirrored:
        image, mask = cv2.flip(image, 1), cv2.flip(mask, 1)
    return Cutout(cutout.key, image, mask, cutout.category, cutout.source_size)


def _num_bytes(cutout: Cutout) -> int:
    return cutout.image.nbytes + cutout.mask.nbytes
