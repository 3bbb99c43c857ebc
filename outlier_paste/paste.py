"""Objects pasted onto whole scenes while training: what the suite knows as outliers."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from outlier_paste.bank import CutoutBank, open_bank
from outlier_paste.blend import BLENDS, blend_into, count_visible
from outlier_paste.placement import PLACEMENTS, Place, SizeRange
from shards.cutout import Cutout
from shards.errors import InputError
from shards.schema import NUM_CLASSES, VOID_ID, Sample


@dataclass(frozen=True, kw_only=True)
class PasteConfig:
    """Which scenes get outliers, which, where and how."""

    bank: str = ""
    """Folder of cut-outs written by `jobs.prepare coco`; empty is none."""
    probability: float = 0.0
    """Share of the scenes that get outliers, 0 to 1; 0 switches pasting off."""
    max_objects: int = 3
    """A scene with outliers gets 1 to this many objects, all numbers equally often."""
    placement: str = "anywhere"
    """`anywhere` centres an object on any pixel; `road` stands it on the road, smaller far away."""
    blend: str = "feather"
    """`hard` keeps the object's edge; `feather` mixes its outermost two pixels with the scene."""
    min_size: float = 0.05
    """Shortest longer side of an object, as share of the height of the crop."""
    max_size: float = 0.4
    """Longest longer side of an object, as share of the height of the crop."""
    min_pixels: int = 16
    """An object of which fewer pixels would be seen is not pasted; a class of which pasted objects leave
    fewer pixels becomes void, since so small a rest teaches nothing."""
    cache_mb: int = 64
    """Decoded cut-outs kept in memory by each loader process, in MiB."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise InputError(f"paste.probability: got {self.probability}; a number in 0..1 is needed")
        if self.probability > 0 and not self.bank:
            raise InputError(
                f"paste.bank: is empty while paste.probability is {self.probability}; a folder is needed"
            )
        if self.max_objects < 1:
            raise InputError(f"paste.max_objects: got {self.max_objects}; at least 1 is needed")
        if self.placement not in PLACEMENTS:
            raise InputError(
                f"paste.placement: unknown placement {self.placement!r}; known: {', '.join(PLACEMENTS)}"
            )
        if self.blend not in BLENDS:
            raise InputError(f"paste.blend: unknown blend {self.blend!r}; known: {', '.join(BLENDS)}")
        if not 0 < self.min_size <= self.max_size <= 1:
            raise InputError(
                f"paste.min_size, paste.max_size: got {self.min_size} and {self.max_size}; needed is "
                "0 < min_size <= max_size <= 1"
            )
        for name, value in (("min_pixels", self.min_pixels), ("cache_mb", self.cache_mb)):
            if value < 0:
                raise InputError(f"paste.{name}: got {value}; 0 or more are needed")


class OutlierPaste:
    """Pastes objects of a bank onto scenes; a transform for `shards.stream.build_stream`."""

    def __init__(self, config: PasteConfig, bank: CutoutBank) -> None:
        self.config = config
        self.bank = bank

    def __call__(self, sample: Sample, generator: np.random.Generator) -> Sample:
        """Return the scene with outliers, or the very same scene where it gets none.

        A later object covers an earlier one. The given arrays are not modified.
        """
        if generator.random() >= self.config.probability:
            return sample
        image, label = sample.image.copy(), sample.label.copy()
        num_pasted = 0
        for _ in range(int(generator.integers(1, self.config.max_objects + 1))):
            num_pasted += self._paste_one(image, label, generator)
        if not num_pasted:
            return sample
        drop_remnants(sample.label, label, self.config.min_pixels)
        return Sample(key=sample.key, image=image, label=label)

    def _paste_one(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        label: UInt8[np.ndarray, "H W"],
        generator: np.random.Generator,
    ) -> bool:
        """Paste one object in place; False if it found no place or would hardly be seen."""
        config = self.config
        cutout = self.bank.get(int(generator.integers(len(self.bank))))
        mirrored = generator.random() < 0.5
        sizes = SizeRange(config.min_size, config.max_size)
        place = PLACEMENTS[config.placement](
            label, (cutout.mask.shape[0], cutout.mask.shape[1]), sizes, generator
        )
        if place is None:
            return False
        picture, mask = resize_cutout(cutout, place, mirrored)
        opacity = BLENDS[config.blend](mask)
        top_left = (place.top, place.left)
        if count_visible(opacity, top_left, (label.shape[0], label.shape[1])) < max(1, config.min_pixels):
            return False
        blend_into(image, label, picture, opacity, top_left)
        return True


def build_paste(config: PasteConfig) -> OutlierPaste | None:
    """Open the bank; None where nothing is ever pasted.

    Raises:
        InputError: the bank is missing or holds something else than cut-outs.
    """
    if config.probability == 0:
        return None
    return OutlierPaste(config, open_bank(config.bank, config.cache_mb))


def resize_cutout(
    cutout: Cutout, place: Place, mirrored: bool
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Return picture and mask at the size of `place`; the mask gets a soft edge."""
    size = (place.width, place.height)
    shrinks = cutout.mask.size > place.width * place.height
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    picture = cv2.resize(cutout.image, size, interpolation=method)
    mask = cv2.resize(cutout.mask, size, interpolation=method)
    return (cv2.flip(picture, 1), cv2.flip(mask, 1)) if mirrored else (picture, mask)


def drop_remnants(before: UInt8[np.ndarray, "H W"], label: UInt8[np.ndarray, "H W"], min_pixels: int) -> None:
    """Make void, in place, the classes of which pasting has left some pixels but fewer than `min_pixels`.

    Args:
        before: train ids of the scene without outliers.
        label: train ids with outliers; a class that lost no pixel stays, however small it is.
    """
    for train_id in np.unique(before[label != before]).tolist():
        rest = cv2.inRange(label, (train_id,), (train_id,))  # for a few classes much faster than a histogram
        if train_id < NUM_CLASSES and 0 < cv2.countNonZero(rest) < min_pixels:
            label[rest > 0] = VOID_ID
