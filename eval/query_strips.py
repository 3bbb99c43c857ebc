"""Evidence and query scores of windows in one pass of strips: masks are resized once, a few rows at a time.

Resizing 100 masks to a window of 1024 x 1024 takes 420 MB, and each score would do it again. A strip of some
low-resolution rows, with the neighbours that bilinear interpolation reads, is resized to exactly the values
that the whole has there, and stays in the cache while evidence and all scores are read off it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from eval.scores import QUERY_SCORES, QueryOutputs, pixel_evidence, resize_masks

_LOW_ROWS = 8
"""Rows of the mask logits to a strip."""


def read_queries(
    queries: QueryOutputs, size: tuple[int, int], names: Sequence[str] = (), *, whole: bool = False
) -> Float[Tensor, "B N H W"]:
    """Return the evidence of the classes and, behind it, a map for each of `names` that is a query score.

    Equal to `pixel_evidence` and the scores' own functions at `size`, in the memory of the answer and a
    strip.

    Args:
        size: (H, W) to resize the masks to.
        names: names of scores; those of `eval.scores.SCORES`, which evidence suffices for, are passed over.
        whole: do without strips, for an exporter that follows no loops and no writing into slices.
    """
    readers = [QUERY_SCORES[name].read for name in names if name in QUERY_SCORES]
    if whole:
        evidence = pixel_evidence(queries.mask_logits, queries.class_logits, size, queries.num_classes)
        return torch.cat([evidence, *(read(queries, size)[:, None] for read in readers)], dim=1)
    batch, num_maps = len(queries.mask_logits), queries.num_classes + len(readers)
    answer = torch.empty(batch, num_maps, *size, device=queries.mask_logits.device)
    for rows, masks in resize_in_strips(queries.mask_logits, size):
        answer[:, : queries.num_classes, rows] = pixel_evidence(
            masks, queries.class_logits, num_classes=queries.num_classes
        )
        strip = queries._replace(mask_logits=masks)
        for i, read in enumerate(readers, start=queries.num_classes):
            answer[:, i, rows] = read(strip, None)
    return answer


def resize_in_strips(
    masks: Float[Tensor, "B Q h w"], size: tuple[int, int]
) -> Iterator[tuple[slice, Float[Tensor, "B Q _r W"]]]:
    """Yield the rows of `resize_masks(masks, size)` strip by strip, with their place.

    In one piece where the heights are no multiple of each other: rows of a strip would lie elsewhere.
    """
    low, high = masks.shape[-2], size[0]
    if high % low or high == low:
        yield slice(0, high), resize_masks(masks, size)
        return
    factor = high // low
    for begin in range(0, low, _LOW_ROWS):
        end = min(begin + _LOW_ROWS, low)
        first, last = max(0, begin - 1), min(low, end + 1)
        resized = resize_masks(masks[..., first:last, :], ((last - first) * factor, size[1]))
        above = (begin - first) * factor
        yield slice(begin * factor, end * factor), resized[..., above : above + (end - begin) * factor, :]
