"""One step for trial, of which nothing stays: it shows whether the memory suffices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from models.eomt import EoMT
from trainer.losses import Loss, weighted_sum
from trainer.losses.targets import StepTotals, count_totals
from trainer.memory import fullest_batch
from trainer.randomness import sample_generators
from trainer.schedule import ScheduleConfig, draw_released


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

        All that may train trains, no query is released from its mask, and room is held for what comes later:
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
            released = draw_released(self.schedule, 0, 1000, model.num_blocks, model.num_queries, generators)
            with accelerator.autocast():
                prediction = model(batch.image, released)
            totals = StepTotals(*count_totals([batch.label]).tolist())
            terms = self.loss(prediction, batch, totals, generators)
            weighted_sum(terms, self.loss_weights).backward()
            del room
        finally:
            model.zero_grad(set_to_none=True)
