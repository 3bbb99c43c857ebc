"""The camera, and flat figures and boxes that it sees in perspective.

World coordinates in metres: X to the right of the camera, Y up from the ground, Z along the street, which
is flat and possibly bent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from jobs.world.canvas import Canvas, Colour, Picture, ellipse_points, rectangle

_Points = Float[np.ndarray, "N 3"] | Sequence[Sequence[float]]
NEAREST = 1.5
"""Metres; what is closer is not drawn."""
Side = Literal["front", "back", "left", "right", "top"]
_SHADES: dict[Side, float] = {"front": 0.92, "back": 0.92, "left": 1.0, "right": 0.78, "top": 1.12}
# Corners of a box as (right, ahead, up): upper left, upper right, lower right, lower left, seen from outside.
_CORNERS: dict[Side, tuple[tuple[int, int, int], ...]] = {
    "back": ((-1, -1, 1), (1, -1, 1), (1, -1, 0), (-1, -1, 0)),
    "front": ((1, 1, 1), (-1, 1, 1), (-1, 1, 0), (1, 1, 0)),
    "left": ((-1, 1, 1), (-1, -1, 1), (-1, -1, 0), (-1, 1, 0)),
    "right": ((1, -1, 1), (1, 1, 1), (1, 1, 0), (1, -1, 0)),
    "top": ((-1, 1, 1), (1, 1, 1), (1, -1, 1), (-1, -1, 1)),
}


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that projects the street onto a picture, in final pixels."""

    focal: float
    """Pixels."""
    column: float
    """Column of the vanishing point."""
    horizon: float
    """Row of the horizon."""
    elevation: float = 1.5
    """Metres above the ground."""
    bend: float = 0.0
    """Lateral offset of the street in metres at distance Z is bend * Z^2."""

    def project(self, points: _Points) -> Float[np.ndarray, "N 2"]:
        """Return (column, row) of points; those closer than `NEAREST` are taken to be there."""
        x, y, z = np.asarray(points, dtype=np.float64).T
        z = np.maximum(z, NEAREST)
        columns = self.column + self.focal * (x + self.bend * z**2) / z
        rows = self.horizon + self.focal * (self.elevation - y) / z
        return np.stack([columns, rows], axis=1)

    def pixels_per_metre(self, z: float) -> float:
        """Return the scale of what stands upright at distance `z`."""
        return self.focal / max(z, NEAREST)

    def ground(
        self, columns: Float[np.ndarray, " W"], rows: Float[np.ndarray, " H"]
    ) -> tuple[Float[np.ndarray, "H W"], Float[np.ndarray, "H 1"]]:
        """Return X and Z of the ground seen in pixels below the horizon."""
        z = self.focal * self.elevation / np.maximum(rows - self.horizon, 1e-3)[:, None]
        x = (columns[None] - self.column) * z / self.focal - self.bend * z**2
        return x.astype(np.float32), z.astype(np.float32)


def draw_camera(height: int, width: int, rng: np.random.Generator) -> Camera:
    """Choose a camera whose field of view fits a picture of `height` rows."""
    return Camera(
        focal=height * rng.uniform(1.02, 1.18),
        column=width * rng.uniform(0.42, 0.58),
        horizon=height * rng.uniform(0.38, 0.46),
        elevation=rng.uniform(1.4, 1.75),
        bend=rng.normal(0, 0.0016),
    )


@dataclass(frozen=True)
class View:
    """A canvas, the camera that looks at the world, and the source of randomness of what is painted."""

    canvas: Canvas
    camera: Camera
    rng: np.random.Generator


@dataclass(frozen=True)
class Figure:
    """A flat drawing board that stands upright at (X, Z); local metres are (right, up)."""

    view: View
    x: float
    z: float
    identity: int
    mirror: float = 1.0
    size: float = 1.0
    grain: float = 0.0

    def screen(self, points: Sequence[tuple[float, float]]) -> Float[np.ndarray, "N 2"]:
        """Return where points of the drawing board are on the picture."""
        placed = [(self.x + self.mirror * self.size * u, self.size * v, self.z) for u, v in points]
        return self.view.camera.project(placed)

    @property
    def unit(self) -> float:
        """Pixels per local metre."""
        return self.size * self.view.camera.pixels_per_metre(self.z)

    def fill(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        """Fill a polygon."""
        screen = self.screen(points)
        self.view.canvas.fill(screen, colour, self.identity, depth=self.z, grain=self.grain)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fill a rectangle."""
        self.fill(rectangle(left, top, right, bottom), colour)

    def limb(self, points: Sequence[tuple[float, float]], width: float, colour: Colour) -> None:
        """Draw a line through `points`, `width` local metres wide."""
        self.view.canvas.stroke(self.screen(points), width * self.unit, colour, self.identity, depth=self.z)

    def disc(self, centre: tuple[float, float], radii: tuple[float, float], colour: Colour) -> None:
        """Fill an ellipse."""
        column, row = self.screen([centre])[0]
        points = ellipse_points((column, row), (radii[0] * self.unit, radii[1] * self.unit))
        self.view.canvas.fill(points, colour, self.identity, depth=self.z)

    def ring(self, centre: tuple[float, float], radius: float, width: float, colour: Colour) -> None:
        """Draw the outline of a circle."""
        turn = np.linspace(0, 2 * np.pi, 25)
        points = [(centre[0] + radius * np.cos(a), centre[1] + radius * np.sin(a)) for a in turn]
        self.limb(points, width, colour)


@dataclass(frozen=True)
class Pose:
    """Place and heading of a thing on the street."""

    x: float
    z: float
    heading: float = 0.0
    """Radians; 0 looks away from the camera, positive turns to the right."""

    def place(self, local: _Points) -> Float[np.ndarray, "N 3"]:
        """Turn points (right, up, ahead) of the thing into the world's X, Y, Z."""
        right, up, ahead = np.asarray(local, dtype=np.float64).T
        cos, sin = np.cos(self.heading), np.sin(self.heading)
        return np.stack([self.x + cos * right + sin * ahead, up, self.z - sin * right + cos * ahead], axis=1)


@dataclass(frozen=True)
class Box:
    """A box, or with a taper a frustum, in the local metres of a thing."""

    width: float
    length: float
    bottom: float
    top: float
    ahead: float = 0.0
    """Position of its middle along the thing."""
    taper: tuple[float, float] = (1.0, 1.0)
    """Width and length of the top as a share of those of the bottom."""

    def corners(self, side: Side) -> Float[np.ndarray, "4 3"]:
        """Return the corners of a side in local metres: right, up, ahead."""
        points = []
        for u, v, level in _CORNERS[side]:
            across, along = self.taper if level else (1.0, 1.0)
            height = self.top if level else self.bottom
            points.append((u * across * self.width / 2, height, self.ahead + v * along * self.length / 2))
        return np.array(points)


def visible_sides(camera: Camera, pose: Pose, box: Box) -> dict[Side, Float[np.ndarray, "4 2"]]:
    """Return the sides that face the camera, with their corners on the screen."""
    seen: dict[Side, Float[np.ndarray, "4 2"]] = {}
    for side in _CORNERS:
        world = pose.place(box.corners(side))
        if world[:, 2].min() <= NEAREST:
            continue
        screen = camera.project(world)
        x, y = screen.T
        area = np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))
        if area > 1e-6:  # clockwise on a screen whose rows grow downwards
            seen[side] = screen
    return seen


@dataclass(frozen=True)
class Solid:
    """A thing of boxes on the street; local metres are (right, up, ahead)."""

    view: View
    pose: Pose
    identity: int

    def fill(self, points: _Points, colour: Colour) -> None:
        """Fill a polygon in space."""
        screen = self.view.camera.project(self.pose.place(points))
        self.view.canvas.fill(screen, colour, self.identity, depth=self.pose.z)

    def paint(self, box: Box, textures: dict[Side, Picture]) -> None:
        """Paint the visible sides; `textures` may leave out a side, which then looks like `back`."""
        for side, corners in visible_sides(self.view.camera, self.pose, box).items():
            texture = textures.get(side, textures["back"])
            self.view.canvas.warp(texture, corners, self.identity, depth=self.pose.z, shade=_SHADES[side])

    def shadow(self, width: float, length: float, strength: float) -> None:
        """Darken the ground under the thing's footprint."""
        reach = (width * 0.55, 0, length * 0.53)
        corners = np.array([(-1, 0, -1), (1, 0, -1), (1, 0, 1), (-1, 0, 1)]) * reach
        softness = float(np.clip(0.12 * self.view.camera.pixels_per_metre(self.pose.z), 0.4, 4))
        self.view.canvas.shadow(self.view.camera.project(self.pose.place(corners)), strength, softness)
