"""Things that line a street: houses, walls, fences, hedges, trees, poles with lights and signs, bins."""

from __future__ import annotations

import itertools

import numpy as np

from jobs.world.canvas import Colour, ellipse_points
from jobs.world.labels import LabelId
from jobs.world.perspective import Figure
from jobs.world.street import Place, Stage
from jobs.world.texture import draw_facade, draw_fence, draw_wall, scaled, to_colour

_FAR = 95.0  # metres; where the street is closed off
_SETBACK = 9.0  # metres; depth of a house whose end wall shows


def paint_backdrop(stage: Stage) -> None:
    """Close the view at the end of the street: distant houses with trees before them."""
    canvas, camera, rng = stage.canvas, stage.camera, stage.rng
    reach = 1.6 * canvas.width / camera.focal * _FAR
    left = -reach
    while left < reach:
        width, height = rng.uniform(10, 22), rng.uniform(6, 17)
        _paint_facade(stage, (left, _FAR), (left + width, _FAR), height, _plaster(stage), _FAR)
        left += width
    for _ in range(int(rng.integers(3, 9))):
        paint_crown(stage, (rng.uniform(-50, 50), _FAR - 5), rng.uniform(5, 9), rng.uniform(3, 6))
    ground = camera.project([(-reach, 0, _FAR), (reach, 0, _FAR)])[:, 1].mean()
    band = [(0, ground - 2), (canvas.width, ground - 2), (canvas.width, ground + 1), (0, ground + 1)]
    foliage = to_colour(stage.town.foliage_hue, 0.45, 0.35)
    canvas.fill(band, foliage, LabelId.VEGETATION, depth=_FAR, grain=0.3)


def paint_frontage(stage: Stage, frontier: float, kinds: tuple[str, ...]) -> None:
    """Line one side of the street from far to near with `kinds`: `house`, `wall`, `fence`, `hedge`.

    `frontier` is X of the line of houses, negative on the left; kinds repeat as needed.
    """
    ends = [_FAR]
    while ends[-1] > 2:
        ends.append(ends[-1] - stage.rng.uniform(9, 20))
    for number, (far, near) in enumerate(itertools.pairwise(ends)):
        kind = kinds[number % len(kinds)]
        paint = _paint_house if kind == "house" else _paint_boundary
        paint(stage, frontier, (max(near, 1.6), far), kind)


def _plaster(stage: Stage) -> Colour:
    return stage.town.facades[stage.rng.integers(len(stage.town.facades))]


def _upright(stage: Stage, first: Place, last: Place, height: float) -> np.ndarray:
    """Return the corners of an upright surface between two places, the left one first."""
    (x1, z1), (x2, z2) = first, last
    return stage.camera.project([(x1, height, z1), (x2, height, z2), (x2, 0, z2), (x1, 0, z1)])


def _ends(x: float, span: tuple[float, float]) -> tuple[Place, Place]:
    """Return the left and the right end of what runs along the street, as seen from it."""
    near, far = span
    return ((x, near), (x, far)) if x < 0 else ((x, far), (x, near))


def _paint_facade(
    stage: Stage, first: Place, last: Place, height: float, colour: Colour, depth: float, shade: float = 1.0
) -> None:
    corners = _upright(stage, first, last, height)
    if stage.canvas.sees(corners):
        width = float(np.hypot(last[0] - first[0], last[1] - first[1]))
        facade = draw_facade((height, width), colour, stage.rng)
        stage.canvas.warp(facade, corners, LabelId.BUILDING, depth=depth, shade=shade)


def _paint_house(stage: Stage, x: float, span: tuple[float, float], _kind: str) -> None:
    near, far = span
    colour, height = _plaster(stage), stage.rng.uniform(6.5, 19)
    outer = (x + np.sign(x) * _SETBACK, near)
    _paint_facade(stage, (x, near), outer, height, scaled(colour, 0.8), near)
    _paint_facade(stage, *_ends(x, span), height, colour, (near + far) / 2, shade=0.95)


def _paint_boundary(stage: Stage, x: float, span: tuple[float, float], kind: str) -> None:
    """Paint a stretch without a house: trees behind a wall, a fence or a hedge."""
    rng, (near, far) = stage.rng, span
    for z in np.linspace(far, near + 1, int(rng.integers(3, 6))):
        reach = rng.uniform(2.2, 4.2)
        place = (x + np.sign(x) * (reach * 0.7 + rng.uniform(0, 3)), z)
        paint_crown(stage, place, rng.uniform(2.5, 6), reach)
    depth = (near + far) / 2
    if kind == "hedge":
        corners = _upright(stage, *_ends(x, span), rng.uniform(1.0, 2.5))
        colour = to_colour(stage.town.foliage_hue + rng.uniform(-0.02, 0.02), 0.5, 0.36)
        stage.canvas.fill(corners, colour, LabelId.VEGETATION, depth=depth, grain=0.3)
        return
    height = rng.uniform(1.8, 3.0)
    draw, label = (draw_wall, LabelId.WALL) if kind == "wall" else (draw_fence, LabelId.FENCE)
    texture = draw((height, far - near), rng)
    stage.canvas.warp(texture, _upright(stage, *_ends(x, span), height), label, depth=depth)


def paint_crown(stage: Stage, place: Place, height: float, reach: float) -> None:
    """Paint foliage: a heap of ragged leafy blobs, dark below and light above, around `height`."""
    rng, (x, z) = stage.rng, place
    reach *= stage.camera.pixels_per_metre(z)
    column, row = stage.camera.project([(x, height, z)])[0]
    if not -reach < column < stage.canvas.width + reach:
        return
    hue = stage.town.foliage_hue + rng.uniform(-0.03, 0.03)
    for level in np.arange(9) / 8:
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.6) * reach
        up = distance * np.sin(angle) + (0.35 - 0.6 * level) * reach
        middle = (column + distance * np.cos(angle), row + up)
        blob = ellipse_points(middle, (0.55 * reach, 0.48 * reach), rng.uniform(0, 3))
        blob += rng.normal(0, 0.06 * reach, blob.shape)
        colour = to_colour(hue, 0.55 - 0.1 * level, 0.24 + 0.28 * level)
        stage.canvas.fill(blob, colour, LabelId.VEGETATION, depth=z, grain=0.28)


def paint_tree(stage: Stage, place: Place) -> None:
    """Paint a street tree; the trunk is vegetation too, as in Cityscapes."""
    rng = stage.rng
    height, reach = rng.uniform(4.2, 6.5), rng.uniform(1.5, 2.6)
    trunk = Figure(stage, *place, LabelId.VEGETATION, grain=0.15)
    bark = to_colour(0.08, 0.35, rng.uniform(0.25, 0.4))
    trunk.fill([(-0.14, height), (0.14, height), (0.2, 0), (-0.2, 0)], bark)
    paint_crown(stage, place, height, reach)


def _paint_pole(stage: Stage, place: Place, height: float) -> Figure:
    """Paint a grey pole, lit from one side."""
    tone = stage.rng.uniform(95, 150)
    pole = Figure(stage, *place, LabelId.POLE)
    pole.box(-0.09, height, 0.09, 0, (tone,) * 3)
    pole.box(0.02, height, 0.09, 0, (tone * 0.65,) * 3)
    return pole


def paint_lamp(stage: Stage, place: Place) -> None:
    """Paint a street lamp whose arm reaches over the road."""
    height, arm = stage.rng.uniform(5.5, 8), -np.sign(place[0]) * stage.rng.uniform(0.8, 1.8)
    pole = _paint_pole(stage, place, height)
    pole.limb([(0, height), (arm, height + 0.25)], 0.12, (120, 120, 122))
    pole.disc((arm, height + 0.2), (0.4, 0.13), (170, 170, 165))


def paint_traffic_light(stage: Stage, place: Place) -> None:
    """Paint a pole that carries a dark box with one of three lamps lit."""
    height = stage.rng.uniform(2.7, 3.4)
    _paint_pole(stage, place, height)
    light = Figure(stage, *place, LabelId.TRAFFIC_LIGHT)
    light.box(-0.28, height + 0.9, 0.28, height - 0.3, (28, 30, 32))
    lamps = [(60, 25, 25), (62, 52, 22), (20, 55, 35)]
    lit = int(stage.rng.integers(3))
    lamps[lit] = ((255, 60, 40), (255, 200, 40), (60, 240, 130))[lit]
    for number, colour in enumerate(lamps):
        light.disc((0, height + 0.68 - 0.38 * number), (0.16, 0.16), colour)


def paint_sign(stage: Stage, place: Place) -> None:
    """Paint a traffic sign on a pole: a red-rimmed disc or triangle, or a blue plate."""
    rng = stage.rng
    height, radius = rng.uniform(2.2, 2.9), rng.uniform(0.36, 0.5)
    _paint_pole(stage, place, height + 0.3)
    kind = rng.choice(["disc", "triangle", "plate"])
    rim, middle, inner = (205, 25, 35), (240, 240, 238), 0.68
    if kind == "plate":
        rim, middle, inner = (25, 70, 170), (235, 238, 245), 0.45
    corners, start = {"disc": (24, 0.0), "triangle": (3, np.pi / 2), "plate": (4, np.pi / 4)}[kind]
    turn = start + np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius *= 1.0 if kind == "disc" else 1.25
    sign = Figure(stage, *place, LabelId.TRAFFIC_SIGN)
    for reach, colour in ((radius, rim), (radius * inner, middle)):
        sign.fill([(reach * np.cos(a), height + reach * np.sin(a)) for a in turn], colour)


def paint_bin(stage: Stage, place: Place) -> None:
    """Paint a small wheelie bin; Cityscapes calls it dynamic and does not score it."""
    colour = to_colour(stage.rng.choice([0.09, 0.33, 0.6]), 0.5, stage.rng.uniform(0.25, 0.4))
    body = Figure(stage, *place, LabelId.DYNAMIC, grain=0.05)
    body.fill([(-0.28, 0.95), (0.28, 0.95), (0.22, 0), (-0.22, 0)], colour)
    Figure(stage, *place, LabelId.DYNAMIC).box(-0.32, 1.08, 0.32, 0.95, scaled(colour, 1.3))
