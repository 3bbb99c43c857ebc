"""Several scenes as tensors: what a loader yields and a loss reads.

Apart from `shards.schema`, so that programs which only read and write files need no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from shards.schema import Sample


@dataclass(frozen=True)
class Batch:
    """Several scenes of one size."""

    image: UInt8[Tensor, "B 3 H W"]
    """sRGB in [0, 255], channels in the order R, G, B."""
    label: UInt8[Tensor, "B H W"]
    """Train ids, `OUTLIER_ID` or `VOID_ID`."""
    keys: tuple[str, ...]
    """Names of the scenes."""
    errors: tuple[str, ...] = ()
    """What was wrong with scenes that others stand in for; see `StreamConfig.max_errors`."""

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> Batch:
        """Copy the tensors to `device`; asynchronously where the batch is pinned."""
        image, label = (tensor.to(device, non_blocking=True) for tensor in (self.image, self.label))
        return Batch(image, label, self.keys, self.errors)

    def pin_memory(self) -> Batch:
        """Move the tensors to page-locked memory; the DataLoader calls this where a GPU waits."""
        return Batch(self.image.pin_memory(), self.label.pin_memory(), self.keys, self.errors)


def stack_samples(samples: Sequence[Sample], errors: Sequence[str] = ()) -> Batch:
    """Copy scenes of one size into a batch."""
    height, width = samples[0].label.shape
    images = np.empty((len(samples), 3, height, width), np.uint8)
    labels = np.empty((len(samples), height, width), np.uint8)
    for image, label, sample in zip(images, labels, samples, strict=True):
        image[:] = sample.image.transpose(2, 0, 1)
        label[:] = sample.label
    keys = tuple(sample.key for sample in samples)
    return Batch(torch.from_numpy(images), torch.from_numpy(labels), keys, tuple(errors))
