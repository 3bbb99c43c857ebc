"""Predictors, from an image to maps of its pixels, made of a network by sliding windows or whole images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from shards.schema import CITYSCAPES, ClassTable


@runtime_checkable
class Predictor(Protocol):
    """An image, sRGB in [0, 255], to maps at its own resolution, on any device.

    The maps are the class scores of C classes, and one map for each score that it was built for and that
    class scores do not suffice for (`eval.predict.scores.QUERY_SCORES`, or a user's own).
    """

    @property
    def has_evidence(self) -> bool:
        """Whether its class scores are evidence, sums of probabilities, and no logits."""

    @property
    def sees(self) -> str:
        """Words for how it sees an image, below tables."""

    @property
    def classes(self) -> ClassTable:
        """Names and colours of its classes."""

    def __call__(self, image: UInt8[np.ndarray, "H W 3"], scale: float = 1.0) -> Float[Tensor, "N H W"]:
        """Predict, seeing the image `scale` times as large as usual."""


WindowPredictor = Callable[[UInt8[Tensor, "B 3 h w"]], Float[Tensor, "B N h w"]]
"""Windows of the one size that a network knows, or whole images of a convolutional one, to the maps of a
`Predictor`."""


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint, a user's own model or score maps: what is evaluated."""

    name: str
    """Path, or text, that it is read from."""
    fingerprint: str
    """Hash of all that its predictions depend on."""
    scores: tuple[str, ...]
    """Names of the scores that it is built for."""
    load: Callable[[], Predictor]
    trained_on: tuple[str, ...] = ()
    """Names of the sets of scenes that it says it was trained on; Cityscapes alone may be left out."""

    def with_classes(self, classes: ClassTable) -> ModelSource:
        """Return a model whose predictor calls its classes so."""

        def load() -> Predictor:
            predictor: Any = self.load()
            predictor.classes = classes
            return predictor  # type: ignore[no-any-return]

        named = self.fingerprint if classes == CITYSCAPES else f"{self.fingerprint} {classes.colors}"
        return replace(self, fingerprint=named, load=load)


def to_tensor(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[Tensor, "3 H W"]:
    """View an image as PyTorch orders it."""
    return torch.from_numpy(image).permute(2, 0, 1)


def covering_size(
    size: tuple[int, int], window: tuple[int, int], stride: int = 1, scale: float = 1.0
) -> tuple[int, int]:
    """Return the (H, W) to which an image of `size` is scaled so that it covers the window.

    The factor is the larger of window / image side over both axes: one axis fits the window exactly, the
    other is at least as long, and the aspect ratio is kept, to the nearest multiples of `stride`. Of another
    `scale` both are that many times as long.
    """
    factor = scale * max(window[0] / size[0], window[1] / size[1])
    height, width = (stride * max(1, round(side * factor / stride)) for side in size)
    return (max(window[0], height), max(window[1], width)) if scale >= 1 else (height, width)


def window_starts(side: int, window: int) -> list[int]:
    """Return where windows begin on an axis of `side` pixels: as few as cover it, evenly spread."""
    count = math.ceil(side / window)
    return [round(i * (side - window) / max(1, count - 1)) for i in range(count)]


def resize_image(image: UInt8[Tensor, "3 _H _W"], size: tuple[int, int]) -> UInt8[Tensor, "3 _h _w"]:
    """Resize bilinearly (align_corners=False), with a low-pass filter where it shrinks, as Pillow does."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    resized = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)[0]
    return resized.round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def predict_in_windows(
    image: UInt8[Tensor, "3 H W"],
    predict: WindowPredictor,
    window: tuple[int, int],
    windows_at_once: int = 4,
    stride: int = 0,
    scale: float = 1.0,
) -> Float[Tensor, "N H W"]:
    """Return the maps of an image at its own resolution.

    The image, sRGB in [0, 255], is scaled to cover the window, windows are spread evenly along the axis that
    sticks out, maps are averaged where they overlap and resized bilinearly (align_corners=False) back.

    Args:
        window: (h, w), the input size of the network.
        windows_at_once: windows per call of `predict`; bounds its memory.
        stride: of a convolutional network, which sees the scaled image whole, sides rounded to multiples of
            it: its padding would show as a seam at every border of a window. 0: windows.
        scale: factor on the size; an image that does not cover the window then is padded with black.

    Source: the semantic inference of EoMT, Kerssies et al., CVPR 2025, which truncates positions; we round.
    """
    native = (image.shape[-2], image.shape[-1])
    content = covering_size(native, window, stride or 1, scale)
    window = content if stride else window
    height, width = max(content[0], window[0]), max(content[1], window[1])
    scaled = F.pad(resize_image(image, content), (0, width - content[1], 0, height - content[0]))
    maps = _average_windows(scaled, predict, window, windows_at_once)[:, : content[0], : content[1]]
    if content == native:
        return maps
    return F.interpolate(maps[None], size=native, mode="bilinear", align_corners=False)[0]


def _average_windows(
    image: UInt8[Tensor, "3 H W"], predict: WindowPredictor, window: tuple[int, int], windows_at_once: int
) -> Float[Tensor, "N H W"]:
    height, width = image.shape[-2:]
    corners = [(y, x) for y in window_starts(height, window[0]) for x in window_starts(width, window[1])]
    sums: Tensor | None = None
    counts = torch.zeros(height, width)
    for begin in range(0, len(corners), windows_at_once):
        group = corners[begin : begin + windows_at_once]
        crops = torch.stack([image[:, y : y + window[0], x : x + window[1]] for y, x in group])
        maps = predict(crops).float()
        sums = maps.new_zeros(maps.shape[1], height, width) if sums is None else sums  # on its device
        for (y, x), part in zip(group, maps, strict=True):
            sums[:, y : y + window[0], x : x + window[1]] += part
            counts[y : y + window[0], x : x + window[1]] += 1
    assert sums is not None
    return sums.div_(counts.to(sums.device))


def describe_input(window: tuple[int, int], stride: int) -> str:
    """Say how `predict_in_windows` shows an image to a network."""
    size = f"{window[0]} x {window[1]}"
    if stride:
        return f"whole images, scaled to cover {size}"
    return f"images scaled to cover {size}, sliding windows of that size, class scores averaged"


@dataclass(frozen=True)
class SlidingPredictor:
    """A `Predictor` from a network of windows or of whole images; fields as of `predict_in_windows`."""

    predict: WindowPredictor
    window: tuple[int, int]
    windows_at_once: int = 4
    has_evidence: bool = True
    stride: int = 0
    classes: ClassTable = CITYSCAPES

    @property
    def sees(self) -> str:
        """The words of `describe_input`."""
        return describe_input(self.window, self.stride)

    def __call__(self, image: UInt8[np.ndarray, "H W 3"], scale: float = 1.0) -> Float[Tensor, "N H W"]:
        pixels, at_once = to_tensor(image), self.windows_at_once
        return predict_in_windows(pixels, self.predict, self.window, at_once, self.stride, scale)
