"""What lines a street: houses, walls, fences, hedges, trees, poles with lights and signs, bins."""

from __future__ import annotations

import itertools

import numpy as np

from jobs.world.camera import Camera
from jobs.world.canvas import Canvas, Colour, ellipse_points
from jobs.world.labels import LabelId
from jobs.world.style import TownStyle
from jobs.world.texture import draw_facade, draw_fence, draw_wall, scaled, to_colour

_FAR = 95.0  # metres; where the street is closed off
_SETBACK = 9.0  # metres; depth of a house whose end wall shows


def paint_backdrop(canvas: Canvas, camera: Camera, town: TownStyle, rng: np.random.Generator) -> None:
    """Close the view at the end of the street: distant houses with trees before them."""
    reach = 1.6 * canvas.width / camera.focal * _FAR
    left = -reach
    while left < reach:
        width = rng.uniform(10, 22)
        height = rng.uniform(6, 17)
        right = left + width
        corners = camera.project(
            [(left, height, _FAR), (right, height, _FAR), (right, 0, _FAR), (left, 0, _FAR)]
        )
        colour = town.facades[rng.integers(len(town.facades))]
        if canvas.sees(corners):
            canvas.warp(draw_facade((height, width), colour, rng), corners, LabelId.BUILDING, depth=_FAR)
        left = right
    for _ in range(int(rng.integers(3, 9))):
        paint_crown(
            canvas, camera, (rng.uniform(-50, 50), _FAR - 5), rng.uniform(5, 9), rng.uniform(3, 6), town, rng
        )
    ground = camera.project([(-reach, 0, _FAR), (reach, 0, _FAR)])[:, 1].mean()
    foliage = to_colour(town.foliage_hue, 0.45, 0.35)
    band = [(0, ground - 2), (canvas.width, ground - 2), (canvas.width, ground + 1), (0, ground + 1)]
    canvas.fill(band, foliage, LabelId.VEGETATION, depth=_FAR, grain=0.3)


def paint_frontage(
    canvas: Canvas,
    camera: Camera,
    frontier: float,
    town: TownStyle,
    rng: np.random.Generator,
    kinds: tuple[str, ...],
) -> None:
    """Line one side of the street, from far to near.

    Args:
        canvas: painted on.
        camera: sees it.
        frontier: X of the line of houses; negative on the left.
        town: colours.
        rng: source of randomness.
        kinds: `house`, `wall`, `fence` or `hedge` for each stretch, repeated as needed.
    """
    ends = [_FAR]
    while ends[-1] > 2:
        ends.append(ends[-1] - rng.uniform(9, 20))
    for number, (far, near) in enumerate(itertools.pairwise(ends)):
        near = max(near, 1.6)
        kind = kinds[number % len(kinds)]
        if kind == "house":
            _paint_house(canvas, camera, frontier, (near, far), town, rng)
        else:
            _paint_boundary(canvas, camera, frontier, (near, far), kind, town, rng)


def _along(camera: Camera, x: float, span: tuple[float, float], height: float) -> np.ndarray:
    """Corners of an upright surface along the street, as seen from it: left end first."""
    near, far = span
    first, last = (near, far) if x < 0 else (far, near)
    return camera.project([(x, height, first), (x, height, last), (x, 0, last), (x, 0, first)])


def _paint_house(
    canvas: Canvas,
    camera: Camera,
    x: float,
    span: tuple[float, float],
    town: TownStyle,
    rng: np.random.Generator,
) -> None:
    near, far = span
    colour = town.facades[rng.integers(len(town.facades))]
    height = rng.uniform(6.5, 19)
    side = 1 if x > 0 else -1
    outer = x + side * _SETBACK
    end = camera.project([(x, height, near), (outer, height, near), (outer, 0, near), (x, 0, near)])
    if canvas.sees(end):
        canvas.warp(
            draw_facade((height, _SETBACK), scaled(colour, 0.8), rng), end, LabelId.BUILDING, depth=near
        )
    front = _along(camera, x, span, height)
    if canvas.sees(front):
        depth = (near + far) / 2
        canvas.warp(
            draw_facade((height, far - near), colour, rng), front, LabelId.BUILDING, depth=depth, shade=0.95
        )


def _paint_boundary(
    canvas: Canvas,
    camera: Camera,
    x: float,
    span: tuple[float, float],
    kind: str,
    town: TownStyle,
    rng: np.random.Generator,
) -> None:
    """Paint a stretch without a house: trees behind a wall, a fence or a hedge."""
    near, far = span
    side = 1 if x > 0 else -1
    for place in np.linspace(far, near + 1, int(rng.integers(3, 6))):
        reach = rng.uniform(2.2, 4.2)
        place_x = x + side * (reach * 0.7 + rng.uniform(0, 3))
        paint_crown(canvas, camera, (place_x, place), rng.uniform(2.5, 6), reach, town, rng)
    depth = (near + far) / 2
    if kind == "hedge":
        height = rng.uniform(1.0, 2.5)
        colour = to_colour(town.foliage_hue + rng.uniform(-0.02, 0.02), 0.5, 0.36)
        canvas.fill(_along(camera, x, span, height), colour, LabelId.VEGETATION, depth=depth, grain=0.3)
        return
    height = rng.uniform(1.8, 3.0)
    draw, label = (draw_wall, LabelId.WALL) if kind == "wall" else (draw_fence, LabelId.FENCE)
    canvas.warp(draw((height, far - near), rng), _along(camera, x, span, height), label, depth=depth)


def paint_crown(
    canvas: Canvas,
    camera: Camera,
    place: tuple[float, float],
    height: float,
    reach: float,
    town: TownStyle,
    rng: np.random.Generator,
) -> None:
    """Paint foliage: a heap of ragged leafy blobs, dark below and light above, standing on its place.

    Args:
        canvas: painted on.
        camera: sees it.
        place: X and Z of the middle.
        height: of the middle of the crown, metres.
        reach: radius, metres.
        town: colours.
        rng: source of randomness.
    """
    x, z = place
    unit = camera.pixels_per_metre(z)
    column, row = camera.project([(x, height, z)])[0]
    if not -reach * unit < column < canvas.width + reach * unit:
        return
    hue = town.foliage_hue + rng.uniform(-0.03, 0.03)
    for layer in range(9):
        level = layer / 8
        angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.6) * reach * unit
        middle = (
            column + distance * np.cos(angle),
            row + distance * np.sin(angle) + (0.35 - 0.6 * level) * reach * unit,
        )
        blob = ellipse_points(middle, (0.55 * reach * unit, 0.48 * reach * unit), rng.uniform(0, 3))
        blob += rng.normal(0, 0.06 * reach * unit, blob.shape)
        colour = to_colour(hue, 0.55 - 0.1 * level, 0.24 + 0.28 * level)
        canvas.fill(blob, colour, LabelId.VEGETATION, depth=z, grain=0.28)


def paint_tree(
    canvas: Canvas, camera: Camera, place: tuple[float, float], town: TownStyle, rng: np.random.Generator
) -> None:
    """Paint a street tree; the trunk is vegetation too, as in Cityscapes."""
    x, z = place
    height, reach = rng.uniform(4.2, 6.5), rng.uniform(1.5, 2.6)
    trunk = camera.project([(x - 0.14, height, z), (x + 0.14, height, z), (x + 0.2, 0, z), (x - 0.2, 0, z)])
    canvas.fill(trunk, to_colour(0.08, 0.35, rng.uniform(0.25, 0.4)), LabelId.VEGETATION, depth=z, grain=0.15)
    paint_crown(canvas, camera, (x, z), height, reach, town, rng)


def paint_pole(
    canvas: Canvas, camera: Camera, place: tuple[float, float], height: float, rng: np.random.Generator
) -> None:
    """Paint a grey pole, lit from one side."""
    x, z = place
    tone = rng.uniform(95, 150)
    for left, right, shade in ((-0.09, 0.09, 1.0), (0.02, 0.09, 0.65)):
        corners = camera.project(
            [(x + left, height, z), (x + right, height, z), (x + right, 0, z), (x + left, 0, z)]
        )
        canvas.fill(corners, (tone * shade,) * 3, LabelId.POLE, depth=z)


def paint_lamp(canvas: Canvas, camera: Camera, place: tuple[float, float], rng: np.random.Generator) -> None:
    """Paint a street lamp whose arm reaches over the road."""
    x, z = place
    height, arm = rng.uniform(5.5, 8), -np.sign(x) * rng.uniform(0.8, 1.8)
    paint_pole(canvas, camera, place, height, rng)
    tip = camera.project([(x, height, z), (x + arm, height + 0.25, z)])
    canvas.stroke(tip, 0.12 * camera.pixels_per_metre(z), (120, 120, 122), LabelId.POLE, depth=z)
    head = camera.project([(x + arm, height + 0.2, z)])[0]
    unit = camera.pixels_per_metre(z)
    canvas.ellipse((head[0], head[1]), (0.4 * unit, 0.13 * unit), (170, 170, 165), LabelId.POLE, depth=z)


def paint_traffic_light(
    canvas: Canvas, camera: Camera, place: tuple[float, float], rng: np.random.Generator
) -> None:
    """Paint a pole that carries a dark box with one of three lamps lit."""
    x, z = place
    height = rng.uniform(2.7, 3.4)
    paint_pole(canvas, camera, place, height, rng)
    box = [
        (x - 0.28, height + 0.9, z),
        (x + 0.28, height + 0.9, z),
        (x + 0.28, height - 0.3, z),
        (x - 0.28, height - 0.3, z),
    ]
    canvas.fill(camera.project(box), (28, 30, 32), LabelId.TRAFFIC_LIGHT, depth=z)
    lit = int(rng.integers(3))
    lamps: list[tuple[Colour, Colour]] = [
        ((255, 60, 40), (60, 25, 25)),
        ((255, 200, 40), (62, 52, 22)),
        ((60, 240, 130), (20, 55, 35)),
    ]
    unit = camera.pixels_per_metre(z)
    for number, (bright, dark) in enumerate(lamps):
        column, row = camera.project([(x, height + 0.68 - 0.38 * number, z)])[0]
        colour = bright if number == lit else dark
        canvas.ellipse((column, row), (0.16 * unit, 0.16 * unit), colour, LabelId.TRAFFIC_LIGHT, depth=z)


def paint_sign(canvas: Canvas, camera: Camera, place: tuple[float, float], rng: np.random.Generator) -> None:
    """Paint a traffic sign on a pole: a red-rimmed disc or triangle, or a blue plate."""
    x, z = place
    height, radius = rng.uniform(2.2, 2.9), rng.uniform(0.36, 0.5)
    paint_pole(canvas, camera, place, height + 0.3, rng)
    unit = camera.pixels_per_metre(z)
    column, row = camera.project([(x, height, z)])[0]
    kind = rng.choice(["disc", "triangle", "plate"])
    corners = {"disc": 24, "triangle": 3, "plate": 4}[kind]
    start = {"disc": 0.0, "triangle": -np.pi / 2, "plate": np.pi / 4}[kind]
    turn = start + np.linspace(0, 2 * np.pi, corners, endpoint=False)
    outline = (
        np.stack([np.cos(turn), np.sin(turn)], axis=1) * radius * unit * (1.25 if kind != "disc" else 1.0)
    )
    rim, middle = ((25, 70, 170), (235, 238, 245)) if kind == "plate" else ((205, 25, 35), (240, 240, 238))
    inner = 0.45 if kind == "plate" else 0.68
    canvas.fill(outline + np.array([column, row]), rim, LabelId.TRAFFIC_SIGN, depth=z)
    canvas.fill(outline * inner + np.array([column, row]), middle, LabelId.TRAFFIC_SIGN, depth=z)


def paint_bin(canvas: Canvas, camera: Camera, place: tuple[float, float], rng: np.random.Generator) -> None:
    """Paint a small wheelie bin; Cityscapes calls it dynamic and does not score it."""
    x, z = place
    colour = to_colour(rng.choice([0.09, 0.33, 0.6]), 0.5, rng.uniform(0.25, 0.4))
    body = [(x - 0.28, 0.95, z), (x + 0.28, 0.95, z), (x + 0.22, 0, z), (x - 0.22, 0, z)]
    lid = [(x - 0.32, 1.08, z), (x + 0.32, 1.08, z), (x + 0.32, 0.95, z), (x - 0.32, 0.95, z)]
    canvas.fill(camera.project(body), colour, LabelId.DYNAMIC, depth=z, grain=0.05)
    canvas.fill(camera.project(lid), scaled(colour, 1.3), LabelId.DYNAMIC, depth=z)
