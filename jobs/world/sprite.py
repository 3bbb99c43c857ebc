"""Objects drawn on small canvases of their own, to be stamped onto pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Bool, Float

from jobs.world.canvas import Canvas, Colour, Paint, Pair, Points, Sprite, Surface, ellipse_points, rectangle
from jobs.world.labels import OBJECT_ID


def mix_colours(
    share: Float[np.ndarray, "s s"] | Bool[np.ndarray, "s s"], first: Colour, second: Colour
) -> Surface:
    """Return a surface that is `first` where `share` is 1 and `second` where it is 0."""
    weight = share.astype(np.float32)[..., None]
    return weight * np.asarray(first, np.float32) + (1 - weight) * np.asarray(second, np.float32)


def unit_grid(side: int) -> tuple[Float[np.ndarray, "s s"], Float[np.ndarray, "s s"]]:
    """Return rows and columns of a surface's pixels, in [0, 1)."""
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32) / side
    return rows, columns


class Board:
    """A square canvas with coordinates -1..1 (x to the right, y up), and what random choices draw from."""

    def __init__(self, side: int, rng: np.random.Generator, turn: float = 0.0) -> None:
        """Start empty, `side` final pixels wide; what is drawn is turned clockwise by `turn` radians."""
        self.canvas = Canvas(side, side, rng)
        self.rng = rng
        self._side, self._turn = side, turn

    @property
    def resolution(self) -> int:
        """Supersampled pixels along each side, which a `Surface` must have."""
        return int(self.canvas.pixels.shape[0])

    def screen(self, points: Points) -> Float[np.ndarray, "N 2"]:
        """Turn board coordinates into final pixels."""
        x, y = np.asarray(points, dtype=np.float64).T
        cos, sin = np.cos(self._turn), np.sin(self._turn)
        x, y = cos * x + sin * y, cos * y - sin * x
        return np.stack([(1 + 0.96 * x) / 2 * self._side, (1 - 0.96 * y) / 2 * self._side], axis=1)

    def fill(self, points: Points, paint: Paint) -> None:
        """Fill a polygon, which becomes part of the object."""
        self.canvas.fill(self.screen(points), paint, OBJECT_ID, grain=0.03)

    def box(self, left: float, top: float, right: float, bottom: float, paint: Paint) -> None:
        """Fill a rectangle."""
        self.fill(rectangle(left, top, right, bottom), paint)

    def oval(self, centre: Pair, radii: Pair, paint: Paint, angle: float = 0.0) -> None:
        """Fill an ellipse; `angle` in radians turns it clockwise."""
        self.fill(ellipse_points(centre, radii, angle, count=40), paint)

    def line(self, points: Points, width: float, paint: Paint) -> None:
        """Draw a thick line with straight joints as filled quadrilaterals and round ends."""
        path = np.asarray(points, dtype=np.float64)
        for start, stop in itertools.pairwise(path):
            along = (stop - start) / max(float(np.linalg.norm(stop - start)), 1e-9)
            across = np.array([-along[1], along[0]]) * width / 2
            self.fill(np.stack([start + across, stop + across, stop - across, start - across]), paint)
        for place in path:
            self.oval((place[0], place[1]), (width / 2, width / 2), paint)

    def decal(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Paint a rectangle on what is already there; nothing is added to the shape."""
        inside = self.canvas.identities > 0
        before = self.canvas.pixels.copy()
        self.canvas.fill(self.screen(rectangle(left, top, right, bottom)), colour)
        self.canvas.pixels[~inside] = before[~inside]

    def cut(self, points: Points) -> None:
        """Make a hole."""
        self.canvas.fill(self.screen(points), (0, 0, 0), 0)


def arc(turn: Float[np.ndarray, " N"], centre: Pair, radii: Pair) -> Float[np.ndarray, "N 2"]:
    """Return the points of an ellipse at the angles `turn`, in radians."""
    return np.stack([centre[0] + radii[0] * np.cos(turn), centre[1] + radii[1] * np.sin(turn)], axis=1)


def draw_sprite(
    draw: Callable[[Board], None], side: int, rng: np.random.Generator, turn: float = 0.0
) -> Sprite:
    """Draw an object that spans about `side` final pixels, lit from above, and crop it to its shape."""
    board = Board(max(side, 6), rng, turn)
    draw(board)
    mask = board.canvas.identities > 0
    # Lit as if the flat shape bulged: bright above, dark below and towards its rim.
    depth = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), len(mask) * 0.06)
    height = np.linspace(1.14, 0.82, len(mask), dtype=np.float32)[:, None]
    shade = height * (0.62 + 0.42 * np.clip(depth, 0, 1))
    picture = np.clip(board.canvas.pixels * shade[..., None], 0, 255).astype(np.uint8)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return Sprite(picture[part].copy(), mask[part].copy())
