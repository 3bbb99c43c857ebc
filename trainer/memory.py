"""The memory of a step: its peak, and a trial step that finds a micro-batch small enough."""

from __future__ import annotations

import gc
import logging
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from models.eomt import EoMT
from shards.batch import Batch
from shards.errors import InputError
from shards.schema import NUM_CLASSES, OUTLIER_ID, VOID_ID
from trainer.losses import Loss, weighted_sum
from trainer.losses.targets import StepTotals, count_totals
from trainer.randomness import sample_generators
from trainer.schedule import ScheduleConfig, draw_unmasked

logger = logging.getLogger(__name__)

GIB = 2**30
OutOfMemoryError = torch.cuda.OutOfMemoryError
"""What PyTorch raises on any accelerator; torch 2.4 has it under this name only."""


def peak_memory(accelerator: Accelerator) -> dict[str, float]:
    """Return the most memory that any rank has taken since its start, in GiB, by TensorBoard tag.

    On a GPU what tensors took, and what PyTorch's allocator had reserved for them; on the CPU the resident
    size of the process, libraries included. Every rank has to call it.
    """
    device = accelerator.device
    if device.type == "cuda":
        taken = {
            "memory/peak_allocated_gib": torch.cuda.max_memory_allocated(device) / GIB,
            "memory/peak_reserved_gib": torch.cuda.max_memory_reserved(device) / GIB,
        }
    else:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
        taken = {"memory/peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}
    values = torch.tensor(list(taken.values()), device=device)
    most = accelerator.gather(values).reshape(-1, len(taken)).amax(dim=0)  # type: ignore[union-attr]
    return dict(zip(taken, most.tolist(), strict=True))


def fit_micro_batch(accelerator: Accelerator, batch_size: int, attempt: Callable[[int], None]) -> int:
    """Return the largest micro-batch, of `batch_size` and its halves, that no rank runs out of memory with.

    An odd number is cut to its largest divisor below half, so that the global batch can be kept by more
    micro-batches. What random generators say afterwards is what they would have said without.

    Args:
        attempt: what takes the memory of a step, with a micro-batch of so many images.

    Raises:
        InputError: there is not enough for one image.
    """
    size = batch_size
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    while True:
        with torch.random.fork_rng(devices):
            failed = _runs_out(attempt, size)
        gc.collect()
        if devices:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        flag = torch.tensor(float(failed), device=accelerator.device)
        if not accelerator.reduce(flag, reduction="sum").item():  # type: ignore[union-attr]
            return size
        if size == 1:
            raise InputError(
                "data.batch_size: the memory is too small for one image; take a smaller model.image_size, "
                "loop.activation_checkpointing, or an adapt.mode that trains less"
            )
        smaller = next(n for n in range(size // 2, 0, -1) if size % n == 0)
        logger.info("out of memory with %d images per micro-batch, trying %d", size, smaller)
        size = smaller


def _runs_out(attempt: Callable[[int], None], size: int) -> bool:
    try:
        attempt(size)
    except OutOfMemoryError:  # its traceback holds the tensors: it must be gone before the next attempt
        return True
    return False


def fullest_batch(size: int, crop: tuple[int, int]) -> Batch:
    """Return a batch that needs as much memory as any: every class, outliers and void in every image."""
    values = torch.tensor([*range(NUM_CLASSES), OUTLIER_ID, VOID_ID], dtype=torch.uint8)
    height, width = crop
    row = values[torch.arange(width) * len(values) // max(width, len(values))]
    label = row.expand(size, height, width).contiguous()
    image = torch.zeros(size, 3, height, width, dtype=torch.uint8)
    return Batch(image, label, tuple(f"trial {i}" for i in range(size)))


@dataclass(frozen=True)
class TrialStep:
    """Forward and backward pass of a micro-batch, in the memory that a step of the run has."""

    accelerator: Accelerator
    model: EoMT
    """Not yet prepared; it is moved to the device."""
    loss: Loss
    loss_weights: Mapping[str, float]
    schedule: ScheduleConfig
    crop: tuple[int, int]

    def __call__(self, size: int) -> None:
        """Take the memory of a micro-batch of `size` images, and give it back.

        All that may train trains, no query is unmasked, and room is held for what comes later:
        the two moments of AdamW and, with several processes, the buffers of their exchange.

        Raises:
            torch.OutOfMemoryError: it does not suffice.
        """
        accelerator = self.accelerator
        model, device = self.model.to(accelerator.device).train(), accelerator.device
        try:
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            room = torch.empty((2 + (accelerator.num_processes > 1)) * trained, device=device)
            batch = fullest_batch(size, self.crop).to(device)
            generators = sample_generators(0, 0, batch.keys, device)
            unmasked = draw_unmasked(self.schedule, 0, 1000, model.num_blocks, model.num_queries, generators)
            with accelerator.autocast():
                prediction = model(batch.image, unmasked)
            totals = StepTotals(*count_totals([batch.label]).tolist())
            terms = self.loss(prediction, batch, totals, generators)
            weighted_sum(terms, self.loss_weights).backward()
            del room
        finally:
            model.zero_grad(set_to_none=True)
