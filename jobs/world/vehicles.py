"""Cars, trucks, buses and trams, put together from boxes."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import UInt8

from jobs.world.camera import Camera
from jobs.world.canvas import Canvas, Colour
from jobs.world.labels import LabelId
from jobs.world.solid import Box, Pose, Side, paint_box, paint_contact_shadow, visible_sides
from jobs.world.texture import plain, scaled, to_colour

_GLASS: Colour = (42, 50, 60)
_TYRE: Colour = (24, 24, 26)
Textures = dict[Side, UInt8[np.ndarray, "h w c"]]


def paint_car(canvas: Canvas, camera: Camera, pose: Pose, identity: int, rng: np.random.Generator) -> None:
    """Paint a car: a body, a cabin with dark windows that narrows upwards, wheels, lamps."""
    length, width = rng.uniform(3.8, 4.7), rng.uniform(1.7, 1.85)
    waist, roof = rng.uniform(0.85, 0.98), rng.uniform(1.42, 1.7)
    colour = _body_colour(rng)
    estate = rng.random() < 0.4
    body = Box(width, length, 0.22, waist)
    cabin = Box(
        width * 0.96,
        length * (0.72 if estate else 0.6),
        waist,
        roof,
        ahead=-length * (0.12 if estate else 0.05),
        taper=(0.82, 0.8 if estate else 0.62),
    )
    paint_contact_shadow(canvas, camera, pose, width, length, 0.55)
    _paint_tyres_behind(canvas, camera, pose, width, length, identity)
    paint_box(canvas, camera, pose, body, _car_body(colour, waist, length, width), identity)
    paint_box(canvas, camera, pose, cabin, _car_cabin(colour, rng), identity)
    _paint_wheels(canvas, camera, pose, body, (-0.31 * length, 0.31 * length), 0.32, identity)


def paint_truck(canvas: Canvas, camera: Camera, pose: Pose, identity: int, rng: np.random.Generator) -> None:
    """Paint a lorry: a tall plain ribbed box behind a lower cab, over dark wheels."""
    length, width, height = rng.uniform(6, 8.5), 2.4, rng.uniform(2.9, 3.5)
    load = to_colour(rng.random(), rng.choice([0.05, 0.5]), rng.uniform(0.7, 0.92))
    cab_colour = to_colour(rng.random(), rng.uniform(0.3, 0.8), rng.uniform(0.4, 0.8))
    cab = Box(width * 0.95, 1.9, 0.5, 2.6, ahead=length / 2 - 0.95)
    cargo = Box(width, length - 2.1, 0.95, height, ahead=-1.05)
    frame = Box(width * 0.9, length - 0.4, 0.45, 0.95, ahead=-0.2)
    paint_contact_shadow(canvas, camera, pose, width, length, 0.6)
    _paint_tyres_behind(canvas, camera, pose, width, length, identity, radius=0.5)
    parts: list[tuple[Box, Textures]] = [
        (frame, {"back": _bumper()}),
        (cab, _cab_sides(cab_colour)),
        (cargo, _cargo_sides(load, length, height, rng)),
    ]
    facing_away = np.cos(pose.heading) > 0
    for box, textures in (parts[0], *(parts[:0:-1] if not facing_away else parts[1:])):
        paint_box(canvas, camera, pose, box, textures, identity)
    _paint_wheels(
        canvas, camera, pose, frame, (-0.32 * length, -0.18 * length, 0.36 * length), 0.48, identity
    )


def paint_bus(canvas: Canvas, camera: Camera, pose: Pose, identity: int, rng: np.random.Generator) -> None:
    """Paint a city bus: one strong colour, a band of large windows, a lit destination board."""
    length, width, height = rng.uniform(9.5, 12), 2.5, rng.uniform(2.9, 3.2)
    colour = to_colour(
        rng.choice([0.0, 0.13, 0.33, 0.58, 0.85]) + rng.uniform(-0.02, 0.02), 0.75, rng.uniform(0.6, 0.85)
    )
    box = Box(width, length, 0.3, height)
    paint_contact_shadow(canvas, camera, pose, width, length, 0.6)
    _paint_tyres_behind(canvas, camera, pose, width, length, identity, radius=0.45)
    paint_box(canvas, camera, pose, box, _coach_sides(colour, colour, length, height), identity)
    _paint_wheels(canvas, camera, pose, box, (-0.27 * length, 0.3 * length), 0.47, identity)


def paint_tram(canvas: Canvas, camera: Camera, pose: Pose, identity: int, rng: np.random.Generator) -> None:
    """Paint a tram of two coaches: pale above, coloured below, many doors, a wire arm on the roof."""
    width, height, length = 2.5, 3.5, 13.0
    lower = to_colour(rng.choice([0.02, 0.16, 0.6]), 0.8, 0.6)
    upper = to_colour(0.13, 0.1, 0.92)
    paint_contact_shadow(canvas, camera, pose, width, 2 * length, 0.5)
    for ahead in (length + 0.6, 0.0):
        box = Box(width, length, 0.2, height, ahead=ahead)
        paint_box(canvas, camera, pose, box, _coach_sides(lower, upper, length, height, doors=True), identity)
        roof = Box(width * 0.6, length * 0.5, height, height + 0.35, ahead=ahead)
        paint_box(canvas, camera, pose, roof, {"back": plain((0.4, 2.0), (125, 125, 128))}, identity)


def _body_colour(rng: np.random.Generator) -> Colour:
    """Most cars are white, grey or black; some are coloured."""
    if rng.random() < 0.5:
        grey = float(rng.choice([30, 60, 110, 165, 225]))
        return grey, grey, grey + 4
    return to_colour(
        rng.choice([0.0, 0.02, 0.35, 0.58, 0.62, 0.66]), rng.uniform(0.6, 0.9), rng.uniform(0.35, 0.75)
    )


def _car_body(colour: Colour, waist: float, length: float, width: float) -> Textures:
    side = plain((waist, length), colour)
    height, span = side.shape[:2]
    side[: height // 8] = scaled(colour, 1.25)
    side[int(height * 0.72) :] = scaled(colour, 0.6)
    for share in (0.36, 0.62):
        cv2.line(side, (int(span * share), 0), (int(span * share), int(height * 0.8)), scaled(colour, 0.6), 1)
    back = _car_end(colour, waist, width, (210, 20, 25))
    front = _car_end(colour, waist, width, (250, 248, 225))
    return {
        "back": back,
        "front": front,
        "left": side,
        "right": side[:, ::-1].copy(),
        "top": plain((2, 2), scaled(colour, 1.1)),
    }


def _car_end(colour: Colour, waist: float, width: float, lamp: Colour) -> UInt8[np.ndarray, "h w 3"]:
    """Draw a car's rear or front: two lamps, a number plate, a dark bumper."""
    end = plain((waist * 2, width * 2), colour)  # twice as fine as other surfaces
    height, span = end.shape[:2]
    end[int(height * 0.72) :] = (45, 45, 48)
    lamp_height, lamp_width = int(height * 0.26), int(span * 0.17)
    for left in (1, span - lamp_width - 1):
        cv2.rectangle(end, (left, height // 6), (left + lamp_width, height // 6 + lamp_height), lamp, -1)
    cv2.rectangle(
        end,
        (int(span * 0.36), int(height * 0.46)),
        (int(span * 0.64), int(height * 0.6)),
        (235, 235, 225),
        -1,
    )
    return end


def _car_cabin(colour: Colour, rng: np.random.Generator) -> Textures:
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
    return {"back": end, "front": end, "left": side, "right": side, "top": plain((1, 1), scaled(colour, 1.1))}


def _coach_sides(
    lower: Colour, upper: Colour, length: float, height: float, *, doors: bool = False
) -> Textures:
    """Draw the sides of a bus or tram: a band of windows, a lower half of one colour, maybe doors."""
    side = plain((height, length), upper)
    rows, columns = side.shape[:2]
    side[int(rows * 0.56) :] = lower
    side[int(rows * 0.94) :] = (40, 40, 42)
    step = columns // (9 if doors else 6)
    for number, left in enumerate(range(step // 6, columns - step // 2, step)):
        bottom = 0.9 if doors and number % 3 == 1 else 0.54
        cv2.rectangle(
            side, (left, int(rows * 0.16)), (left + int(step * 0.8), int(rows * bottom)), _GLASS, -1
        )
        if bottom > 0.8:
            cv2.line(
                side,
                (left + int(step * 0.4), int(rows * 0.16)),
                (left + int(step * 0.4), int(rows * bottom)),
                upper,
                1,
            )
    end = plain((height, 2.5), upper)
    rows, columns = end.shape[:2]
    end[int(rows * 0.56) :] = lower
    cv2.rectangle(end, (5, int(rows * 0.05)), (columns - 6, int(rows * 0.14)), (250, 170, 40), -1)
    cv2.rectangle(end, (3, int(rows * 0.18)), (columns - 4, int(rows * 0.56)), _GLASS, -1)
    for left in (3, columns - 10):
        cv2.rectangle(end, (left, int(rows * 0.74)), (left + 7, int(rows * 0.82)), (215, 60, 45), -1)
    end[int(rows * 0.94) :] = (40, 40, 42)
    return {
        "back": end,
        "left": side,
        "right": side[:, ::-1].copy(),
        "top": plain((1, 1), scaled(upper, 1.05)),
    }


def _cargo_sides(colour: Colour, length: float, height: float, rng: np.random.Generator) -> Textures:
    side = plain((height - 0.9, length - 2), colour)
    side[:, ::12] = scaled(colour, 0.82)
    rows, columns = side.shape[:2]
    logo = to_colour(rng.random(), 0.7, 0.6)
    cv2.rectangle(side, (columns // 6, rows // 3), (columns * 5 // 6, rows // 2), logo, -1)
    back = plain((height - 0.9, 2.4), colour)
    rows, columns = back.shape[:2]
    cv2.rectangle(back, (0, 0), (columns - 1, rows - 1), scaled(colour, 0.6), 2)
    cv2.line(back, (columns // 2, 0), (columns // 2, rows), scaled(colour, 0.55), 2)
    for left in (columns * 2 // 5, columns * 3 // 5):
        cv2.line(back, (left, 2), (left, rows - 2), scaled(colour, 0.75), 1)
    return {"back": back, "left": side, "right": side[:, ::-1].copy(), "top": plain((1, 1), colour)}


def _cab_sides(colour: Colour) -> Textures:
    side = plain((2.1, 1.9), colour)
    cv2.rectangle(side, (6, 6), (30, 20), _GLASS, -1)
    front = plain((2.1, 2.3), colour)
    cv2.rectangle(front, (3, 4), (42, 20), _GLASS, -1)
    for left in (3, 36):
        cv2.rectangle(front, (left, 32), (left + 6, 36), (250, 248, 220), -1)
    cv2.rectangle(front, (12, 27), (33, 36), (50, 50, 52), -1)
    return {
        "back": plain((1, 1), scaled(colour, 0.7)),
        "front": front,
        "left": side,
        "right": side,
        "top": plain((1, 1), colour),
    }


def _bumper() -> UInt8[np.ndarray, "h w 3"]:
    bumper = plain((0.5, 2.2), (38, 38, 40))
    for left in (2, 34):
        cv2.rectangle(bumper, (left, 3), (left + 7, 7), (200, 30, 28), -1)
    return bumper


def _paint_wheels(
    canvas: Canvas,
    camera: Camera,
    pose: Pose,
    body: Box,
    places: tuple[float, ...],
    radius: float,
    identity: int,
) -> None:
    """Paint the wheels on the long side that the camera sees."""
    seen = visible_sides(camera, pose, body)
    for side, right in (("left", -1), ("right", 1)):
        if side not in seen:
            continue
        for ahead in places:
            for share, colour in ((1.0, _TYRE), (0.55, (120, 120, 124))):
                turn = np.linspace(0, 2 * np.pi, 20, endpoint=False)
                rim = np.stack(
                    [
                        np.full(20, right * body.width / 2),
                        radius + share * radius * np.sin(turn),
                        ahead + share * radius * np.cos(turn),
                    ],
                    axis=1,
                )
                canvas.fill(camera.project(pose.place(rim)), colour, identity, depth=pose.z)


def _paint_tyres_behind(
    canvas: Canvas,
    camera: Camera,
    pose: Pose,
    width: float,
    length: float,
    identity: int,
    radius: float = 0.32,
) -> None:
    """Paint the two tyres under the end that faces the camera."""
    ahead = -0.36 * length if np.cos(pose.heading) > 0 else 0.36 * length
    for middle in (-0.39 * width, 0.39 * width):
        corners = [
            (middle - 0.11, radius, ahead),
            (middle + 0.11, radius, ahead),
            (middle + 0.11, 0, ahead),
            (middle - 0.11, 0, ahead),
        ]
        canvas.fill(camera.project(pose.place(np.array(corners))), _TYRE, identity, depth=pose.z)


PAINTERS = {
    LabelId.CAR: paint_car,
    LabelId.TRUCK: paint_truck,
    LabelId.BUS: paint_bus,
    LabelId.TRAIN: paint_tram,
}
"""How each kind of vehicle is painted."""
