"""Plans of shard folders: which samples go into which tar file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import cv2

from shards.files import from_json, to_json
from shards.manifest import MANIFEST_VERSION, Manifest, ShardEntry

MIN_SHARDS = 8
"""A small set is still cut into this many shards (or 1 per sample), for readers that want one per worker."""
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
    """Makes the samples, in order; runs in another thread."""


@dataclass(frozen=True)
class FolderPlan:
    """A folder of shards to be written; it decides every byte."""

    kind: str
    label_encoding: str
    image_encoding: str
    options: Mapping[str, Any]
    """Options that the shards depend on, for the manifest."""
    shards: Sequence[ShardPlan]
    report: Sequence[str]
    """Lines for the log: what is taken, what was dropped."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Further files of the folder, by name."""

    def manifest(self, entries: tuple[ShardEntry, ...] = ()) -> Manifest:
        """Return the manifest of the finished shards `entries`."""
        options = from_json(dict[str, Any], to_json({**self.options, "opencv": cv2.__version__}), "options")
        count = sum(entry.num_samples for entry in entries)
        encodings = (self.label_encoding, self.image_encoding)
        return Manifest(MANIFEST_VERSION, self.kind, *encodings, count, options, entries)


def split_into_shards(
    items: Sequence[Item],
    largest: int,
    samples: Callable[[tuple[Item, ...]], Iterable[EncodedSample]],
    *,
    name: str,
    split: str,
    weights: Sequence[int] | None = None,
) -> list[ShardPlan]:
    """Plan shards of consecutive pieces of `items` of about equal weight.

    There are as many as `largest` asks for, but at least `MIN_SHARDS` where there are as many samples.
    Without weights the sizes differ by at most 1; with weights a shard may weigh more than `largest`, by
    less than its last item.

    Args:
        largest: most samples in one shard, at least 1.
        samples: makes the samples of one piece.
        name: first part of the file names.
        weights: number of samples that each item yields, at least 1; 1 each if absent.
    """
    weights = [1] * len(items) if weights is None else weights
    total = sum(weights)
    num_shards = max(-(-total // largest), min(total, MIN_SHARDS))
    pieces: list[list[tuple[Item, int]]] = [[] for _ in range(num_shards)]
    start = 0
    for item, weight in zip(items, weights, strict=True):
        pieces[start * num_shards // total].append((item, weight))
        start += weight
    plans = []
    for i, piece in enumerate(filter(None, pieces)):
        make, count = partial(samples, tuple(item for item, _ in piece)), sum(weight for _, weight in piece)
        plans.append(ShardPlan(f"{name}-{split}-{i:06d}.tar", split, count, make))
    return plans
