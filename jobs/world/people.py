"""People on foot and on two wheels, painted as flat figures that face the camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from jobs.world.camera import Camera
from jobs.world.canvas import Canvas, Colour
from jobs.world.labels import LabelId
from jobs.world.texture import scaled, to_colour

_SKIN: tuple[Colour, ...] = ((236, 196, 168), (205, 155, 120), (140, 95, 70), (95, 62, 46))


@dataclass(frozen=True)
class Figure:
    """A flat drawing board that stands upright on the street; local metres are (right, up)."""

    canvas: Canvas
    camera: Camera
    x: float
    z: float
    mirror: float = 1.0
    size: float = 1.0

    def screen(self, points: list[tuple[float, float]]) -> Float[np.ndarray, "N 2"]:
        """Return where points of the drawing board are on the picture."""
        return self.camera.project(
            [(self.x + self.mirror * self.size * u, self.size * v, self.z) for u, v in points]
        )

    @property
    def unit(self) -> float:
        """Pixels per local metre."""
        return self.size * self.camera.pixels_per_metre(self.z)

    def fill(
        self, points: list[tuple[float, float]], colour: Colour, identity: int, grain: float = 0.06
    ) -> None:
        """Fill a polygon."""
        self.canvas.fill(self.screen(points), colour, identity, depth=self.z, grain=grain)

    def limb(self, points: list[tuple[float, float]], width: float, colour: Colour, identity: int) -> None:
        """Draw a line through `points`, `width` local metres wide."""
        self.canvas.stroke(self.screen(points), width * self.unit, colour, identity, depth=self.z)

    def disc(
        self, centre: tuple[float, float], radius: float, colour: Colour, identity: int, squash: float = 1.0
    ) -> None:
        """Fill a circle; `squash` narrows it."""
        column, row = self.screen([centre])[0]
        radii = (radius * squash * self.unit, radius * self.unit)
        self.canvas.ellipse((column, row), radii, colour, identity, depth=self.z)

    def ring(
        self,
        centre: tuple[float, float],
        radius: float,
        width: float,
        colour: Colour,
        identity: int,
        squash: float = 1.0,
    ) -> None:
        """Draw the outline of a circle."""
        turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        points = [(centre[0] + squash * radius * np.cos(a), centre[1] + radius * np.sin(a)) for a in turn]
        self.canvas.stroke(
            self.screen(points), width * self.unit, colour, identity, depth=self.z, closed=True
        )


@dataclass(frozen=True)
class _Clothes:
    skin: Colour
    hair: Colour
    top: Colour
    trousers: Colour


def paint_person(
    canvas: Canvas, camera: Camera, place: tuple[float, float], identity: int, rng: np.random.Generator
) -> None:
    """Paint somebody walking or standing at (X, Z)."""
    figure = Figure(canvas, camera, *place, mirror=rng.choice([-1.0, 1.0]), size=rng.uniform(0.85, 1.08))
    clothes = _dress(rng)
    _foot_shadow(figure, 0.3)
    stride = rng.uniform(0.02, 0.3)
    for foot, tone in ((-stride, 0.75), (stride, 1.0)):
        figure.limb(
            [(0.05 * np.sign(foot), 0.88), (foot * 0.7, 0.45), (foot, 0.04)],
            0.17,
            scaled(clothes.trousers, tone),
            identity,
        )
        figure.limb([(foot - 0.02, 0.04), (foot + 0.1, 0.04)], 0.09, (30, 28, 28), identity)
    swing = rng.uniform(0.05, 0.22)
    figure.limb(
        [(0.12, 1.36), (0.16 + swing * 0.6, 1.1), (0.14 + swing, 0.88)],
        0.11,
        scaled(clothes.top, 0.8),
        identity,
    )
    figure.fill([(-0.21, 1.42), (0.21, 1.42), (0.18, 0.82), (-0.18, 0.82)], clothes.top, identity)
    figure.limb(
        [(-0.14, 1.36), (-0.2 - swing * 0.5, 1.1), (-0.16 - swing, 0.88)],
        0.11,
        scaled(clothes.top, 1.1),
        identity,
    )
    _paint_head(figure, (0.0, 1.6), clothes, identity)


def paint_cyclist(
    canvas: Canvas,
    camera: Camera,
    place: tuple[float, float],
    rng: np.random.Generator,
    *,
    motor: bool,
    along: bool,
) -> None:
    """Paint a rider on a bicycle or a motorcycle.

    Args:
        canvas: painted on.
        camera: sees it.
        place: X and Z.
        rng: source of randomness.
        motor: a motorcycle instead of a bicycle.
        along: rides along the street (seen from behind) instead of across it (seen from the side).
    """
    figure = Figure(canvas, camera, *place, mirror=rng.choice([-1.0, 1.0]))
    machine = canvas.new_instance(LabelId.MOTORCYCLE if motor else LabelId.BICYCLE)
    rider = canvas.new_instance(LabelId.RIDER)
    clothes = _dress(rng)
    _foot_shadow(figure, 0.3 if along else 0.8)
    if along:
        _machine_from_behind(figure, machine, motor, rng)
        _rider_from_behind(figure, rider, clothes, motor)
    else:
        _machine_from_the_side(figure, machine, motor, rng)
        _rider_from_the_side(figure, rider, clothes, motor)


def paint_parked_cycle(
    canvas: Canvas, camera: Camera, place: tuple[float, float], rng: np.random.Generator, *, motor: bool
) -> None:
    """Paint a bicycle or motorcycle without a rider, seen from the side."""
    figure = Figure(canvas, camera, *place, mirror=rng.choice([-1.0, 1.0]))
    identity = canvas.new_instance(LabelId.MOTORCYCLE if motor else LabelId.BICYCLE)
    _foot_shadow(figure, 0.8)
    _machine_from_the_side(figure, identity, motor, rng)


def _dress(rng: np.random.Generator) -> _Clothes:
    return _Clothes(
        skin=_SKIN[rng.integers(len(_SKIN))],
        hair=to_colour(rng.uniform(0.04, 0.1), rng.uniform(0.1, 0.6), rng.uniform(0.1, 0.5)),
        top=to_colour(rng.random(), rng.uniform(0.2, 0.85), rng.uniform(0.3, 0.85)),
        trousers=to_colour(rng.uniform(0.55, 0.68), rng.uniform(0.05, 0.5), rng.uniform(0.15, 0.45)),
    )


def _foot_shadow(figure: Figure, reach: float) -> None:
    column, row = figure.screen([(0.0, 0.0)])[0]
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    outline = np.stack([np.cos(turn) * reach, np.sin(turn) * 0.1], axis=1) * figure.unit + (column, row)
    figure.canvas.shadow(outline, 0.45, max(0.4, 0.05 * figure.unit))


def _paint_head(
    figure: Figure, centre: tuple[float, float], clothes: _Clothes, identity: int, *, helmet: bool = False
) -> None:
    figure.limb([(centre[0], centre[1] - 0.2), centre], 0.1, clothes.skin, identity)
    figure.disc(centre, 0.135, clothes.skin, identity, squash=0.85)
    up = 0.02 if helmet else 0.06
    figure.disc((centre[0] - 0.02, centre[1] + up), 0.14 if helmet else 0.11, clothes.hair, identity)


def _machine_from_the_side(figure: Figure, identity: int, motor: bool, rng: np.random.Generator) -> None:
    colour = to_colour(rng.random(), rng.uniform(0.4, 0.9), rng.uniform(0.35, 0.8))
    if motor:
        for wheel in (-0.68, 0.68):
            figure.disc((wheel, 0.31), 0.31, (22, 22, 24), identity)
            figure.disc((wheel, 0.31), 0.15, (135, 135, 140), identity)
        figure.fill(
            [(-0.75, 0.78), (-0.1, 0.72), (0.3, 0.95), (0.62, 0.88), (0.5, 0.4), (-0.35, 0.3)],
            colour,
            identity,
        )
        figure.fill([(-0.4, 0.5), (0.3, 0.5), (0.25, 0.2), (-0.3, 0.2)], (70, 70, 74), identity)
        figure.limb([(0.45, 0.9), (0.68, 0.31)], 0.08, (150, 150, 155), identity)
        figure.limb([(0.4, 1.08), (0.5, 0.88)], 0.07, (30, 30, 30), identity)
        return
    for wheel in (-0.52, 0.52):
        figure.ring((wheel, 0.34), 0.31, 0.07, (25, 25, 27), identity)
        figure.limb([(wheel - 0.3, 0.34), (wheel + 0.3, 0.34)], 0.02, (110, 110, 112), identity)
    frame = [(-0.52, 0.34), (-0.05, 0.32), (0.4, 0.82), (-0.18, 0.8), (-0.05, 0.32)]
    figure.limb(frame, 0.06, colour, identity)
    figure.limb([(-0.52, 0.34), (-0.18, 0.8), (-0.22, 0.95)], 0.055, colour, identity)
    figure.limb([(0.52, 0.34), (0.38, 0.98), (0.5, 1.02)], 0.055, colour, identity)
    figure.limb([(-0.34, 0.96), (-0.1, 0.96)], 0.08, (30, 28, 28), identity)


def _machine_from_behind(figure: Figure, identity: int, motor: bool, rng: np.random.Generator) -> None:
    colour = to_colour(rng.random(), rng.uniform(0.4, 0.9), rng.uniform(0.35, 0.8))
    wide = 0.16 if motor else 0.08
    figure.limb([(0.0, 0.02), (0.0, 0.66)], wide, (22, 22, 24), identity)
    if motor:
        figure.fill([(-0.24, 0.92), (0.24, 0.92), (0.2, 0.5), (-0.2, 0.5)], colour, identity)
        figure.fill([(-0.1, 0.78), (0.1, 0.78), (0.1, 0.68), (-0.1, 0.68)], (215, 25, 30), identity)
        figure.limb([(-0.4, 1.08), (0.4, 1.08)], 0.06, (35, 35, 37), identity)
        return
    figure.limb([(0.0, 0.55), (0.0, 0.92)], 0.07, colour, identity)
    figure.limb([(-0.3, 1.02), (0.3, 1.02)], 0.05, (60, 60, 62), identity)


def _rider_from_the_side(figure: Figure, identity: int, clothes: _Clothes, motor: bool) -> None:
    seat = (-0.22, 0.84 if motor else 1.0)
    figure.limb([seat, (0.16, 0.8), (0.0, 0.36)], 0.16, clothes.trousers, identity)
    figure.limb([(0.0, 0.36), (0.12, 0.33)], 0.08, (30, 28, 28), identity)
    figure.fill(
        [(-0.36, seat[1] + 0.02), (-0.06, seat[1] - 0.03), (0.22, 1.5), (-0.02, 1.58)], clothes.top, identity
    )
    figure.limb([(0.12, 1.44), (0.26, 1.2), (0.46, 1.06)], 0.11, scaled(clothes.top, 0.8), identity)
    _paint_head(figure, (0.2, 1.7), clothes, identity, helmet=motor)


def _rider_from_behind(figure: Figure, identity: int, clothes: _Clothes, motor: bool) -> None:
    seat = 0.84 if motor else 0.98
    for side in (-1, 1):
        figure.limb(
            [(0.08 * side, seat), (0.2 * side, 0.68), (0.15 * side, 0.3)],
            0.15,
            scaled(clothes.trousers, 0.9),
            identity,
        )
        figure.limb(
            [(0.18 * side, 1.42), (0.33 * side, 1.2), (0.3 * side, 1.04)],
            0.1,
            scaled(clothes.top, 0.85),
            identity,
        )
    figure.fill([(-0.2, 1.48), (0.2, 1.48), (0.17, seat - 0.08), (-0.17, seat - 0.08)], clothes.top, identity)
    _paint_head(figure, (0.0, 1.66), clothes, identity, helmet=motor)
