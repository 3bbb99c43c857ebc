"""Test anomalies: things that fell off a lorry, and their surfaces (wood, metal, mesh, tilings).

Pasted objects (`coco_objects.py`) share neither a shape nor a surface with them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jobs.world.canvas import Colour, Surface, ellipse_points
from jobs.world.sprite import Board, arc, mix_colours, unit_grid
from jobs.world.texture import draw_colour, scaled, smooth_noise, to_colour

_Finish = Callable[[int, Colour, np.random.Generator], Surface]
"""Draws a surface from its side in pixels and a colour."""


def _tinted(colour: Colour, tone: np.ndarray) -> Surface:
    return np.asarray(colour, np.float32) * tone[..., None]


def _planks(side: int, colour: Colour, rng: np.random.Generator) -> Surface:
    rows, _ = unit_grid(side)
    count = int(rng.integers(5, 8))
    tone = rng.uniform(0.75, 1.2, count + 1)[np.floor(rows * count).astype(int)]
    grain = 0.85 + 0.3 * smooth_noise((side, side), 40, rng)[:, :1]
    joint = np.mod(rows * count, 1) < 0.1
    return np.where(joint[..., None], 40.0, _tinted(colour, tone * grain))


def _rust(side: int, colour: Colour, rng: np.random.Generator) -> Surface:
    share = np.clip((smooth_noise((side, side), 9, rng) - 0.42) * 7, 0, 1)
    return mix_colours(share, (140, 70, 32), colour)


def _hexagons(side: int, colour: Colour, rng: np.random.Generator) -> Surface:
    rows, columns = unit_grid(side)
    size = rng.uniform(0.09, 0.13)
    best = np.full((2, side, side), np.inf, dtype=np.float32)
    for offset in (0.0, 0.5):
        y = np.mod(rows / (size * 1.732) + offset, 1) - 0.5
        x = np.mod(columns / size + offset, 1) - 0.5
        distance = np.hypot(x, y * 1.732)
        best = np.sort(np.concatenate([best, distance[None]]), axis=0)[:2]
    return mix_colours(best[1] - best[0] > 0.13, colour, scaled(colour, 0.35))


def _mesh(side: int, colour: Colour, rng: np.random.Generator) -> Surface:
    """Draw a diagonal wire mesh before darkness."""
    rows, columns = unit_grid(side)
    count = rng.uniform(9, 13)
    wire = (np.mod((rows + columns) * count, 1) < 0.3) | (np.mod((rows - columns) * count, 1) < 0.3)
    return mix_colours(wire, scaled(colour, 1.2), (32, 34, 38))


def _chevrons(side: int, colour: Colour, rng: np.random.Generator) -> Surface:
    rows, columns = unit_grid(side)
    count = rng.uniform(5, 8)
    zigzag = rows * count + 2 * np.abs(np.mod(columns * count * 0.6, 1) - 0.5)
    return mix_colours(np.mod(zigzag, 1) < 0.5, colour, (245, 245, 235))


def _weave(side: int, colour: Colour, rng: np.random.Generator) -> Surface:
    count = rng.uniform(9, 13)
    rows, columns = (axis * count for axis in unit_grid(side))
    over = np.mod(np.floor(rows) + np.floor(columns), 2) > 0
    bulge = np.sin(np.pi * np.mod(np.where(over, rows, columns), 1))
    return _tinted(colour, 0.45 + 0.7 * bulge)


def _shingles(side: int, colour: Colour, rng: np.random.Generator) -> Surface:
    rows, columns = unit_grid(side)
    count = rng.uniform(7, 10)
    course = np.floor(rows * count)
    x = np.mod(columns * count * 0.8 + 0.5 * np.mod(course, 2), 1) - 0.5
    depth = np.mod(rows * count, 1) + 2.2 * x**2
    return _tinted(colour, 0.45 + 0.65 * np.mod(depth, 1))


def _metal(side: int, colour: Colour, rng: np.random.Generator) -> Surface:
    """Draw brushed metal: bands of reflected light."""
    _, columns = unit_grid(side)
    band = 0.75 + 0.4 * np.sin(columns * rng.uniform(8, 14) + rng.uniform(0, 6)) ** 3
    brushed = 0.92 + 0.16 * rng.random((side, 1), dtype=np.float32)
    return _tinted(colour, band * brushed)


def _finish(board: Board, *finishes: _Finish, colour: Colour | None = None) -> Surface:
    """Draw one of the surfaces, in a given colour or in a random one."""
    colour = colour or draw_colour(board.rng, (0.0, 1.0), (0.35, 0.95), (0.55, 0.95))
    return finishes[board.rng.integers(len(finishes))](board.resolution, colour, board.rng)


def _crate(board: Board) -> None:
    """Draw a crate in parallel projection: front, side and lid."""
    rng = board.rng
    wood = to_colour(rng.uniform(0.06, 0.13), 0.55, 0.8) if rng.random() < 0.5 else None
    surface = _finish(board, _planks, _weave, _mesh, colour=wood)
    depth = rng.uniform(0.25, 0.45)
    width, up = 0.95 - depth, depth * 0.7
    top = rng.uniform(0.15, 0.6)
    far, back = width + depth, top + up
    board.box(-0.95, top, width, -0.95, surface)
    board.fill([(width, top), (far, back), (far, -0.95 + up), (width, -0.95)], surface * 0.6)
    board.fill([(-0.95, top), (-0.95 + depth, back), (far, back), (width, top)], surface * 1.2)
    for y in (top - 0.04, -0.91):
        board.decal(-0.95, y + 0.06, width, y - 0.06, (80, 55, 35))


def _tyre_stack(board: Board) -> None:
    """Draw tyres lying on each other, painted as race tracks paint them."""
    rng = board.rng
    count = int(rng.integers(3, 6))
    flat = 0.2
    thick = (1.9 - 2 * flat) / count
    colour = to_colour(rng.random(), 0.75, 0.85)
    for layer in range(count):
        bottom, shift = -0.95 + flat + layer * thick, rng.uniform(-0.05, 0.05)
        tone = (48.0, 48.0, 52.0) if layer % 2 else colour
        top = bottom + thick
        board.oval((shift, bottom), (0.88, flat), scaled(tone, 0.55))
        board.box(shift - 0.88, top, shift + 0.88, bottom, scaled(tone, 0.75))
        board.oval((shift, top), (0.88, flat), tone)
    board.oval((shift, top), (0.5, flat * 0.55), (18, 18, 20))


def _barrel(board: Board) -> None:
    surface = _finish(board, _rust, _chevrons, _metal)
    board.oval((0, -0.75), (0.62, 0.2), surface * 0.7)
    board.box(-0.62, 0.75, 0.62, -0.75, surface)
    for y in (-0.3, 0.3):
        board.box(-0.66, y + 0.05, 0.66, y - 0.05, (60, 62, 66))
    board.oval((0, 0.75), (0.62, 0.2), surface * 1.15)
    board.oval((0, 0.75), (0.5, 0.14), (70, 70, 74))


def _polyhedron(board: Board) -> None:
    """Draw a faceted solid: flat faces in different tones around an inner face."""
    rng = board.rng
    count = int(rng.integers(5, 8))
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.uniform(0, 1)
    outer = arc(turn, (0, 0), (1, 1)) * rng.uniform(0.85, 0.97, (count, 1))
    inner = 0.5 * np.roll(outer, 1, axis=0) * 0.6 + 0.5 * outer * 0.6 + rng.normal(0, 0.03, (count, 2))
    colour = draw_colour(rng, (0.0, 1.0), (0.4, 0.8), (0.6, 0.9))
    for i in range(count):
        light = 0.55 + 0.55 * (0.5 + 0.5 * np.sin(turn[i]))
        after = (i + 1) % count
        board.fill([outer[i], outer[after], inner[after]], scaled(colour, light))
        board.fill([outer[i], inner[after], inner[i]], scaled(colour, light * 0.85))
    board.fill(inner, scaled(colour, 1.1))


def _pipes(board: Board) -> None:
    """Draw a pile of pipes seen from their ends, with their length behind."""
    surface = _finish(board, _metal, _rust)
    colour = to_colour(board.rng.random(), 0.5, 0.75)
    radius = 0.27
    board.fill([(-0.9, -0.9), (0.25, -0.9), (0.97, -0.35), (0.6, 0.65), (-0.15, 0.6), (-0.7, 0.0)], surface)
    for row, across in enumerate((3, 2, 1)):
        for i in range(across):
            centre = (-0.68 + (row * 0.5 + i) * 2 * radius * 0.96, -0.7 + row * radius * 1.75)
            board.oval(centre, (radius, radius), scaled(colour, 1.1))
            board.oval(centre, (radius * 0.68, radius * 0.68), (22, 22, 26))


def _spool(board: Board) -> None:
    """Draw a cable drum on its side: two discs and a wound core."""
    wood = _finish(board, _planks, colour=to_colour(board.rng.uniform(0.07, 0.12), 0.45, 0.75))
    cable = _finish(board, _weave, _shingles)
    board.oval((0.42, 0), (0.5, 0.95), wood * 0.7)
    board.box(-0.35, 0.6, 0.42, -0.6, cable)
    board.oval((-0.42, 0), (0.5, 0.95), wood)
    board.oval((-0.42, 0), (0.12, 0.22), (35, 28, 22))


def _gear(board: Board) -> None:
    teeth = int(board.rng.integers(8, 13))
    turn = np.linspace(0, 2 * np.pi, teeth * 4, endpoint=False)
    radius = np.where(np.arange(teeth * 4) % 4 < 2, 0.97, 0.76)
    board.fill(arc(turn, (0, 0), (1, 1)) * radius[:, None], _finish(board, _metal, _rust, _hexagons))
    board.oval((0, 0), (0.5, 0.5), (70, 72, 76))
    board.cut(ellipse_points((0, 0), (0.25, 0.25)))


def _ladder(board: Board) -> None:
    """Draw a stepladder: two splayed frames with rungs."""
    metal = to_colour(board.rng.choice([0.03, 0.15, 0.6]), board.rng.uniform(0.3, 0.8), 0.9)
    board.line([(0.1, 0.95), (0.85, -0.95)], 0.09, scaled(metal, 0.6))
    board.line([(-0.1, 0.95), (0.45, -0.95)], 0.09, scaled(metal, 0.6))
    for share in np.linspace(0.08, 0.92, 6):
        y = 0.95 - 1.9 * share
        board.line([(-0.15 - 0.7 * share, y), (0.15 + 0.12 * share, y)], 0.1, scaled(metal, 0.85))
    board.line([(-0.15, 0.95), (-0.88, -0.95)], 0.11, metal)
    board.line([(0.15, 0.95), (0.28, -0.95)], 0.11, metal)


def _tetrapod(board: Board) -> None:
    """Draw a breakwater block: thick legs from one centre."""
    surface = _finish(board, _hexagons, _shingles, _chevrons)
    for angle in (np.pi / 2, -2.62, -0.52):
        along = np.array([np.cos(angle), np.sin(angle)])
        across = np.array([-along[1], along[0]])
        leg = [along * 0.95 + across * 0.22, along * 0.95 - across * 0.22, -across * 0.36, across * 0.36]
        board.fill(np.stack(leg), surface * (0.85 + 0.25 * np.sin(angle)))
        board.fill(ellipse_points((0, 0), (0.22, 0.08), -angle + np.pi / 2) + along * 0.93, surface * 1.15)
    board.fill(ellipse_points((0.0, -0.05), (0.3, 0.3), count=6), surface * 1.1)


def _cart(board: Board) -> None:
    """Draw a mesh trolley on castors."""
    board.fill([(-0.95, 0.6), (0.7, 0.7), (0.55, -0.35), (-0.7, -0.35)], _finish(board, _mesh))
    board.line([(0.7, 0.7), (0.95, 0.9)], 0.1, (200, 60, 50))
    board.line([(0.55, -0.35), (0.45, -0.65), (-0.75, -0.65)], 0.09, (150, 152, 158))
    for x in (-0.6, 0.35):
        board.oval((x, -0.82), (0.15, 0.15), (30, 30, 32))


ODDITIES: dict[str, Callable[[Board], None]] = {
    "crate": _crate,
    "tyre stack": _tyre_stack,
    "barrel": _barrel,
    "polyhedron": _polyhedron,
    "pipes": _pipes,
    "spool": _spool,
    "gear": _gear,
    "ladder": _ladder,
    "tetrapod": _tetrapod,
    "cart": _cart,
}
"""Drawing of each kind of anomaly."""
