"""Random numbers that belong to a sample, not to a process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


def sample_generators(
    seed: int, step: int, keys: Sequence[str], device: torch.device | str
) -> list[torch.Generator]:
    """Make one generator per sample, a function of (seed, step, key) alone.

    Whatever training draws for a sample (points, unmasked queries) comes from its own generator. So one
    process with a batch of four draws what two processes with batches of two draw, and a resumed run
    draws what it would have drawn.
    """
    return [torch.Generator(device=device).manual_seed(_mix(f"{seed}/{step}/{key}")) for key in keys]


def seed_dropout(seed: int, step: int, keys: Sequence[str]) -> None:
    """Seed the global generator, which dropout draws from, as a function of (seed, step, keys of the batch).

    So ranks do not drop the same elements, and a resumed run needs no state. Dropout belongs to a micro-batch
    as a whole, not to a sample: cut another way, a step drops other elements.
    """
    torch.manual_seed(_mix(f"dropout/{seed}/{step}/{'/'.join(keys)}"))


def _mix(text: str) -> int:
    """Return a number in [0, 2^63) that any change of the text changes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
