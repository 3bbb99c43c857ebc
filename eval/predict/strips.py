"""Scores and predicted classes of a frame, computed strip by strip.

Masks of queries are resized once for class scores and query scores, a few rows at a time, so that
intermediate results stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from eval.predict.log_odds import compared_scores, to_log_odds
from eval.predict.queries import QueryOutputs, pixel_class_scores, resize_masks
from eval.predict.scores import QUERY_SCORES, SCORES
from eval.predict.windows import Predictor
from eval.protocol import Protocol
from shards.schema import VOID_ID

_STRIP_PIXELS = 8192
"""Scores are computed in strips: their intermediate results then stay in the processor's cache."""

Compute = Callable[[Tensor, Sequence[str]], dict[str, Tensor]]
"""Class scores (B, C, H, W) and names of `eval.predict.scores.SCORES` to maps (B, H, W)."""


class PixelPrediction(NamedTuple):
    """Scores and classes of every pixel of an image."""

    scores: dict[str, Float32[np.ndarray, "H W"]]
    """By name, in the form in which it is compared (`eval.predict.log_odds`) where nothing else is said."""
    classes: UInt8[np.ndarray, "_H _W"]
    """Train ids; `VOID_ID` where the model says scores only."""


@torch.no_grad()
def predict_pixels(
    maps: Float[Tensor, "N H W"], names: Sequence[str], compute: Compute = compared_scores
) -> PixelPrediction:
    """Compute scores and the predicted classes.

    Args:
        maps: as a `Predictor` returns them; see `split_maps`.
        names: names of `eval.predict.scores.SCORES` and `QUERY_SCORES`, or a user's own.
        compute: form of the scores, that in which they are compared or `plain_scores`.
    """
    class_scores, given = split_maps(maps, names)
    scores = score_strips(class_scores, names, compute) | given
    chosen = {name: scores[name].cpu().numpy() for name in names}
    return PixelPrediction(chosen, find_classes(class_scores).cpu().numpy())


@torch.no_grad()
def predict_image(
    predictor: Predictor, image: UInt8[np.ndarray, "H W 3"], names: Sequence[str], protocol: Protocol
) -> PixelPrediction:
    """Predict an image as a protocol asks for: the mean over its views, smoothed or not.

    Scores are averaged and smoothed as `eval.predict.scores` defines them, and compared as log-odds then;
    classes are of the mean class scores. `names` as of `predict_pixels`.
    """
    mirrorings = (False, True) if protocol.flip else (False,)
    views = [(scale, is_mirrored) for scale in protocol.scales for is_mirrored in mirrorings]
    if views == [(1.0, False)] and not protocol.smooth:
        return predict_pixels(predictor(image), names)
    total: Tensor | None = None
    for scale, is_mirrored in views:
        seen = np.ascontiguousarray(image[:, ::-1]) if is_mirrored else image
        class_scores, given = split_maps(predictor(seen, scale), names)
        scores = score_strips(class_scores, names, plain_scores) | given
        found = torch.cat([class_scores, *(scores[name][None] for name in names)])
        found = found.flip(-1) if is_mirrored else found
        total = found if total is None else total + found
    assert total is not None
    mean = (total / len(views)).cpu()
    class_scores, maps = mean[: -len(names)], list(mean[-len(names) :].numpy())
    if protocol.smooth:
        maps = [cv2.GaussianBlur(each, (7, 7), 1, borderType=cv2.BORDER_REFLECT_101) for each in maps]
    named = zip(names, map(torch.from_numpy, maps), strict=True)
    compared = {name: to_log_odds(name, each, len(class_scores)).numpy() for name, each in named}
    return PixelPrediction(compared, find_classes(class_scores).numpy())


def split_maps(
    maps: Float[Tensor, "N H W"], names: Sequence[str]
) -> tuple[Float[Tensor, "C H W"], dict[str, Float[Tensor, "H W"]]]:
    """Part what a `Predictor` returns into class scores and the maps of those `names` that need more.

    C is 0 where a model says scores only.
    """
    needing_more = [name for name in names if name not in SCORES]
    num_classes = len(maps) - len(needing_more)
    return maps[:num_classes], dict(zip(needing_more, maps[num_classes:], strict=True))


def plain_scores(
    class_scores: Float[Tensor, "B C H W"], names: Sequence[str]
) -> dict[str, Float[Tensor, "B H W"]]:
    """Compute scores as `eval.predict.scores.SCORES` defines them."""
    return {name: SCORES[name](class_scores) for name in names}


def score_strips(
    class_scores: Float[Tensor, "C H W"],
    names: Sequence[str],
    compute: Compute,
) -> dict[str, Float[Tensor, "H W"]]:
    """Compute those of `names` that class scores suffice for, in strips, by `plain_scores` or alike."""
    height, width = class_scores.shape[1:]
    empty = {name: class_scores.new_empty(height, width) for name in names if name in SCORES}
    for rows in strips_of(height if empty else 0, width):
        for name, found in compute(class_scores[None, :, rows], list(empty)).items():
            empty[name][rows] = found[0]
    return empty


def find_classes(class_scores: Float[Tensor, "C H W"]) -> UInt8[Tensor, "H W"]:
    """Predict classes in strips; `VOID_ID` where there are no class scores."""
    num_classes, height, width = class_scores.shape
    classes = torch.full((height, width), VOID_ID, dtype=torch.uint8, device=class_scores.device)
    for rows in strips_of(height if num_classes else 0, width):
        classes[rows] = predict_classes(class_scores[:, rows])
    return classes


def compare_at(
    class_scores: Float[Tensor, "C H W"], names: Sequence[str], temperature: float
) -> dict[str, Float32[np.ndarray, "H W"]]:
    """Compute scores of class scores / T, of those in `eval.predict.scores.SCORES`, in strips."""

    def compute(strip: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        return compared_scores(strip if temperature == 1 else strip / temperature, names)

    return {name: score.numpy() for name, score in score_strips(class_scores, names, compute).items()}


def strips_of(height: int, width: int) -> Iterator[slice]:
    """Yield the rows of a frame strip by strip."""
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield slice(top, top + rows)


def predict_classes(class_scores: Float[Tensor, "C H W"]) -> UInt8[Tensor, "H W"]:
    """Return the class of most class scores, the first of equal ones.

    In bytes and with NumPy, which keeps to vector instructions: a sixth of the time of `max`, and a
    twentieth of `argmax`, of PyTorch on a processor.
    """
    if class_scores.device.type != "cpu":
        return class_scores.max(dim=0).indices.to(torch.uint8)
    values, count = class_scores.numpy(), len(class_scores)
    is_top = np.equal(values, values.max(axis=0)).view(np.uint8)
    is_top *= np.arange(count, 0, -1, dtype=np.uint8)[:, None, None]  # the first is the largest
    return torch.from_numpy((count - is_top.max(axis=0)) % count)  # of NaN, which equals nothing, 0


_LOW_ROWS = 8
"""Rows of the mask logits to a strip."""


def read_queries(
    queries: QueryOutputs, size: tuple[int, int], names: Sequence[str] = (), *, whole: bool = False
) -> Float[Tensor, "B N H W"]:
    """Return the class scores of the classes and, behind it, a map for each of `names` that is a query score.

    Equal to `pixel_class_scores` and the scores' own functions at `size`, in the memory of the answer and a
    strip.

    Args:
        size: (H, W) to resize the masks to.
        names: names of scores; those in `eval.predict.scores.SCORES` are ignored.
        whole: do without strips, for an exporter that follows no loops and no writing into slices.
    """
    readers = [QUERY_SCORES[name] for name in names if name in QUERY_SCORES]
    masks, classes, num_classes = queries.mask_logits, queries.class_logits, queries.num_classes
    if whole:
        class_scores, resized = pixel_class_scores(masks, classes, size, num_classes), queries.resized(size)
        return torch.cat([class_scores, *(read(resized)[:, None] for read in readers)], dim=1)
    answer = torch.empty(len(masks), num_classes + len(readers), *size, device=masks.device)
    maps = {n: resize_masks(v, size) for n, v in (queries.outlier_maps or {}).items() if n in names}
    for rows, strip in resize_in_strips(masks, size):
        answer[:, :num_classes, rows] = pixel_class_scores(strip, classes, num_classes=num_classes)
        of_strip = {name: value[:, :, rows] for name, value in maps.items()}
        for i, read in enumerate(readers, start=num_classes):
            answer[:, i, rows] = read(queries._replace(mask_logits=strip, outlier_maps=of_strip))
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
