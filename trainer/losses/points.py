"""Random points at which masks are compared, as in PointRend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from trainer.losses.targets import sample_logits

OVERSAMPLING = 3.0
IMPORTANT_SHARE = 0.75


@dataclass(frozen=True)
class DrawnPoints:
    """Points of all L depths, (x, y) in [0, 1]."""

    matching: Float[Tensor, "L B P 2"]
    """Per depth and image, where all its pairs of query and segment are compared."""
    candidates: Float[Tensor, "n _ 2"]
    """Per matched mask, depth by depth, three times as many as are needed."""
    anywhere: Float[Tensor, "n _ 2"]
    """Per matched mask, those that are taken wherever they are."""


def draw_points(
    num_depths: int,
    counts: Sequence[int],
    num_points: int,
    generators: Sequence[torch.Generator],
    device: torch.device,
) -> DrawnPoints:
    """Draw the points of all depths, each image's from its own generator.

    Nothing here needs to know the matching, so nothing has to wait for it; the price is about 0.3 MB per mask
    and depth with 12544 points.

    Args:
        counts: matched masks of each image.
    """
    num_drawn, num_important = int(OVERSAMPLING * num_points), int(IMPORTANT_SHARE * num_points)

    def draw(count: int, number: int, generator: torch.Generator) -> Tensor:
        return torch.rand(count, number, 2, generator=generator, device=device)

    matching, candidates, anywhere = [], [], []
    for _ in range(num_depths):
        matching.append(torch.cat([draw(1, num_points, generator) for generator in generators]))
        for count, generator in zip(counts, generators, strict=True):
            candidates.append(draw(count, num_drawn, generator))
            anywhere.append(draw(count, num_points - num_important, generator))
    return DrawnPoints(torch.stack(matching), torch.cat(candidates), torch.cat(anywhere))


@torch.no_grad()
def choose_points(mask_logits: Float[Tensor, "n h w"], drawn: DrawnPoints) -> Float[Tensor, "n P 2"]:
    """Take three quarters of a mask's points where it is least certain, the rest anywhere (PointRend).

    Of the candidates, those with the logit nearest to 0 are kept.
    """
    num_important = int(IMPORTANT_SHARE * drawn.matching.shape[2])
    certainty = sample_logits(mask_logits, drawn.candidates).abs()  # (n, 3P)
    keep = certainty.topk(num_important, dim=1, largest=False).indices  # (n, 3P/4)
    important = drawn.candidates.gather(1, keep[..., None].expand(-1, -1, 2))
    return torch.cat((important, drawn.anywhere), dim=1)
