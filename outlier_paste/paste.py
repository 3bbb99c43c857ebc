"""Objects pasted onto whole scenes while training: what the suite knows as outliers."""

from __future__ import annotations

from functools import partial

import cv2
import numpy as np
from jaxtyping import UInt8

from outlier_paste.appearance import APPEARANCES, Patch
from outlier_paste.bank import CutoutBank, fitting_shrink, open_bank, resize_cutout
from outlier_paste.blend import BLENDS, blend_into, find_overlap, hard_opacity
from outlier_paste.config import PasteConfig
from outlier_paste.placement import PLACEMENTS, SIZINGS, Place, Situation, place_on_road
from shards.schema import CITYSCAPES, OUTLIER_ID, VOID_ID, ClassTable, Sample, Transform

ATTEMPTS = 10
"""Tries to find a place that meets no other object; then the scene gets one object less."""
SAMPLED = (slice(None, None, 8), slice(None, None, 8))
"""A sixty-fourth of the pixels tells that a class is still large."""
Planned = tuple[int, bool, Place]
"""An object by number, whether it is mirrored, and its place."""


class OutlierPaste(Transform):
    """Pastes objects of a bank onto scenes; a transform for `shards.stream.build_stream`."""

    def __init__(self, config: PasteConfig, bank: CutoutBank, classes: ClassTable = CITYSCAPES) -> None:
        """Paste onto scenes of these classes, of which placement `road` needs one of that name."""
        self.config, self.before_crop = config, config.onto == "frame"
        self.bank = bank
        self._place = PLACEMENTS[config.placement]
        if config.placement == "road":
            self._place = partial(place_on_road, road_id=classes.find("road", "paste.placement road"))

    def __call__(self, sample: Sample, generator: np.random.Generator, epoch: int = 0) -> Sample:
        """Paste onto a scene, in place, from the epoch's part of the bank; return it."""
        if generator.random() >= self.config.probability:
            return sample
        hidden: set[int] = set()
        budget = int(self.config.max_hidden * sample.label.size)
        for planned in self._plan(sample, generator, epoch):
            covered = self._paste(sample, planned, budget, generator)
            budget -= sum(covered.values())
            hidden |= covered.keys()
        drop_remnants(sample.label, hidden, self.config.min_pixels)
        return sample

    def _plan(self, sample: Sample, generator: np.random.Generator, epoch: int) -> list[Planned]:
        """Choose objects and their places, the farthest first."""
        config, planned = self.config, list[Planned]()
        for _ in range(int(generator.integers(1, config.max_objects + 1))):
            number = self.bank.draw(generator, epoch)
            mirrored = config.mirror and bool(generator.random() < 0.5)
            place = self._find_place(sample, number, [taken for *_, taken in planned], generator)
            if place is not None:
                planned.append((number, mirrored, place))
        return sorted(planned, key=lambda item: item[2].bottom)  # stable: the order of the draws

    def _find_place(
        self, sample: Sample, number: int, taken: list[Place], generator: np.random.Generator
    ) -> Place | None:
        config, (height, width) = self.config, sample.label.shape
        limits, shape = (config.min_size, config.max_size), self.bank.shape(number)

        def size(nearness: float | None) -> tuple[int, int]:
            return SIZINGS[config.sizing](Situation(shape, (height, width), limits, nearness), generator)

        for _ in range(ATTEMPTS):
            place = self._place(sample.label, size, generator)
            if config.overlap == "ordered" or place is None or not any(map(place.meets, taken)):
                return place
        return None

    def _paste(
        self, sample: Sample, planned: Planned, budget: int, generator: np.random.Generator
    ) -> dict[int, int]:
        """Paste one object in place; return how many pixels of which train id it has hidden.

        Nothing where it would hardly be seen, or would hide more than `budget` pixels.
        """
        config, (number, mirrored, place) = self.config, planned
        size = (place.height, place.width)
        cutout = self.bank.get(number, fitting_shrink(self.bank.shape(number), size))
        cutout = resize_cutout(cutout, *size, mirrored=mirrored)
        patch = Patch(cutout.image, cutout.mask, place.top, place.left)
        for step in config.match:
            patch = APPEARANCES[step](patch, sample.image, generator)
        opacity, top_left = BLENDS[config.blend](patch.mask), (patch.top, patch.left)
        if (overlap := find_overlap(opacity.shape, top_left, sample.label.shape)) is None:
            return {}
        seen = hard_opacity(opacity[overlap.in_object])
        if cv2.countNonZero(seen) < max(1, config.min_pixels):
            return {}
        covered = count_values(sample.label[overlap.in_scene], seen)
        covered.pop(OUTLIER_ID, None)
        if sum(covered.values()) > budget:
            return {}
        blend_into(sample.image, sample.label, patch.picture, opacity, top_left)
        return covered


def build_paste(config: PasteConfig, classes: ClassTable = CITYSCAPES) -> OutlierPaste | None:
    """Open the bank's part that is for training; None where nothing is ever pasted."""
    if config.probability == 0:
        return None
    use = (config.pool, config.pool_refresh)
    bank = open_bank(config.bank, config.cache_mb, pool=use, held_out=config.held_out)
    return OutlierPaste(config, bank, classes)


def count_values(label: UInt8[np.ndarray, "h w"], mask: UInt8[np.ndarray, "h w"]) -> dict[int, int]:
    """Count the pixels of each train id where the mask is not 0."""
    counts = cv2.calcHist([label], [0], mask, [256], [0, 256]).ravel()  # float32: exact up to 2 ** 24
    return {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}


def drop_remnants(label: UInt8[np.ndarray, "H W"], hidden: set[int], min_pixels: int) -> None:
    """Make void, in place, the classes of which pasting has left some pixels but fewer than `min_pixels`."""
    sampled = np.ascontiguousarray(label[SAMPLED])
    for train_id in sorted(hidden):
        is_large = cv2.countNonZero(cv2.inRange(sampled, (train_id,), (train_id,))) >= max(1, min_pixels)
        if train_id >= OUTLIER_ID or is_large:
            continue
        rest = cv2.inRange(label, (train_id,), (train_id,))  # for a few classes faster than a histogram
        if 0 < cv2.countNonZero(rest) < min_pixels:
            label[rest > 0] = VOID_ID
