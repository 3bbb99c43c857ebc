"""Cars, trucks, buses and trams, put together from boxes."""

from __future__ import annotations

import cv2
import numpy as np

from jobs.world.canvas import Colour, Picture, rectangle
from jobs.world.labels import LabelId
from jobs.world.perspective import Box, Pose, Side, Solid, View, visible_sides
from jobs.world.texture import draw_colour, fill_box, plain, scaled, to_colour

_GLASS: Colour = (42, 50, 60)
_TYRE: Colour = (24, 24, 26)
_Sides = dict[Side, Picture]


def paint_vehicle(view: View, kind: LabelId, pose: Pose) -> int:
    """Paint a car, truck, bus or tram; return its identity."""
    identity = view.canvas.new_instance(kind)
    paint = {
        LabelId.CAR: _paint_car,
        LabelId.TRUCK: _paint_truck,
        LabelId.BUS: _paint_bus,
        LabelId.TRAIN: _paint_tram,
    }[kind]
    paint(Solid(view, pose, identity), view.rng)
    return identity


def _paint_car(solid: Solid, rng: np.random.Generator) -> None:
    """Paint a body, a cabin with dark windows that narrows upwards, wheels, lamps."""
    length, width = rng.uniform(3.8, 4.7), rng.uniform(1.7, 1.85)
    waist, roof = rng.uniform(0.85, 0.98), rng.uniform(1.42, 1.7)
    colour = _car_colour(rng)
    share, ahead, taper = (0.72, 0.12, 0.8) if rng.random() < 0.4 else (0.6, 0.05, 0.62)  # estate or not
    body = Box(width, length, 0.22, waist)
    cabin = Box(width * 0.96, length * share, waist, roof, -length * ahead, taper=(0.82, taper))
    _paint_underside(solid, width, length, 0.55, 0.32)
    solid.paint(body, _car_body(colour, waist, length, width))
    solid.paint(cabin, _car_cabin(colour, rng))
    _paint_wheels(solid, body, (-0.31 * length, 0.31 * length), 0.32)


def _paint_truck(solid: Solid, rng: np.random.Generator) -> None:
    """Paint a lorry: a tall plain ribbed box behind a lower cab, over dark wheels."""
    length, width, height = rng.uniform(6, 8.5), 2.4, rng.uniform(2.9, 3.5)
    load = to_colour(rng.random(), rng.choice([0.05, 0.5]), rng.uniform(0.7, 0.92))
    colour = draw_colour(rng, (0.0, 1.0), (0.3, 0.8), (0.4, 0.8))
    cab = Box(width * 0.95, 1.9, 0.5, 2.6, ahead=length / 2 - 0.95)
    cargo = Box(width, length - 2.1, 0.95, height, ahead=-1.05)
    frame = Box(width * 0.9, length - 0.4, 0.45, 0.95, ahead=-0.2)
    _paint_underside(solid, width, length, 0.6, 0.5)
    bumper = plain((0.5, 2.2), (38, 38, 40))
    for left in (2, 34):
        fill_box(bumper, left, 3, left + 7, 7, (200, 30, 28))
    solid.paint(frame, {"back": bumper})
    parts = [(cab, _cab_sides(colour)), (cargo, _cargo_sides(load, length, height, rng))]
    facing_away = np.cos(solid.pose.heading) > 0
    for box, textures in parts if facing_away else reversed(parts):
        solid.paint(box, textures)
    _paint_wheels(solid, frame, (-0.32 * length, -0.18 * length, 0.36 * length), 0.48)


def _paint_bus(solid: Solid, rng: np.random.Generator) -> None:
    """Paint a city bus: one strong colour, a band of large windows, a lit destination board."""
    length, width, height = rng.uniform(9.5, 12), 2.5, rng.uniform(2.9, 3.2)
    hue = rng.choice([0.0, 0.13, 0.33, 0.58, 0.85]) + rng.uniform(-0.02, 0.02)
    colour = to_colour(hue, 0.75, rng.uniform(0.6, 0.85))
    box = Box(width, length, 0.3, height)
    _paint_underside(solid, width, length, 0.6, 0.45)
    solid.paint(box, _coach_sides(colour, colour, length, height))
    _paint_wheels(solid, box, (-0.27 * length, 0.3 * length), 0.47)


def _paint_tram(solid: Solid, rng: np.random.Generator) -> None:
    """Paint a tram of two coaches: pale above, coloured below, many doors, a wire arm on the roof."""
    width, height, length = 2.5, 3.5, 13.0
    lower = to_colour(rng.choice([0.02, 0.16, 0.6]), 0.8, 0.6)
    upper = to_colour(0.13, 0.1, 0.92)
    solid.shadow(width, 2 * length, 0.5)
    for ahead in (length + 0.6, 0.0):
        coach = Box(width, length, 0.2, height, ahead)
        solid.paint(coach, _coach_sides(lower, upper, length, height, doors=True))
        roof = Box(width * 0.6, length * 0.5, height, height + 0.35, ahead)
        solid.paint(roof, {"back": plain((0.4, 2.0), (125, 125, 128))})


def _car_colour(rng: np.random.Generator) -> Colour:
    """Choose white, grey or black for most cars."""
    if rng.random() < 0.5:
        grey = float(rng.choice([30, 60, 110, 165, 225]))
        return grey, grey, grey + 4
    hue = rng.choice([0.0, 0.02, 0.35, 0.58, 0.62, 0.66])
    return to_colour(hue, rng.uniform(0.6, 0.9), rng.uniform(0.35, 0.75))


def _sides(side: Picture, back: Picture, top: Colour) -> _Sides:
    return {"back": back, "left": side, "right": side[:, ::-1].copy(), "top": plain((1, 1), top)}


def _car_body(colour: Colour, waist: float, length: float, width: float) -> _Sides:
    side = plain((waist, length), colour)
    height, span = side.shape[:2]
    side[: height // 8] = scaled(colour, 1.25)
    side[int(height * 0.72) :] = scaled(colour, 0.6)
    for column in (int(span * 0.36), int(span * 0.62)):
        cv2.line(side, (column, 0), (column, int(height * 0.8)), scaled(colour, 0.6), 1)
    back, front = (_car_end(colour, waist, width, lamp) for lamp in ((210, 20, 25), (250, 248, 225)))
    return {**_sides(side, back, scaled(colour, 1.1)), "front": front}


def _car_end(colour: Colour, waist: float, width: float, lamp: Colour) -> Picture:
    """Draw a car's rear or front: two lamps, a number plate, a dark bumper."""
    end = plain((waist * 2, width * 2), colour)  # twice as fine as other surfaces
    height, span = end.shape[:2]
    end[int(height * 0.72) :] = (45, 45, 48)
    lamp_height, lamp_width = int(height * 0.26), int(span * 0.17)
    for left in (1, span - lamp_width - 1):
        fill_box(end, left, height // 6, left + lamp_width, height // 6 + lamp_height, lamp)
    fill_box(end, int(span * 0.36), int(height * 0.46), int(span * 0.64), int(height * 0.6), (235, 235, 225))
    return end


def _car_cabin(colour: Colour, rng: np.random.Generator) -> _Sides:
    glass = scaled(_GLASS, rng.uniform(0.8, 1.4))
    side = plain((0.8, 2.6), glass)
    height, span = side.shape[:2]
    side[:2] = colour
    for share in (0.0, 0.48, 0.94):
        side[:, int(span * share) : int(span * share) + 3] = scaled(colour, 0.8)
    end = plain((0.8, 1.6), glass)
    end[:2] = colour
    end[:, :2] = end[:, -2:] = scaled(colour, 0.85)
    end[height // 3 : height // 2, 4:-4] = scaled(glass, 1.5)  # the sky's reflection
    return {**_sides(side, end, scaled(colour, 1.1)), "right": side}


def _coach_sides(
    lower: Colour, upper: Colour, length: float, height: float, *, doors: bool = False
) -> _Sides:
    """Draw the sides of a bus or tram: a band of windows, a lower half of one colour, maybe doors."""
    side, end = plain((height, length), upper), plain((height, 2.5), upper)
    for texture in (side, end):
        rows = len(texture)
        texture[int(rows * 0.56) :] = lower
        texture[int(rows * 0.94) :] = (40, 40, 42)
    top, columns = int(rows * 0.16), side.shape[1]
    step = columns // (9 if doors else 6)
    for number, left in enumerate(range(step // 6, columns - step // 2, step)):
        is_door = doors and number % 3 == 1
        bottom = int(rows * (0.9 if is_door else 0.54))
        fill_box(side, left, top, left + int(step * 0.8), bottom, _GLASS)
        if is_door:
            middle = left + int(step * 0.4)
            cv2.line(side, (middle, top), (middle, bottom), upper, 1)
    columns = end.shape[1]
    fill_box(end, 5, int(rows * 0.05), columns - 6, int(rows * 0.14), (250, 170, 40))
    fill_box(end, 3, int(rows * 0.18), columns - 4, int(rows * 0.56), _GLASS)
    for left in (3, columns - 10):
        fill_box(end, left, int(rows * 0.74), left + 7, int(rows * 0.82), (215, 60, 45))
    return _sides(side, end, scaled(upper, 1.05))


def _cargo_sides(colour: Colour, length: float, height: float, rng: np.random.Generator) -> _Sides:
    side = plain((height - 0.9, length - 2), colour)
    side[:, ::12] = scaled(colour, 0.82)
    rows, columns = side.shape[:2]
    fill_box(side, columns // 6, rows // 3, columns * 5 // 6, rows // 2, to_colour(rng.random(), 0.7, 0.6))
    back = plain((height - 0.9, 2.4), colour)
    rows, columns = back.shape[:2]
    cv2.rectangle(back, (0, 0), (columns - 1, rows - 1), scaled(colour, 0.6), 2)
    cv2.line(back, (columns // 2, 0), (columns // 2, rows), scaled(colour, 0.55), 2)
    for left in (columns * 2 // 5, columns * 3 // 5):
        cv2.line(back, (left, 2), (left, rows - 2), scaled(colour, 0.75), 1)
    return _sides(side, back, colour)


def _cab_sides(colour: Colour) -> _Sides:
    side = plain((2.1, 1.9), colour)
    fill_box(side, 6, 6, 30, 20, _GLASS)
    front = plain((2.1, 2.3), colour)
    fill_box(front, 3, 4, 42, 20, _GLASS)
    for left in (3, 36):
        fill_box(front, left, 32, left + 6, 36, (250, 248, 220))
    fill_box(front, 12, 27, 33, 36, (50, 50, 52))
    return {**_sides(side, plain((1, 1), scaled(colour, 0.7)), colour), "front": front, "right": side}


def _paint_wheels(solid: Solid, body: Box, places: tuple[float, ...], radius: float) -> None:
    """Paint the wheels on the long side that the camera sees."""
    seen = visible_sides(solid.view.camera, solid.pose, body)
    turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    for right in [side for name, side in (("left", -1), ("right", 1)) if name in seen]:
        for ahead in places:
            for reach, colour in ((radius, _TYRE), (0.55 * radius, (120, 120, 124))):
                up, along = radius + reach * np.sin(turn), ahead + reach * np.cos(turn)
                solid.fill(np.stack([np.full(20, right * body.width / 2), up, along], axis=1), colour)


def _paint_underside(solid: Solid, width: float, length: float, strength: float, radius: float) -> None:
    """Paint the shadow, and the two tyres under the end that faces the camera."""
    solid.shadow(width, length, strength)
    ahead = -0.36 * length if np.cos(solid.pose.heading) > 0 else 0.36 * length
    for middle in (-0.39 * width, 0.39 * width):
        solid.fill([(x, y, ahead) for x, y in rectangle(middle - 0.11, radius, middle + 0.11, 0)], _TYRE)
