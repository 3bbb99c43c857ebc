"""Objects of COCO categories that no street scene knows: animals, fruit, toys; pasted in training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jobs.world.canvas import Colour, ellipse_points
from jobs.world.coats import COATS
from jobs.world.sprite import Board, Surface
from jobs.world.texture import scaled, to_colour


def _coat(
    board: Board,
    names: tuple[str, ...],
    rng: np.random.Generator,
    colours: tuple[Colour, Colour] | None = None,
) -> Surface:
    """Draw one of the named surfaces, in given colours or in two that differ clearly."""
    if colours is None:
        hue = rng.random()
        colours = (
            to_colour(hue, rng.uniform(0.5, 0.9), rng.uniform(0.7, 0.95)),
            to_colour(hue + rng.uniform(0.25, 0.75), rng.uniform(0.3, 0.9), rng.uniform(0.25, 0.9)),
        )
    return COATS[str(rng.choice(names))](board.resolution, *colours, rng)


def _brown(rng: np.random.Generator) -> tuple[Colour, Colour]:
    hue = rng.uniform(0.04, 0.11)
    return to_colour(hue, rng.uniform(0.5, 0.8), rng.uniform(0.35, 0.6)), to_colour(
        hue + 0.02, 0.35, rng.uniform(0.75, 0.95)
    )


def _draw_legs(board: Board, places: tuple[float, ...], top: float, width: float, coat: Surface) -> None:
    for x in places:
        board.fill(
            [(x - width, top), (x + width, top), (x + width * 0.8, -0.98), (x - width * 0.8, -0.98)], coat
        )


def draw_zebra(board: Board, rng: np.random.Generator) -> None:
    """Draw a horse-like animal in stripes."""
    coat = _coat(board, ("stripes",), rng, ((28, 26, 26), (240, 238, 230)))
    _draw_legs(board, (-0.55, -0.38, 0.3, 0.46), -0.1, 0.075, coat)
    board.oval((-0.05, 0.05), (0.66, 0.32), coat)
    board.fill([(0.32, 0.1), (0.56, -0.02), (0.8, 0.72), (0.58, 0.78)], coat)
    board.oval((0.76, 0.7), (0.24, 0.13), coat, angle=-0.5)
    board.fill([(0.58, 0.76), (0.68, 0.76), (0.62, 0.96)], coat)
    board.line([(-0.68, 0.15), (-0.82, -0.3)], 0.06, coat)


def draw_giraffe(board: Board, rng: np.random.Generator) -> None:
    """Draw a long-necked animal in patches."""
    coat = _coat(board, ("patches",), rng, _brown(rng))
    _draw_legs(board, (-0.4, -0.25, 0.1, 0.24), -0.3, 0.055, coat)
    board.oval((-0.08, -0.28), (0.42, 0.2), coat)
    board.fill([(0.1, -0.25), (0.34, -0.2), (0.5, 0.78), (0.36, 0.82)], coat)
    board.oval((0.52, 0.82), (0.2, 0.09), coat, angle=0.3)
    board.line([(0.42, 0.86), (0.4, 0.97)], 0.04, coat)


def draw_elephant(board: Board, rng: np.random.Generator) -> None:
    """Draw a heavy animal with a trunk."""
    grey = rng.uniform(110, 165)
    coat = _coat(board, ("fur",), rng, ((grey, grey - 6, grey), (grey * 0.75, grey * 0.7, grey * 0.75)))
    _draw_legs(board, (-0.55, -0.25, 0.15, 0.42), 0.0, 0.14, coat)
    board.oval((-0.1, 0.12), (0.7, 0.48), coat)
    board.oval((0.6, 0.28), (0.32, 0.32), coat)
    board.line([(0.8, 0.2), (0.92, -0.2), (0.86, -0.6)], 0.16, coat)
    board.oval((0.42, 0.3), (0.22, 0.3), scaled((grey, grey - 6, grey), 0.8))
    board.line([(0.78, 0.05), (0.97, 0.1)], 0.06, (240, 235, 215))


def draw_cow(board: Board, rng: np.random.Generator) -> None:
    """Draw a cow in blotches."""
    coat = _coat(board, ("blotches",), rng, ((245, 242, 236), _brown(rng)[0]))
    _draw_legs(board, (-0.6, -0.4, 0.25, 0.45), -0.1, 0.085, coat)
    board.fill([(-0.75, 0.4), (0.5, 0.45), (0.55, -0.25), (-0.72, -0.25)], coat)
    board.oval((0.7, 0.42), (0.26, 0.2), coat, angle=0.5)
    board.line([(0.55, 0.55), (0.5, 0.75)], 0.06, (225, 220, 200))


def draw_bird(board: Board, rng: np.random.Generator) -> None:
    """Draw a bird with spread tail and open beak."""
    coat = _coat(board, ("stripes", "spots", "fur"), rng)
    board.fill([(-0.4, 0.0), (-1.0, 0.45), (-0.95, -0.25)], coat)
    board.oval((-0.05, -0.05), (0.55, 0.4), coat, angle=-0.3)
    board.oval((0.45, 0.42), (0.26, 0.25), coat)
    board.fill([(0.66, 0.5), (0.98, 0.4), (0.66, 0.3)], (245, 165, 30))
    board.oval((0.5, 0.48), (0.06, 0.06), (15, 15, 15))
    board.line([(-0.05, -0.4), (-0.05, -0.95)], 0.06, (235, 150, 40))
    board.line([(0.15, -0.4), (0.2, -0.95)], 0.06, (235, 150, 40))


def draw_teddy_bear(board: Board, rng: np.random.Generator) -> None:
    """Draw a plush bear that sits."""
    coat = _coat(board, ("fur", "spots"), rng, _brown(rng) if rng.random() < 0.5 else None)
    for side in (-1, 1):
        board.oval((0.34 * side, 0.83), (0.17, 0.17), coat)
        board.oval((0.5 * side, -0.05), (0.18, 0.38), coat, angle=0.6 * side)
        board.oval((0.42 * side, -0.72), (0.27, 0.25), coat)
    board.oval((0.0, -0.3), (0.5, 0.55), coat)
    board.oval((0.0, 0.5), (0.43, 0.4), coat)
    board.oval((0.0, 0.38), (0.18, 0.14), (240, 225, 200))
    for x, y, size in ((-0.16, 0.58, 0.055), (0.16, 0.58, 0.055), (0.0, 0.43, 0.07)):
        board.oval((x, y), (size, size * 0.9), (20, 16, 14))


def draw_banana(board: Board, rng: np.random.Generator) -> None:
    """Draw a crescent."""
    turn = np.linspace(-2.6, -0.5, 24)
    outer = np.stack([0.95 * np.cos(turn), 0.5 + 0.95 * np.sin(turn)], axis=1)
    inner = np.stack([0.8 * np.cos(turn), 0.62 + 0.68 * np.sin(turn)], axis=1)[::-1]
    yellow = to_colour(rng.uniform(0.12, 0.19), 0.85, 0.95)
    board.fill(
        np.concatenate([outer, inner]), _coat(board, ("spots", "fur"), rng, (scaled(yellow, 0.75), yellow))
    )
    board.line([outer[0], outer[0] + (-0.06, 0.14)], 0.1, (95, 70, 30))


def draw_apple(board: Board, rng: np.random.Generator) -> None:
    """Draw a round fruit with stalk and leaf."""
    hue = rng.choice([0.0, 0.08, 0.25])
    coat = _coat(
        board, ("fur", "stripes"), rng, (to_colour(hue, 0.9, 0.85), to_colour(hue + 0.06, 0.75, 0.95))
    )
    board.oval((-0.22, -0.15), (0.58, 0.72), coat)
    board.oval((0.22, -0.15), (0.58, 0.72), coat)
    board.line([(0.0, 0.45), (0.06, 0.85)], 0.08, (85, 55, 30))
    board.oval((0.3, 0.74), (0.26, 0.11), (70, 170, 60), angle=-0.4)


def draw_donut(board: Board, rng: np.random.Generator) -> None:
    """Draw a ring with icing."""
    coat = _coat(board, ("sprinkles", "swirl"), rng)
    board.oval((0, 0), (0.95, 0.9), (200, 145, 85))
    wobble = ellipse_points((0, 0.02), (0.84, 0.79), count=60)
    board.fill(wobble * (1 + 0.05 * np.sin(9 * np.arange(60) / 60 * 2 * np.pi))[:, None], coat)
    board.oval((0, 0), (0.38, 0.36), (200, 145, 85))
    board.cut(ellipse_points((0, 0), (0.3, 0.28)))


def draw_pizza(board: Board, rng: np.random.Generator) -> None:
    """Draw a slice: a wedge with a crust."""
    turn = np.linspace(0.6, 2.54, 16)
    arc = np.stack([1.25 * np.cos(turn), -0.95 + 1.85 * np.sin(turn)], axis=1)
    board.fill([(0, -0.97), *arc], (205, 140, 70))
    coat = _coat(board, ("spots",), rng, (to_colour(rng.choice([0.0, 0.3]), 0.8, 0.75), (250, 205, 95)))
    board.fill([(0, -0.9), *(arc * (0.86, 0.86) + (0, -0.04))], coat)


def draw_kite(board: Board, rng: np.random.Generator) -> None:
    """Draw a rhombus with a tail of bows."""
    coat = _coat(board, ("plaid", "swirl"), rng)
    board.fill([(0.1, 0.97), (0.7, 0.35), (0.1, -0.5), (-0.5, 0.35)], coat)
    tail = [(0.1, -0.5), (-0.1, -0.65), (0.15, -0.8), (-0.15, -0.97)]
    board.line(tail, 0.05, (60, 60, 70))
    for x, y in tail[1:]:
        board.fill(
            [(x - 0.16, y + 0.07), (x + 0.16, y - 0.07), (x + 0.16, y + 0.07), (x - 0.16, y - 0.07)],
            to_colour(rng.random(), 0.8, 0.9),
        )


def draw_umbrella(board: Board, rng: np.random.Generator) -> None:
    """Draw an open umbrella: a scalloped dome of gores over a hooked stick."""
    board.line([(0, 0.3), (0, -0.8), (0.1, -0.92), (0.22, -0.82)], 0.07, (70, 50, 40))
    first, second = to_colour(rng.random(), 0.8, 0.85), to_colour(rng.random(), 0.7, 0.95)
    turn = np.linspace(np.pi, 0, 30)
    for gore in range(6):
        part = turn[gore * 5 : gore * 5 + 6] if gore < 5 else turn[25:]
        arc = np.stack([0.97 * np.cos(part), 0.05 + 0.85 * np.sin(part)], axis=1)
        board.fill([(0, 0.02), *arc], first if gore % 2 else second)
    board.fill(
        [(-0.97, 0.05), (0.97, 0.05), (0.65, 0.16), (0.32, 0.04), (0, 0.16), (-0.32, 0.04), (-0.65, 0.16)],
        first,
    )


def draw_surfboard(board: Board, rng: np.random.Generator) -> None:
    """Draw a long leaf-shaped board."""
    coat = _coat(board, ("swirl", "plaid", "blotches"), rng)
    y = np.linspace(-1, 1, 24)
    half = 0.27 * np.sqrt(np.clip(1 - y**2, 0, 1)) ** 0.8 * (1.1 - 0.15 * y)
    board.fill(np.concatenate([np.stack([half, y], 1), np.stack([-half, y], 1)[::-1]]), coat)
    board.decal([(-0.02, -1), (0.02, -1), (0.02, 1), (-0.02, 1)], (245, 240, 225))


def draw_vase(board: Board, rng: np.random.Generator) -> None:
    """Draw a bellied vase with flowers."""
    for _ in range(5):
        x, y = rng.uniform(-0.4, 0.4), rng.uniform(0.6, 0.85)
        board.line([(0, 0.2), (x, y)], 0.04, (60, 140, 60))
        board.oval((x, y), (0.15, 0.15), to_colour(rng.random(), 0.7, 0.95))
        board.oval((x, y), (0.06, 0.06), (250, 220, 70))
    level = np.linspace(-0.97, 0.35, 24)
    half = 0.28 + 0.25 * np.sin((level + 0.97) * 2.4) * (level < 0.34)
    board.fill(
        np.concatenate([np.stack([half, level], 1), np.stack([-half, level], 1)[::-1]]),
        _coat(board, ("spots", "plaid", "swirl"), rng),
    )


COCO_OBJECTS: dict[str, Callable[[Board, np.random.Generator], None]] = {
    "zebra": draw_zebra,
    "giraffe": draw_giraffe,
    "elephant": draw_elephant,
    "cow": draw_cow,
    "bird": draw_bird,
    "teddy bear": draw_teddy_bear,
    "banana": draw_banana,
    "apple": draw_apple,
    "donut": draw_donut,
    "pizza": draw_pizza,
    "kite": draw_kite,
    "umbrella": draw_umbrella,
    "surfboard": draw_surfboard,
    "vase": draw_vase,
}
"""How each category is drawn; the keys are COCO's category names."""
