"""Palette of a town, light of a picture, plan of a street, and the stage on which they are painted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jobs.world.canvas import Colour
from jobs.world.labels import LabelId
from jobs.world.perspective import View
from jobs.world.texture import draw_colour, to_colour

RARE: tuple[str, ...] = ("bus", "rider", "wall", "truck", "motorcycle", "train", "fence", "bicycle")
"""What few streets have; scene number i is sure to try for the i-th of them, modulo their number."""

Place = tuple[float, float]
"""X and Z in metres."""
Piece = tuple[float, Callable[[], object]]
"""Distance in metres, and what paints something there."""


@dataclass(frozen=True)
class TownStyle:
    """The palette of a town."""

    facades: tuple[Colour, ...]
    foliage_hue: float
    """In turns; about 0.22 (yellowish) to 0.36 (bluish)."""
    road: Colour
    pavement: Colour
    trees: float
    """Probability that a place for a tree has one."""


@dataclass(frozen=True)
class Light:
    """The hour and the weather of one picture."""

    gain: tuple[float, float, float]
    """Factor on red, green, blue."""
    zenith: Colour
    skyline: Colour
    clouds: float
    """Share of the sky under clouds, 0..1."""
    haze_per_metre: float
    sun_side: int
    """-1 where the sun stands on the left, +1 on the right."""
    shadows: float
    """Strength of cast shadows, 0..1."""
    noise: float
    """Standard deviation of the sensor noise, in grey levels."""


def draw_town(rng: np.random.Generator) -> TownStyle:
    """Choose a town's palette: plaster, brick and stone in muted colours."""
    kinds = (  # how many, and the ranges of hue, saturation and value: plaster, brick, other
        (4, (0.06, 0.15), (0.05, 0.45), (0.6, 0.92)),
        (2, (0.0, 0.05), (0.3, 0.55), (0.42, 0.62)),
        (2, (0.0, 1.0), (0.03, 0.2), (0.5, 0.85)),
    )
    facades = tuple(draw_colour(rng, *ranges) for count, *ranges in kinds for _ in range(count))
    grey, pale = rng.uniform(80, 105), rng.uniform(140, 170)
    return TownStyle(
        facades=facades,
        foliage_hue=rng.uniform(0.22, 0.34),
        road=(grey, grey, grey + rng.uniform(0, 6)),
        pavement=(pale, pale - rng.uniform(4, 16), pale - rng.uniform(10, 30)),
        trees=rng.uniform(0.35, 0.75),
    )


def draw_light(rng: np.random.Generator, *, unusual: bool = False) -> Light:
    """Choose hour and weather; `unusual` light is warmer or colder, with more haze and noise."""
    warm = rng.uniform(-0.05, 0.05) + (rng.choice([-0.07, 0.09]) if unusual else 0.0)
    bright = rng.uniform(0.85, 1.08) * (rng.uniform(0.8, 1.0) if unusual else 1.0)
    clouds = rng.uniform(0.0, 1.0)
    hue, saturation = rng.uniform(0.55, 0.6), rng.uniform(0.35, 0.6) * (1 - 0.6 * clouds)
    return Light(
        gain=(bright * (1 + warm), bright, bright * (1 - warm)),
        zenith=to_colour(hue, saturation, rng.uniform(0.8, 0.95)),
        skyline=draw_colour(rng, (0.08, 0.6), (0.02, 0.14), (0.86, 0.96)),
        clouds=clouds,
        haze_per_metre=rng.uniform(0.002, 0.006) * (1.7 if unusual else 1.0),
        sun_side=int(rng.choice([-1, 1])),
        shadows=rng.uniform(0.15, 0.45) * (1 - 0.6 * clouds),
        noise=rng.uniform(1.5, 3.5) * (1.4 if unusual else 1.0),
    )


@dataclass(frozen=True)
class Strip:
    """A band of ground along the street, from `left` to `right` in metres."""

    left: float
    right: float
    label: LabelId

    @property
    def middle(self) -> float:
        """Return X of the middle."""
        return (self.left + self.right) / 2


@dataclass(frozen=True)
class Street:
    """The plan of a street: bands side by side, from left to right, without gaps."""

    strips: tuple[Strip, ...]
    lanes: tuple[float, ...]
    """X of the lines between lanes."""
    crossing: float | None
    """Z where a zebra crossing begins."""

    def strip(self, label: LabelId, side: int) -> Strip | None:
        """Return the band of a kind left (-1) or right (+1) of the camera."""
        return next((s for s in self.strips if s.label == label and s.middle * side > 0), None)

    @property
    def road(self) -> Strip:
        """Return the road."""
        return next(strip for strip in self.strips if strip.label == LabelId.ROAD)

    def frontier(self, side: int) -> float:
        """X where houses begin, left (-1) or right (+1)."""
        return self.strips[0].left if side < 0 else self.strips[-1].right


def draw_street(rng: np.random.Generator, *, rails: bool = False, wide: bool = False) -> Street:
    """Plan a street around a camera in its right half; `rails` lie on the left, beside the road."""
    lane = rng.uniform(3.0, 3.5)
    lanes_left = 1 + int(wide or rng.random() < 0.35)
    lanes_right = 1 + int(wide and rng.random() < 0.7)
    left, right = -lane * (lanes_left + 0.5), lane * (lanes_right - 0.4)
    lanes = [-lane * (0.5 + i) for i in range(lanes_left)]
    lanes += [lane * (0.55 + i) for i in range(lanes_right - 1)]
    strips = [Strip(left, right, LabelId.ROAD)]
    for label, width in _side_bands(rng, rails):
        strips.insert(0, Strip(strips[0].left - width, strips[0].left, label))
    for label, width in _side_bands(rng, False):
        strips.append(Strip(strips[-1].right, strips[-1].right + width, label))
    crossing = rng.uniform(8, 25) if rng.random() < 0.2 else None
    return Street(tuple(strips), tuple(lanes), crossing)


def _side_bands(rng: np.random.Generator, rails: bool) -> list[tuple[LabelId, float]]:
    """Choose what lies between road and houses, from the road outwards."""
    bands = []
    if rails:
        bands.append((LabelId.RAIL_TRACK, 3.2))
    elif rng.random() < 0.35:
        bands.append((LabelId.PARKING, 2.2))
    bands.append((LabelId.SIDEWALK, rng.uniform(2.0, 4.0)))
    if rng.random() < 0.45:
        bands.append((LabelId.TERRAIN, rng.uniform(1.5, 4.5)))
    return bands


@dataclass(frozen=True)
class SceneOptions:
    """Differences of a scene from the ordinary."""

    feature: str = ""
    """One of `RARE` that the scene shall show."""
    hood: float = 0.1
    """Height of the ego vehicle's bonnet, as a share of the picture's; 0 for none, and no rim around."""
    traffic: float = 1.0
    """Number of cars and people, relative to an ordinary street."""
    wide: bool = False
    """A wide road, with space for something to lie on it."""
    unusual: bool = False
    """Light that the training scenes do not have."""


@dataclass(frozen=True)
class Stage(View):
    """View of a street in the making, and its plan."""

    street: Street
    town: TownStyle
    light: Light
    options: SceneOptions
