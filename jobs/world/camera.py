"""A pinhole camera over a flat, possibly bent street.

World coordinates in metres: X to the right of the camera, Y up from the ground, Z along the street.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

NEAREST = 1.5
"""Metres; what is closer is not drawn."""


@dataclass(frozen=True)
class Camera:
    """Projects the street onto a picture, in final pixels."""

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

    def project(
        self, points: Float[np.ndarray, "N 3"] | Sequence[Sequence[float]]
    ) -> Float[np.ndarray, "N 2"]:
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
