"""Random numbers that belong to a sample, not to a process."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import numpy as np
import torch


def sample_generators(
    seed: int, step: int, keys: Sequence[str], device: torch.device | str
) -> list[torch.Generator]:
    """Make one generator per sample, a function of (seed, step, key) alone.

    Whatever training draws for a sample (points, released queries) comes from its own generator. So one
    process with a batch of four draws what two processes with batches of two draw, and a resumed run
    draws what it would have drawn.

    Args:
        seed: seed of the run.
        step: optimizer step, counted from 0.
        keys: names of the samples of a batch.
    """
    generators = []
    for key in keys:
        digest = hashlib.blake2b(f"{seed}/{step}/{key}".encode(), digest_size=8).digest()
        generator = torch.Generator(device=device)
        generator.manual_seed(int.from_bytes(digest, "little") >> 1)
        generators.append(generator)
    return generators


def seed_everything(seed: int) -> None:
    """Seed the global generators that initial weights and dropout draw from; the same on every rank."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (libraries below us read the global state)
    torch.manual_seed(seed)
