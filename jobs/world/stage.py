"""A street in the making: what all the pieces of a scene need to paint themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jobs.world.camera import Camera
from jobs.world.canvas import Canvas
from jobs.world.ground import Street
from jobs.world.style import Light, TownStyle

RARE: tuple[str, ...] = ("bus", "rider", "wall", "truck", "motorcycle", "train", "fence", "bicycle")
"""What few streets have; scene number i is sure to try for the i-th of them, modulo their number."""

Piece = tuple[float, Callable[[], None]]
"""Distance in metres, and what paints something there."""


@dataclass(frozen=True)
class SceneOptions:
    """How a scene differs from the ordinary."""

    feature: str = ""
    """One of `RARE` that the scene shall show."""
    hood: float = 0.1
    """Height of the ego vehicle's bonnet, as a share of the picture's; 0 for none."""
    frame: bool = True
    """A dark rim where rectification leaves no picture; labelled out of roi."""
    traffic: float = 1.0
    """How many cars and people, relative to an ordinary street."""
    wide: bool = False
    """A wide road."""
    unusual: bool = False
    """Light that the training scenes do not have."""


@dataclass(frozen=True)
class Stage:
    """Where a scene is painted, and its plan."""

    canvas: Canvas
    camera: Camera
    street: Street
    town: TownStyle
    light: Light
    options: SceneOptions
    rng: np.random.Generator
