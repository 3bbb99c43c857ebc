"""The objects that can be pasted: random access to cut-outs in shards, decoded when they are used."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any

from shards.cutout import MASK_SUFFIX, META_SUFFIX, OBJECT_SUFFIX, Cutout, decode_cutout, decode_description
from shards.errors import InputError
from shards.reader import ShardReader, open_shards

BYTES_PER_MB = 2**20


class CutoutBank:
    """Cut-outs by number, with the decoded ones kept in a bounded memory; safe to pickle and to fork.

    The memory forgets what was used longest ago. It is each process's own and does not travel in a pickle.
    """

    def __init__(self, reader: ShardReader, cache_mb: int = 64) -> None:
        """Serve the cut-outs of `reader`.

        Args:
            cache_mb: size of the memory in MiB of decoded pixels; 0 decodes every time.

        Raises:
            InputError: there are no samples, or one of them is no cut-out.
        """
        if not len(reader):
            raise InputError(f"paste.bank: {', '.join(map(str, reader.shards))}: holds no cut-outs")
        for index, key in enumerate(reader.keys):
            suffixes = reader.suffixes(index)
            if not {OBJECT_SUFFIX, MASK_SUFFIX, META_SUFFIX} <= set(suffixes):
                raise InputError(
                    f"paste.bank: sample {key} is no cut-out: it has {', '.join(suffixes)}; needed are "
                    f"{OBJECT_SUFFIX}, {MASK_SUFFIX}, {META_SUFFIX}; jobs.prepare coco writes such shards"
                )
        self._reader = reader
        self._cache_bytes = cache_mb * BYTES_PER_MB
        self._cached: OrderedDict[int, Cutout] = OrderedDict()
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self._reader)

    def get(self, index: int) -> Cutout:
        """Return cut-out `index`, which several callers may share: do not write to its arrays.

        Raises:
            InputError: it cannot be decoded, or shows no object.
        """
        if index in self._cached:
            self._cached.move_to_end(index)
            return self._cached[index]
        cutout = decode_cutout(self._reader.keys[index], self._reader.read(index))
        if not (cutout.mask >= 128).any():
            raise InputError(
                f"cut-out {cutout.key}: {MASK_SUFFIX} is empty; an object needs values of 128 or more"
            )
        self._remember(index, cutout)
        return cutout

    def category_counts(self) -> Counter[str]:
        """Count the cut-outs of each category, from all descriptions and no picture."""
        counts: Counter[str] = Counter()
        for index in range(len(self)):
            description = self._reader.read(index, (META_SUFFIX,))[META_SUFFIX]
            counts[decode_description(self._reader.keys[index], description)[0]] += 1
        return counts

    def _remember(self, index: int, cutout: Cutout) -> None:
        size = _num_bytes(cutout)
        if size > self._cache_bytes:
            return
        self._cached[index] = cutout
        self._cached_bytes += size
        while self._cached_bytes > self._cache_bytes:
            _, forgotten = self._cached.popitem(last=False)
            self._cached_bytes -= _num_bytes(forgotten)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": OrderedDict(), "_cached_bytes": 0}


def open_bank(path: str, cache_mb: int = 64) -> CutoutBank:
    """Open every cut-out of a folder written by `jobs.prepare coco`, of a tar, or of a pattern of tars.

    Raises:
        InputError: nothing is there, or it holds something else than cut-outs.
    """
    return CutoutBank(open_shards([path], split=None), cache_mb)


def _num_bytes(cutout: Cutout) -> int:
    return cutout.image.nbytes + cutout.mask.nbytes
