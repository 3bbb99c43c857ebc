"""People on foot and on two wheels, painted as flat figures that face the camera."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jobs.world.canvas import Colour, Pair, ellipse_points
from jobs.world.labels import LabelId
from jobs.world.perspective import Figure, View
from jobs.world.street import Place
from jobs.world.texture import draw_colour, scaled

_SKIN: tuple[Colour, ...] = ((236, 196, 168), (205, 155, 120), (140, 95, 70), (95, 62, 46))
_SHOE: Colour = (30, 28, 28)
_GRAIN = 0.06  # of cloth and paint


class _Clothes(NamedTuple):
    skin: Colour
    hair: Colour
    top: Colour
    trousers: Colour


def paint_person(view: View, place: Place) -> int:
    """Paint somebody walking or standing at (X, Z); return the identity."""
    rng, identity = view.rng, view.canvas.new_instance(LabelId.PERSON)
    figure = Figure(view, *place, identity, rng.choice([-1.0, 1.0]), rng.uniform(0.85, 1.08), _GRAIN)
    clothes = _dress(rng)
    _foot_shadow(figure, 0.3)
    stride = rng.uniform(0.02, 0.3)
    for foot, tone in ((-stride, 0.75), (stride, 1.0)):
        leg = [(0.05 * np.sign(foot), 0.88), (foot * 0.7, 0.45), (foot, 0.04)]
        figure.limb(leg, 0.17, scaled(clothes.trousers, tone))
        figure.limb([(foot - 0.02, 0.04), (foot + 0.1, 0.04)], 0.09, _SHOE)
    swing = rng.uniform(0.05, 0.22)
    far_arm = [(0.12, 1.36), (0.16 + swing * 0.6, 1.1), (0.14 + swing, 0.88)]
    near_arm = [(-0.14, 1.36), (-0.2 - swing * 0.5, 1.1), (-0.16 - swing, 0.88)]
    figure.limb(far_arm, 0.11, scaled(clothes.top, 0.8))
    figure.fill([(-0.21, 1.42), (0.21, 1.42), (0.18, 0.82), (-0.18, 0.82)], clothes.top)
    figure.limb(near_arm, 0.11, scaled(clothes.top, 1.1))
    _paint_head(figure, (0.0, 1.6), clothes, helmet=False)
    return identity


def paint_cyclist(view: View, place: Place, *, motor: bool, along: bool) -> None:
    """Paint a rider, seen from behind where they ride `along` the street, else from the side."""
    machine = _cycle(view, place, motor)
    rider = replace(machine, identity=view.canvas.new_instance(LabelId.RIDER))
    clothes = _dress(view.rng)
    _foot_shadow(machine, 0.3 if along else 0.8)
    if along:
        _machine_from_behind(machine, motor)
        _rider_from_behind(rider, clothes, motor)
    else:
        _machine_from_the_side(machine, motor)
        _rider_from_the_side(rider, clothes, motor)


def paint_parked_cycle(view: View, place: Place, *, motor: bool) -> None:
    """Paint a bicycle or motorcycle without a rider, seen from the side."""
    machine = _cycle(view, place, motor)
    _foot_shadow(machine, 0.8)
    _machine_from_the_side(machine, motor)


def _cycle(view: View, place: Place, motor: bool) -> Figure:
    identity = view.canvas.new_instance(LabelId.MOTORCYCLE if motor else LabelId.BICYCLE)
    return Figure(view, *place, identity, mirror=view.rng.choice([-1.0, 1.0]), grain=_GRAIN)


def _dress(rng: np.random.Generator) -> _Clothes:
    return _Clothes(
        skin=_SKIN[rng.integers(len(_SKIN))],
        hair=draw_colour(rng, (0.04, 0.1), (0.1, 0.6), (0.1, 0.5)),
        top=draw_colour(rng, (0.0, 1.0), (0.2, 0.85), (0.3, 0.85)),
        trousers=draw_colour(rng, (0.55, 0.68), (0.05, 0.5), (0.15, 0.45)),
    )


def _foot_shadow(figure: Figure, reach: float) -> None:
    outline = ellipse_points((0, 0), (reach, 0.1), count=16) * figure.unit + figure.screen([(0.0, 0.0)])[0]
    figure.view.canvas.shadow(outline, 0.45, max(0.4, 0.05 * figure.unit))


def _paint_head(figure: Figure, centre: Pair, clothes: _Clothes, *, helmet: bool) -> None:
    x, y = centre
    figure.limb([(x, y - 0.2), centre], 0.1, clothes.skin)
    figure.disc(centre, (0.135 * 0.85, 0.135), clothes.skin)
    up, radius = (0.02, 0.14) if helmet else (0.06, 0.11)
    figure.disc((x - 0.02, y + up), (radius, radius), clothes.hair)


def _machine_from_the_side(figure: Figure, motor: bool) -> None:
    colour = draw_colour(figure.view.rng, (0.0, 1.0), (0.4, 0.9), (0.35, 0.8))
    if motor:
        for wheel in (-0.68, 0.68):
            figure.disc((wheel, 0.31), (0.31, 0.31), (22, 22, 24))
            figure.disc((wheel, 0.31), (0.15, 0.15), (135, 135, 140))
        body = [(-0.75, 0.78), (-0.1, 0.72), (0.3, 0.95), (0.62, 0.88), (0.5, 0.4), (-0.35, 0.3)]
        figure.fill(body, colour)
        figure.fill([(-0.4, 0.5), (0.3, 0.5), (0.25, 0.2), (-0.3, 0.2)], (70, 70, 74))
        figure.limb([(0.45, 0.9), (0.68, 0.31)], 0.08, (150, 150, 155))
        figure.limb([(0.4, 1.08), (0.5, 0.88)], 0.07, (30, 30, 30))
        return
    for wheel in (-0.52, 0.52):
        figure.ring((wheel, 0.34), 0.31, 0.07, (25, 25, 27))
        figure.limb([(wheel - 0.3, 0.34), (wheel + 0.3, 0.34)], 0.02, (110, 110, 112))
    figure.limb([(-0.52, 0.34), (-0.05, 0.32), (0.4, 0.82), (-0.18, 0.8), (-0.05, 0.32)], 0.06, colour)
    figure.limb([(-0.52, 0.34), (-0.18, 0.8), (-0.22, 0.95)], 0.055, colour)
    figure.limb([(0.52, 0.34), (0.38, 0.98), (0.5, 1.02)], 0.055, colour)
    figure.limb([(-0.34, 0.96), (-0.1, 0.96)], 0.08, (30, 28, 28))


def _machine_from_behind(figure: Figure, motor: bool) -> None:
    colour = draw_colour(figure.view.rng, (0.0, 1.0), (0.4, 0.9), (0.35, 0.8))
    figure.limb([(0.0, 0.02), (0.0, 0.66)], 0.16 if motor else 0.08, (22, 22, 24))
    if motor:
        figure.fill([(-0.24, 0.92), (0.24, 0.92), (0.2, 0.5), (-0.2, 0.5)], colour)
        figure.box(-0.1, 0.78, 0.1, 0.68, (215, 25, 30))
        figure.limb([(-0.4, 1.08), (0.4, 1.08)], 0.06, (35, 35, 37))
        return
    figure.limb([(0.0, 0.55), (0.0, 0.92)], 0.07, colour)
    figure.limb([(-0.3, 1.02), (0.3, 1.02)], 0.05, (60, 60, 62))


def _rider_from_the_side(figure: Figure, clothes: _Clothes, motor: bool) -> None:
    seat = 0.84 if motor else 1.0
    figure.limb([(-0.22, seat), (0.16, 0.8), (0.0, 0.36)], 0.16, clothes.trousers)
    figure.limb([(0.0, 0.36), (0.12, 0.33)], 0.08, _SHOE)
    figure.fill([(-0.36, seat + 0.02), (-0.06, seat - 0.03), (0.22, 1.5), (-0.02, 1.58)], clothes.top)
    figure.limb([(0.12, 1.44), (0.26, 1.2), (0.46, 1.06)], 0.11, scaled(clothes.top, 0.8))
    _paint_head(figure, (0.2, 1.7), clothes, helmet=motor)


def _rider_from_behind(figure: Figure, clothes: _Clothes, motor: bool) -> None:
    seat = 0.84 if motor else 0.98
    for side in (-1, 1):
        leg = [(0.08 * side, seat), (0.2 * side, 0.68), (0.15 * side, 0.3)]
        arm = [(0.18 * side, 1.42), (0.33 * side, 1.2), (0.3 * side, 1.04)]
        figure.limb(leg, 0.15, scaled(clothes.trousers, 0.9))
        figure.limb(arm, 0.1, scaled(clothes.top, 0.85))
    figure.fill([(-0.2, 1.48), (0.2, 1.48), (0.17, seat - 0.08), (-0.17, seat - 0.08)], clothes.top)
    _paint_head(figure, (0.0, 1.66), clothes, helmet=motor)
