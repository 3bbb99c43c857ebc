"""Boxes with pictures on their sides, seen in perspective: vehicles and crates are made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from jobs.world.camera import NEAREST, Camera
from jobs.world.canvas import Canvas

Side = Literal["front", "back", "left", "right", "top"]
_SHADES: dict[Side, float] = {"front": 0.92, "back": 0.92, "left": 1.0, "right": 0.78, "top": 1.12}
# Corners as (u, v): upper left, upper right, lower right, lower left, seen from outside.
# u in {-1, 1} is right of the solid, v in {-1, 1} is its front; the top of each side comes first.
_CORNERS: dict[Side, tuple[tuple[int, int, int], ...]] = {
    "back": ((-1, -1, 1), (1, -1, 1), (1, -1, 0), (-1, -1, 0)),
    "front": ((1, 1, 1), (-1, 1, 1), (-1, 1, 0), (1, 1, 0)),
    "left": ((-1, 1, 1), (-1, -1, 1), (-1, -1, 0), (-1, 1, 0)),
    "right": ((1, -1, 1), (1, 1, 1), (1, 1, 0), (1, -1, 0)),
    "top": ((-1, 1, 1), (1, 1, 1), (1, -1, 1), (-1, -1, 1)),
}


@dataclass(frozen=True)
class Pose:
    """Where a thing stands and where it looks."""

    x: float
    z: float
    heading: float = 0.0
    """Radians; 0 looks away from the camera, positive turns to the right."""

    def place(self, local: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
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
    """Where its middle is along the thing."""
    taper: tuple[float, float] = (1.0, 1.0)
    """Width and length of the top as a share of those of the bottom."""

    def corners(self, side: Side) -> Float[np.ndarray, "4 3"]:
        """Return the corners of a side in local metres: right, up, ahead."""
        points = []
        for u, v, level in _CORNERS[side]:
            across = self.taper[0] if level else 1.0
            along = self.taper[1] if level else 1.0
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


def paint_box(
    canvas: Canvas,
    camera: Camera,
    pose: Pose,
    box: Box,
    textures: dict[Side, UInt8[np.ndarray, "h w c"]],
    identity: int,
) -> None:
    """Paint the visible sides; `textures` may leave out a side, which then looks like `back`."""
    for side, corners in visible_sides(camera, pose, box).items():
        texture = textures.get(side, textures["back"])
        canvas.warp(texture, corners, identity, depth=pose.z, shade=_SHADES[side])


def paint_contact_shadow(
    canvas: Canvas, camera: Camera, pose: Pose, width: float, length: float, strength: float
) -> None:
    """Darken the ground under a thing of the given footprint."""
    corners = np.array([(-1, 0, -1), (1, 0, -1), (1, 0, 1), (-1, 0, 1)]) * (width * 0.55, 0, length * 0.53)
    ground = camera.project(pose.place(corners))
    softness = float(np.clip(0.12 * camera.pixels_per_metre(pose.z), 0.4, 4))
    canvas.shadow(ground, strength, softness)
