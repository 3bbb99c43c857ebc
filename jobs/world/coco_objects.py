"""Pasted objects: COCO categories that no street scene knows, and their surfaces (fur, stripes, spots).

Test anomalies (`oddities.py`) share neither a shape nor a surface with them.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from jobs.world.canvas import Colour, Surface, ellipse_points
from jobs.world.sprite import Board, arc, mix_colours, unit_grid
from jobs.world.texture import scaled, smooth_noise, to_colour

_Coat = Callable[[int, Colour, Colour, np.random.Generator], Surface]
"""Draws a surface from its side in pixels and two colours."""


def _stripes(side: int, first: Colour, second: Colour, rng: np.random.Generator) -> Surface:
    rows, columns = unit_grid(side)
    angle, count = rng.uniform(-0.5, 0.5), rng.uniform(9, 16)
    wave = smooth_noise((side, side), 4, rng) * 1.1
    phase = (columns * np.cos(angle) + rows * np.sin(angle)) * count + wave
    return mix_colours(np.sin(2 * np.pi * phase) > 0, first, second)


def _spots(side: int, first: Colour, second: Colour, rng: np.random.Generator) -> Surface:
    """Draw round spots of the first colour, on a jittered grid, on the second."""
    count = int(rng.integers(8, 13))
    rows, columns = (axis * count for axis in unit_grid(side))
    cell_row, cell_column = np.floor(rows).astype(int), np.floor(columns).astype(int)
    centre = rng.uniform(0.3, 0.7, (count + 1, count + 1, 2))[cell_row, cell_column]
    distance = np.hypot(rows - cell_row - centre[..., 0], columns - cell_column - centre[..., 1])
    return mix_colours(distance < 0.29, first, second)


def _patches(side: int, first: Colour, second: Colour, rng: np.random.Generator) -> Surface:
    """Draw patches with narrow seams between them, as a giraffe has."""
    small = min(side, 120)  # distances to every seed are costly; they are smooth, so a small grid will do
    rows, columns = unit_grid(small)
    seeds = rng.random((70, 2), dtype=np.float32)
    distance = np.hypot(rows[..., None] - seeds[:, 0], columns[..., None] - seeds[:, 1])
    nearest = np.partition(distance, 1, axis=-1)
    margin = cv2.resize(nearest[..., 1] - nearest[..., 0], (side, side), interpolation=cv2.INTER_LINEAR)
    return mix_colours(margin > 0.022, first, second)


def _fur(side: int, first: Colour, second: Colour, rng: np.random.Generator) -> Surface:
    tufts = smooth_noise((side, side), max(4, side // 6), rng)
    return mix_colours(np.clip(tufts * 1.8 - 0.4, 0, 1), first, second)


def _blotches(side: int, first: Colour, second: Colour, rng: np.random.Generator) -> Surface:
    return mix_colours(smooth_noise((side, side), 6, rng) > 0.5, first, second)


def _swirl(side: int, first: Colour, second: Colour, rng: np.random.Generator) -> Surface:
    rows, columns = unit_grid(side)
    y, x = rows - rng.uniform(0.4, 0.6), columns - rng.uniform(0.4, 0.6)
    phase = np.arctan2(y, x) * 2 / np.pi + np.hypot(x, y) * rng.uniform(6, 11)
    return mix_colours(np.mod(phase, 1) > 0.5, first, second)


def _sprinkles(side: int, first: Colour, second: Colour, rng: np.random.Generator) -> Surface:
    """Draw icing strewn with coloured sugar."""
    surface = mix_colours(np.ones((side, side)), first, second)
    length = max(2, side // 24)
    for _ in range(90):
        row, column = rng.integers(0, side - length, 2)
        height, width = (length, length // 2 + 1) if rng.random() < 0.5 else (length // 2 + 1, length)
        surface[row : row + height, column : column + width] = to_colour(rng.random(), 0.8, 0.95)
    return surface


def _plaid(side: int, first: Colour, second: Colour, rng: np.random.Generator) -> Surface:
    """Draw a tartan: crossing translucent bands."""
    rows, columns = unit_grid(side)
    count = rng.uniform(4, 7)
    share = 0.5 * (np.mod(rows * count, 1) > 0.55) + 0.5 * (np.mod(columns * count, 1) > 0.55)
    return mix_colours(share, first, second)


def _coat(board: Board, *coats: _Coat, colours: tuple[Colour, Colour] | None = None) -> Surface:
    """Draw one of the surfaces, in given colours or in two that differ clearly."""
    rng = board.rng
    if colours is None:
        hue = rng.random()
        first = to_colour(hue, rng.uniform(0.5, 0.9), rng.uniform(0.7, 0.95))
        second = to_colour(hue + rng.uniform(0.25, 0.75), rng.uniform(0.3, 0.9), rng.uniform(0.25, 0.9))
        colours = (first, second)
    return coats[rng.integers(len(coats))](board.resolution, *colours, rng)


def _brown(rng: np.random.Generator) -> tuple[Colour, Colour]:
    hue = rng.uniform(0.04, 0.11)
    dark = to_colour(hue, rng.uniform(0.5, 0.8), rng.uniform(0.35, 0.6))
    return dark, to_colour(hue + 0.02, 0.35, rng.uniform(0.75, 0.95))


def _legs(board: Board, places: tuple[float, ...], top: float, width: float, coat: Surface) -> None:
    foot = width * 0.8
    for x in places:
        board.fill([(x - width, top), (x + width, top), (x + foot, -0.98), (x - foot, -0.98)], coat)


def _zebra(board: Board) -> None:
    coat = _coat(board, _stripes, colours=((28, 26, 26), (240, 238, 230)))
    _legs(board, (-0.55, -0.38, 0.3, 0.46), -0.1, 0.075, coat)
    board.oval((-0.05, 0.05), (0.66, 0.32), coat)
    board.fill([(0.32, 0.1), (0.56, -0.02), (0.8, 0.72), (0.58, 0.78)], coat)
    board.oval((0.76, 0.7), (0.24, 0.13), coat, angle=-0.5)
    board.fill([(0.58, 0.76), (0.68, 0.76), (0.62, 0.96)], coat)
    board.line([(-0.68, 0.15), (-0.82, -0.3)], 0.06, coat)


def _giraffe(board: Board) -> None:
    coat = _coat(board, _patches, colours=_brown(board.rng))
    _legs(board, (-0.4, -0.25, 0.1, 0.24), -0.3, 0.055, coat)
    board.oval((-0.08, -0.28), (0.42, 0.2), coat)
    board.fill([(0.1, -0.25), (0.34, -0.2), (0.5, 0.78), (0.36, 0.82)], coat)
    board.oval((0.52, 0.82), (0.2, 0.09), coat, angle=0.3)
    board.line([(0.42, 0.86), (0.4, 0.97)], 0.04, coat)


def _elephant(board: Board) -> None:
    grey = board.rng.uniform(110, 165)
    skin = (grey, grey - 6, grey)
    coat = _coat(board, _fur, colours=(skin, (grey * 0.75, grey * 0.7, grey * 0.75)))
    _legs(board, (-0.55, -0.25, 0.15, 0.42), 0.0, 0.14, coat)
    board.oval((-0.1, 0.12), (0.7, 0.48), coat)
    board.oval((0.6, 0.28), (0.32, 0.32), coat)
    board.line([(0.8, 0.2), (0.92, -0.2), (0.86, -0.6)], 0.16, coat)
    board.oval((0.42, 0.3), (0.22, 0.3), scaled(skin, 0.8))
    board.line([(0.78, 0.05), (0.97, 0.1)], 0.06, (240, 235, 215))


def _cow(board: Board) -> None:
    coat = _coat(board, _blotches, colours=((245, 242, 236), _brown(board.rng)[0]))
    _legs(board, (-0.6, -0.4, 0.25, 0.45), -0.1, 0.085, coat)
    board.fill([(-0.75, 0.4), (0.5, 0.45), (0.55, -0.25), (-0.72, -0.25)], coat)
    board.oval((0.7, 0.42), (0.26, 0.2), coat, angle=0.5)
    board.line([(0.55, 0.55), (0.5, 0.75)], 0.06, (225, 220, 200))


def _bird(board: Board) -> None:
    coat = _coat(board, _stripes, _spots, _fur)
    board.fill([(-0.4, 0.0), (-1.0, 0.45), (-0.95, -0.25)], coat)
    board.oval((-0.05, -0.05), (0.55, 0.4), coat, angle=-0.3)
    board.oval((0.45, 0.42), (0.26, 0.25), coat)
    board.fill([(0.66, 0.5), (0.98, 0.4), (0.66, 0.3)], (245, 165, 30))
    board.oval((0.5, 0.48), (0.06, 0.06), (15, 15, 15))
    board.line([(-0.05, -0.4), (-0.05, -0.95)], 0.06, (235, 150, 40))
    board.line([(0.15, -0.4), (0.2, -0.95)], 0.06, (235, 150, 40))


def _teddy_bear(board: Board) -> None:
    colours = _brown(board.rng) if board.rng.random() < 0.5 else None
    coat = _coat(board, _fur, _spots, colours=colours)
    for side in (-1, 1):
        board.oval((0.34 * side, 0.83), (0.17, 0.17), coat)
        board.oval((0.5 * side, -0.05), (0.18, 0.38), coat, angle=0.6 * side)
        board.oval((0.42 * side, -0.72), (0.27, 0.25), coat)
    board.oval((0.0, -0.3), (0.5, 0.55), coat)
    board.oval((0.0, 0.5), (0.43, 0.4), coat)
    board.oval((0.0, 0.38), (0.18, 0.14), (240, 225, 200))
    for x, y, size in ((-0.16, 0.58, 0.055), (0.16, 0.58, 0.055), (0.0, 0.43, 0.07)):
        board.oval((x, y), (size, size * 0.9), (20, 16, 14))


def _banana(board: Board) -> None:
    turn = np.linspace(-2.6, -0.5, 24)
    outer = arc(turn, (0, 0.5), (0.95, 0.95))
    inner = arc(turn, (0, 0.62), (0.8, 0.68))[::-1]
    yellow = to_colour(board.rng.uniform(0.12, 0.19), 0.85, 0.95)
    coat = _coat(board, _spots, _fur, colours=(scaled(yellow, 0.75), yellow))
    board.fill(np.concatenate([outer, inner]), coat)
    board.line([outer[0], outer[0] + (-0.06, 0.14)], 0.1, (95, 70, 30))


def _apple(board: Board) -> None:
    hue = board.rng.choice([0.0, 0.08, 0.25])
    colours = (to_colour(hue, 0.9, 0.85), to_colour(hue + 0.06, 0.75, 0.95))
    coat = _coat(board, _fur, _stripes, colours=colours)
    board.oval((-0.22, -0.15), (0.58, 0.72), coat)
    board.oval((0.22, -0.15), (0.58, 0.72), coat)
    board.line([(0.0, 0.45), (0.06, 0.85)], 0.08, (85, 55, 30))
    board.oval((0.3, 0.74), (0.26, 0.11), (70, 170, 60), angle=-0.4)


def _donut(board: Board) -> None:
    coat = _coat(board, _sprinkles, _swirl)
    board.oval((0, 0), (0.95, 0.9), (200, 145, 85))
    wobble = 1 + 0.05 * np.sin(9 * np.arange(60) / 60 * 2 * np.pi)
    board.fill(ellipse_points((0, 0.02), (0.84, 0.79), count=60) * wobble[:, None], coat)
    board.oval((0, 0), (0.38, 0.36), (200, 145, 85))
    board.cut(ellipse_points((0, 0), (0.3, 0.28)))


def _pizza(board: Board) -> None:
    """Draw a slice: a wedge with a crust."""
    crust = arc(np.linspace(0.6, 2.54, 16), (0, -0.95), (1.25, 1.85))
    board.fill([(0, -0.97), *crust], (205, 140, 70))
    topping = to_colour(board.rng.choice([0.0, 0.3]), 0.8, 0.75)
    coat = _coat(board, _spots, colours=(topping, (250, 205, 95)))
    board.fill([(0, -0.9), *(crust * 0.86 + (0, -0.04))], coat)


def _kite(board: Board) -> None:
    board.fill([(0.1, 0.97), (0.7, 0.35), (0.1, -0.5), (-0.5, 0.35)], _coat(board, _plaid, _swirl))
    tail = [(0.1, -0.5), (-0.1, -0.65), (0.15, -0.8), (-0.15, -0.97)]
    board.line(tail, 0.05, (60, 60, 70))
    for x, y in tail[1:]:
        bow = [(x - 0.16, y + 0.07), (x + 0.16, y - 0.07), (x + 0.16, y + 0.07), (x - 0.16, y - 0.07)]
        board.fill(bow, to_colour(board.rng.random(), 0.8, 0.9))


def _umbrella(board: Board) -> None:
    """Draw an open umbrella: a scalloped dome of gores over a hooked stick."""
    rng = board.rng
    board.line([(0, 0.3), (0, -0.8), (0.1, -0.92), (0.22, -0.82)], 0.07, (70, 50, 40))
    first, second = to_colour(rng.random(), 0.8, 0.85), to_colour(rng.random(), 0.7, 0.95)
    turn = np.linspace(np.pi, 0, 30)
    for gore in range(6):
        part = arc(turn[gore * 5 : gore * 5 + 6], (0, 0.05), (0.97, 0.85))
        board.fill([(0, 0.02), *part], first if gore % 2 else second)
    scallops = [(0.65, 0.16), (0.32, 0.04), (0, 0.16), (-0.32, 0.04), (-0.65, 0.16)]
    board.fill([(-0.97, 0.05), (0.97, 0.05), *scallops], first)


def _spindle(half: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the outline of what is `half` as wide on both sides at the heights `y`."""
    return np.concatenate([np.stack([half, y], axis=1), np.stack([-half, y], axis=1)[::-1]])


def _surfboard(board: Board) -> None:
    coat = _coat(board, _swirl, _plaid, _blotches)
    y = np.linspace(-1, 1, 24)
    half = 0.27 * np.sqrt(np.clip(1 - y**2, 0, 1)) ** 0.8 * (1.1 - 0.15 * y)
    board.fill(_spindle(half, y), coat)
    board.decal(-0.02, -1, 0.02, 1, (245, 240, 225))


def _vase(board: Board) -> None:
    rng = board.rng
    for _ in range(5):
        x, y = rng.uniform(-0.4, 0.4), rng.uniform(0.6, 0.85)
        board.line([(0, 0.2), (x, y)], 0.04, (60, 140, 60))
        board.oval((x, y), (0.15, 0.15), to_colour(rng.random(), 0.7, 0.95))
        board.oval((x, y), (0.06, 0.06), (250, 220, 70))
    level = np.linspace(-0.97, 0.35, 24)
    half = 0.28 + 0.25 * np.sin((level + 0.97) * 2.4) * (level < 0.34)
    board.fill(_spindle(half, level), _coat(board, _spots, _plaid, _swirl))


COCO_OBJECTS: dict[str, Callable[[Board], None]] = {
    "zebra": _zebra,
    "giraffe": _giraffe,
    "elephant": _elephant,
    "cow": _cow,
    "bird": _bird,
    "teddy bear": _teddy_bear,
    "banana": _banana,
    "apple": _apple,
    "donut": _donut,
    "pizza": _pizza,
    "kite": _kite,
    "umbrella": _umbrella,
    "surfboard": _surfboard,
    "vase": _vase,
}
"""Drawing of each object by COCO's name of its category."""
