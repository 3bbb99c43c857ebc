"""Memory of a step: its peak, and the micro-batch that fits."""

from __future__ import annotations

import gc
import logging
import resource
import sys
from collections.abc import Callable, Mapping

import torch
from accelerate import Accelerator

from models.eomt import EoMT
from shards.batch import Batch
from shards.errors import InputError
from shards.schema import NUM_CLASSES, OUTLIER_ID, VOID_ID
from trainer.losses.loss import Loss, weighted_sum
from trainer.losses.targets import StepTotals, count_totals
from trainer.optim import draw_unmasked, sample_generators
from trainer.sections import ScheduleConfig

logger = logging.getLogger(__name__)

GIB = 2**30


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
    micro-batches. What random generators say afterwards is what they would have said without. `attempt` takes
    the memory of a step with a micro-batch of the given size.
    """
    size = batch_size
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    while True:
        failed = False
        with torch.random.fork_rng(devices):
            try:
                attempt(size)
            except torch.OutOfMemoryError:  # unnamed: its traceback holds the tensors, and ends here
                failed = True
        gc.collect()
        if devices:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        flag = torch.tensor(float(failed), device=accelerator.device)
        if not accelerator.reduce(flag, reduction="sum").item():  # type: ignore[union-attr]
            return size
        if size == 1:
            less = "loop.activation_checkpointing, or an adapt.mode that trains less"
            needed = f"take a smaller model.image_size, {less}"
            raise InputError(f"data.batch_size: the memory is too small for one image; {needed}")
        smaller = next(n for n in range(size // 2, 0, -1) if size % n == 0)
        logger.info("out of memory with %d images per micro-batch, trying %d", size, smaller)
        size = smaller


def fullest_batch(size: int, crop: tuple[int, int], num_classes: int = NUM_CLASSES) -> Batch:
    """Return a batch that needs as much memory as any: every class, outliers and void in every image."""
    values = torch.tensor([*range(num_classes), OUTLIER_ID, VOID_ID], dtype=torch.uint8)
    height, width = crop
    row = values[torch.arange(width) * len(values) // max(width, len(values))]
    label = row.expand(size, height, width).contiguous()
    image = torch.zeros(size, 3, height, width, dtype=torch.uint8)
    return Batch(image, label, tuple(f"trial {i}" for i in range(size)))


def try_step(
    accelerator: Accelerator,
    model: EoMT,
    loss: Loss,
    loss_weights: Mapping[str, float],
    schedule: ScheduleConfig,
    batch: Batch,
) -> None:
    """Take the memory of a step of the run with this micro-batch, and give it back.

    All that may train trains, no query is unmasked, and room is held for what comes later: the two moments of
    AdamW and, with several processes, the buffers of their exchange. The model, not yet prepared, is moved to
    the device.
    """
    device = accelerator.device
    model.to(device).train()
    try:
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        room = torch.empty((2 + (accelerator.num_processes > 1)) * trained, device=device)
        batch = batch.to(device)
        generators = sample_generators(0, 0, batch.keys, device)
        unmasked = draw_unmasked(schedule, 0, 1000, model.num_blocks, model.num_queries, generators)
        with accelerator.autocast():
            prediction = model(batch.image, unmasked)
        terms = loss(
            prediction,
            batch,
            StepTotals(*count_totals([batch.label], loss.area_exponent).tolist()),
            generators,
        )
        weighted_sum(terms, loss_weights).backward()
        del room
    finally:
        model.zero_grad(set_to_none=True)
