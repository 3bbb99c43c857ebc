"""The street's plan, and the ground as the camera sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

from jobs.world.camera import Camera
from jobs.world.canvas import SUPERSAMPLING, Canvas
from jobs.world.labels import LabelId
from jobs.world.style import Light, TownStyle
from jobs.world.texture import smooth_noise, to_colour

_KERB = 0.18  # metres


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
        found = [strip for strip in self.strips if strip.label == label and strip.middle * side > 0]
        return found[0] if found else None

    @property
    def road(self) -> Strip:
        """Return the road."""
        return next(strip for strip in self.strips if strip.label == LabelId.ROAD)

    def frontier(self, side: int) -> float:
        """X where houses begin, left (-1) or right (+1)."""
        return self.strips[0].left if side < 0 else self.strips[-1].right


def draw_street(rng: np.random.Generator, *, rails: bool = False, wide: bool = False) -> Street:
    """Plan a street around a camera in its right half.

    Args:
        rng: source of randomness.
        rails: lay a tramway on the left, beside the road.
        wide: more road, so that there is space for something to lie on it.
    """
    lane = rng.uniform(3.0, 3.5)
    lanes_left = 1 + int(wide or rng.random() < 0.35)
    lanes_right = 1 + int(wide and rng.random() < 0.7)
    left, right = -lane * (lanes_left + 0.5), lane * (lanes_right - 0.4)
    inner = [-lane * (0.5 + i) for i in range(lanes_left)] + [
        lane * (0.55 + i) for i in range(lanes_right - 1)
    ]
    sides = {-1: _side_bands(rng, rails), 1: _side_bands(rng, False)}
    strips = [Strip(left, right, LabelId.ROAD)]
    for label, width in sides[-1]:
        strips.insert(0, Strip(strips[0].left - width, strips[0].left, label))
    for label, width in sides[1]:
        strips.append(Strip(strips[-1].right, strips[-1].right + width, label))
    crossing = rng.uniform(8, 25) if rng.random() < 0.2 else None
    return Street(tuple(strips), tuple(inner), crossing)


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


def paint_ground(
    canvas: Canvas, camera: Camera, street: Street, town: TownStyle, light: Light, rng: np.random.Generator
) -> None:
    """Paint everything below the horizon: bands, lane marks, tiles, kerbs, and the houses' shadow."""
    top = max(0, int(np.ceil(camera.horizon * SUPERSAMPLING)))
    rows = (np.arange(top, canvas.pixels.shape[0]) + 0.5) / SUPERSAMPLING
    columns = (np.arange(canvas.pixels.shape[1]) + 0.5) / SUPERSAMPLING
    x, z = camera.ground(columns, rows)
    edges = [strip.left for strip in street.strips] + [street.strips[-1].right]
    beyond = LabelId.TERRAIN if rng.random() < 0.6 else LabelId.GROUND
    labels = np.array([beyond, *(strip.label for strip in street.strips), beyond], dtype=np.uint16)
    identities = labels[np.digitize(x, edges)]
    colours = _ground_colours(x, z, identities, street, town, rng)
    colours *= _cast_shadow(x, street, light)[..., None]
    clear = np.exp(-np.minimum(z, 500) * canvas.haze_per_metre)[..., None]
    colours = colours * clear + np.asarray(canvas.haze, np.float32) * (1 - clear)
    canvas.pixels[top:] = np.clip(colours, 0, 255).astype(np.uint8)
    canvas.identities[top:] = identities


def _ground_colours(
    x: Float[np.ndarray, "H W"],
    z: Float[np.ndarray, "H 1"],
    identities: Integer[np.ndarray, "H W"],
    street: Street,
    town: TownStyle,
    rng: np.random.Generator,
) -> Float[np.ndarray, "H W 3"]:
    palette = _palette(town, rng)
    amount = np.zeros(64, dtype=np.float32)
    amount[[LabelId.ROAD, LabelId.PARKING]] = 0.07
    amount[[LabelId.SIDEWALK, LabelId.GROUND]] = 0.06
    amount[[LabelId.RAIL_TRACK, LabelId.TERRAIN]] = 0.25

    field = smooth_noise((512, 512), 100, rng) - 0.5
    blotches = smooth_noise((256, 256), 12, rng) - 0.5
    # The noise repeats; its seam is 9 m to the side, out of sight where it would show.
    fine = field[_cells(z, 14, 512), _cells(x + 9, 28, 512)]
    coarse = blotches[_cells(z, 6, 256), _cells(x + 9, 14, 256)]
    fade = np.minimum(1, 14 / z)  # far away, the grain averages out
    colours = palette[identities] * (1 + 4 * amount[identities] * (fine * fade + 0.4 * coarse))[..., None]

    colours[_tile_lines(x, z) & (identities == LabelId.SIDEWALK)] *= 0.8
    for strip in street.strips:
        if strip.label == LabelId.SIDEWALK:
            inner = strip.right if strip.middle < 0 else strip.left
            colours[np.abs(x - inner - np.sign(strip.middle) * _KERB / 2) < _KERB / 2] = (
                np.asarray(town.pavement) * 1.2
            )
        if strip.label == LabelId.RAIL_TRACK:
            for rail in (strip.middle - 0.72, strip.middle + 0.72):
                colours[np.abs(x - rail) < 0.07] = (150, 148, 150)
    paint = 205 + 60 * coarse[..., None]
    return np.where(_markings(x, z, identities, street)[..., None], paint, colours)


def _palette(town: TownStyle, rng: np.random.Generator) -> Float[np.ndarray, "64 3"]:
    """Choose the colour of each kind of ground, by label id."""
    palette = np.zeros((64, 3), dtype=np.float32)
    palette[LabelId.ROAD] = town.road
    palette[LabelId.SIDEWALK] = town.pavement
    palette[LabelId.PARKING] = np.asarray(town.road) * 1.12
    palette[LabelId.RAIL_TRACK] = to_colour(0.08, 0.25, 0.42)
    palette[LabelId.TERRAIN] = to_colour(
        rng.uniform(0.17, 0.24), rng.uniform(0.4, 0.6), rng.uniform(0.5, 0.64)
    )
    palette[LabelId.GROUND] = to_colour(0.09, 0.15, 0.55)
    return palette


def _cells(metres: Float[np.ndarray, "..."], per_metre: float, count: int) -> Integer[np.ndarray, "..."]:
    """Index of the noise cell at a place; the noise repeats after `count` cells."""
    return np.floor(metres * per_metre).astype(np.int64) % count


def _tile_lines(x: Float[np.ndarray, "H W"], z: Float[np.ndarray, "H 1"]) -> np.ndarray:
    """Joints between paving stones of 0.6 m, as far as they can be seen."""
    return (z < 16) & ((np.mod(x, 0.6) < 0.05) | (np.mod(z, 0.6) < 0.07))


def _markings(
    x: Float[np.ndarray, "H W"],
    z: Float[np.ndarray, "H 1"],
    identities: Integer[np.ndarray, "H W"],
    street: Street,
) -> np.ndarray:
    """White paint: dashed lines between lanes, lines along the edges, a zebra crossing, parking bays."""
    road = street.road
    painted = np.zeros(x.shape, dtype=bool)
    for line in street.lanes:
        painted |= (np.abs(x - line) < 0.08) & (np.mod(z, 6) < 3.2)
    for edge in (road.left + 0.3, road.right - 0.3):
        painted |= np.abs(x - edge) < 0.06
    if street.crossing is not None:
        across = (z > street.crossing) & (z < street.crossing + 3.5)
        painted = np.where(across, np.mod(x, 1.0) < 0.5, painted)
    painted &= identities == LabelId.ROAD
    return painted | ((identities == LabelId.PARKING) & (np.mod(z, 5.5) < 0.15))


def _cast_shadow(x: Float[np.ndarray, "H W"], street: Street, light: Light) -> Float[np.ndarray, "H W"]:
    """The houses on the sun's side darken the ground next to them."""
    reach = street.frontier(light.sun_side) - light.sun_side * 4.5
    depth = (x - reach) * light.sun_side / 0.6
    return 1 - light.shadows * np.clip(depth, 0, 1)
