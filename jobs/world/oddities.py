"""The test anomalies: things that fell off a lorry, none in shape or surface like a pasted object."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jobs.world.canvas import Colour, ellipse_points
from jobs.world.finishes import FINISHES
from jobs.world.sprite import Board, Surface
from jobs.world.texture import scaled, to_colour


def _finish(
    board: Board, names: tuple[str, ...], rng: np.random.Generator, colour: Colour | None = None
) -> Surface:
    """Draw one of the named surfaces."""
    chosen = colour or to_colour(rng.random(), rng.uniform(0.35, 0.95), rng.uniform(0.55, 0.95))
    return FINISHES[str(rng.choice(names))](board.resolution, chosen, rng)


def draw_crate(board: Board, rng: np.random.Generator) -> None:
    """Draw a crate in parallel projection: front, side and lid."""
    surface = _finish(
        board,
        ("planks", "weave", "mesh"),
        rng,
        to_colour(rng.uniform(0.06, 0.13), 0.55, 0.8) if rng.random() < 0.5 else None,
    )
    depth = rng.uniform(0.25, 0.45)
    width = 0.95 - depth
    top = rng.uniform(0.15, 0.6)
    board.fill([(-0.95, top), (width, top), (width, -0.95), (-0.95, -0.95)], surface)
    board.fill(
        [
            (width, top),
            (width + depth, top + depth * 0.7),
            (width + depth, -0.95 + depth * 0.7),
            (width, -0.95),
        ],
        surface * 0.6,
    )
    board.fill(
        [(-0.95, top), (-0.95 + depth, top + depth * 0.7), (width + depth, top + depth * 0.7), (width, top)],
        surface * 1.2,
    )
    for y in (top - 0.04, -0.91):
        board.decal(
            [(-0.95, y + 0.06), (width, y + 0.06), (width, y - 0.06), (-0.95, y - 0.06)], (80, 55, 35)
        )


def draw_tyre_stack(board: Board, rng: np.random.Generator) -> None:
    """Draw tyres lying on each other, painted as race tracks paint them."""
    count = int(rng.integers(3, 6))
    flat = 0.2
    thick = (1.9 - 2 * flat) / count
    colour = to_colour(rng.random(), 0.75, 0.85)
    for layer in range(count):
        bottom, shift = -0.95 + flat + layer * thick, rng.uniform(-0.05, 0.05)
        tone = (48.0, 48.0, 52.0) if layer % 2 else colour
        top = bottom + thick
        side = [(shift - 0.88, top), (shift + 0.88, top), (shift + 0.88, bottom), (shift - 0.88, bottom)]
        board.oval((shift, bottom), (0.88, flat), scaled(tone, 0.55))
        board.fill(side, scaled(tone, 0.75))
        board.oval((shift, top), (0.88, flat), tone)
    board.oval((shift, top), (0.5, flat * 0.55), (18, 18, 20))


def draw_barrel(board: Board, rng: np.random.Generator) -> None:
    """Draw a drum with hoops, standing."""
    surface = _finish(board, ("rust", "chevrons", "metal"), rng)
    board.oval((0, -0.75), (0.62, 0.2), surface * 0.7)
    board.fill([(-0.62, 0.75), (0.62, 0.75), (0.62, -0.75), (-0.62, -0.75)], surface)
    for y in (-0.3, 0.3):
        board.fill([(-0.66, y + 0.05), (0.66, y + 0.05), (0.66, y - 0.05), (-0.66, y - 0.05)], (60, 62, 66))
    board.oval((0, 0.75), (0.62, 0.2), surface * 1.15)
    board.oval((0, 0.75), (0.5, 0.14), (70, 70, 74))


def draw_polyhedron(board: Board, rng: np.random.Generator) -> None:
    """Draw a faceted solid: flat faces in different tones around an inner face."""
    count = int(rng.integers(5, 8))
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False) + rng.uniform(0, 1)
    outer = np.stack([np.cos(turn), np.sin(turn)], axis=1) * rng.uniform(0.85, 0.97, (count, 1))
    inner = 0.5 * np.roll(outer, 1, axis=0) * 0.6 + 0.5 * outer * 0.6 + rng.normal(0, 0.03, (count, 2))
    colour = to_colour(rng.random(), rng.uniform(0.4, 0.8), rng.uniform(0.6, 0.9))
    for i in range(count):
        light = 0.55 + 0.55 * (0.5 + 0.5 * np.sin(turn[i]))
        after = (i + 1) % count
        board.fill([outer[i], outer[after], inner[after]], scaled(colour, light))
        board.fill([outer[i], inner[after], inner[i]], scaled(colour, light * 0.85))
    board.fill(inner, scaled(colour, 1.1))


def draw_pipes(board: Board, rng: np.random.Generator) -> None:
    """Draw a pile of pipes seen from their ends, with their length behind."""
    surface = _finish(board, ("metal", "rust"), rng)
    colour = to_colour(rng.random(), 0.5, 0.75)
    radius = 0.27
    board.fill([(-0.9, -0.9), (0.25, -0.9), (0.97, -0.35), (0.6, 0.65), (-0.15, 0.6), (-0.7, 0.0)], surface)
    for row, across in enumerate((3, 2, 1)):
        for i in range(across):
            centre = (-0.68 + (row * 0.5 + i) * 2 * radius * 0.96, -0.7 + row * radius * 1.75)
            board.oval(centre, (radius, radius), scaled(colour, 1.1))
            board.oval(centre, (radius * 0.68, radius * 0.68), (22, 22, 26))


def draw_spool(board: Board, rng: np.random.Generator) -> None:
    """Draw a cable drum on its side: two discs and a wound core."""
    wood = _finish(board, ("planks",), rng, to_colour(rng.uniform(0.07, 0.12), 0.45, 0.75))
    cable = _finish(board, ("weave", "shingles"), rng)
    board.oval((0.42, 0), (0.5, 0.95), wood * 0.7)
    board.fill([(-0.35, 0.6), (0.42, 0.6), (0.42, -0.6), (-0.35, -0.6)], cable)
    board.oval((-0.42, 0), (0.5, 0.95), wood)
    board.oval((-0.42, 0), (0.12, 0.22), (35, 28, 22))


def draw_gear(board: Board, rng: np.random.Generator) -> None:
    """Draw a cogwheel."""
    teeth = int(rng.integers(8, 13))
    turn = np.linspace(0, 2 * np.pi, teeth * 4, endpoint=False)
    radius = np.where(np.arange(teeth * 4) % 4 < 2, 0.97, 0.76)
    outline = np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)
    board.fill(outline, _finish(board, ("metal", "rust", "hexagons"), rng))
    board.oval((0, 0), (0.5, 0.5), (70, 72, 76))
    board.cut(ellipse_points((0, 0), (0.25, 0.25)))


def draw_ladder(board: Board, rng: np.random.Generator) -> None:
    """Draw a stepladder: two splayed frames with rungs."""
    metal = to_colour(rng.choice([0.03, 0.15, 0.6]), rng.uniform(0.3, 0.8), 0.9)
    board.line([(0.1, 0.95), (0.85, -0.95)], 0.09, scaled(metal, 0.6))
    board.line([(-0.1, 0.95), (0.45, -0.95)], 0.09, scaled(metal, 0.6))
    for share in np.linspace(0.08, 0.92, 6):
        y = 0.95 - 1.9 * share
        board.line([(-0.15 - 0.7 * share, y), (0.15 + 0.12 * share, y)], 0.1, scaled(metal, 0.85))
    board.line([(-0.15, 0.95), (-0.88, -0.95)], 0.11, metal)
    board.line([(0.15, 0.95), (0.28, -0.95)], 0.11, metal)


def draw_tetrapod(board: Board, rng: np.random.Generator) -> None:
    """Draw a breakwater block: thick legs from one centre."""
    surface = _finish(board, ("hexagons", "shingles", "chevrons"), rng)
    for angle in (np.pi / 2, -2.62, -0.52):
        along = np.array([np.cos(angle), np.sin(angle)])
        across = np.array([-along[1], along[0]])
        leg = [along * 0.95 + across * 0.22, along * 0.95 - across * 0.22, -across * 0.36, across * 0.36]
        board.fill(
            np.stack(leg),
            surface * (0.85 + 0.25 * np.sin(angle)),
        )
        board.fill(ellipse_points((0, 0), (0.22, 0.08), -angle + np.pi / 2) + along * 0.93, surface * 1.15)
    board.fill(ellipse_points((0.0, -0.05), (0.3, 0.3), count=6), surface * 1.1)


def draw_cart(board: Board, rng: np.random.Generator) -> None:
    """Draw a mesh trolley on castors."""
    surface = _finish(board, ("mesh",), rng)
    board.fill([(-0.95, 0.6), (0.7, 0.7), (0.55, -0.35), (-0.7, -0.35)], surface)
    board.line([(0.7, 0.7), (0.95, 0.9)], 0.1, (200, 60, 50))
    board.line([(0.55, -0.35), (0.45, -0.65), (-0.75, -0.65)], 0.09, (150, 152, 158))
    for x in (-0.6, 0.35):
        board.oval((x, -0.82), (0.15, 0.15), (30, 30, 32))


ODDITIES: dict[str, Callable[[Board, np.random.Generator], None]] = {
    "crate": draw_crate,
    "tyre stack": draw_tyre_stack,
    "barrel": draw_barrel,
    "polyhedron": draw_polyhedron,
    "pipes": draw_pipes,
    "spool": draw_spool,
    "gear": draw_gear,
    "ladder": draw_ladder,
    "tetrapod": draw_tetrapod,
    "cart": draw_cart,
}
"""How each kind of anomaly is drawn."""
