"""Furniture, vehicles and people of a street: places are chosen first and painted later."""

from __future__ import annotations

from functools import partial

import numpy as np

from jobs.world.labels import LabelId
from jobs.world.people import paint_cyclist, paint_parked_cycle, paint_person
from jobs.world.perspective import Pose
from jobs.world.roadside import paint_bin, paint_lamp, paint_sign, paint_traffic_light, paint_tree
from jobs.world.street import Piece, Stage, Strip
from jobs.world.vehicles import paint_vehicle

_FURNITURE = (paint_lamp, paint_traffic_light, paint_sign, paint_bin)


def place_furniture(stage: Stage) -> list[Piece]:
    """Choose places for trees, lamps, lights, signs and bins along both pavements."""
    rng = stage.rng
    pieces: list[Piece] = []
    for side in (-1, 1):
        pavement, terrain = _pavement(stage, side), stage.street.strip(LabelId.TERRAIN, side)
        kerb = pavement.right if side < 0 else pavement.left
        for z in _spread(rng, 7, 70, 8):
            paint = _FURNITURE[rng.choice(len(_FURNITURE), p=(0.25, 0.25, 0.4, 0.1))]
            pieces.append((z, partial(paint, stage, (kerb + side * rng.uniform(0.4, 0.7), z))))
        line = terrain.middle if terrain else kerb + side * 1.3
        for z in _spread(rng, 9, 80, 8):
            if rng.random() < stage.town.trees:
                pieces.append((z, partial(paint_tree, stage, (line, z))))
    return pieces


def place_vehicles(stage: Stage) -> list[Piece]:
    """Choose places for parked cars, traffic ahead, oncoming traffic, and the scene's featured vehicle."""
    vehicles = [*_parked(stage), *_traffic(stage)]
    return [(pose.z, partial(paint_vehicle, stage, kind, pose)) for kind, pose in _feature(stage, vehicles)]


def place_people(stage: Stage) -> list[Piece]:
    """Choose places for people on the pavements and crossing, riders, and parked cycles."""
    rng, street, options = stage.rng, stage.street, stage.options
    pieces: list[Piece] = []
    for side in (-1, 1):
        pavement = _pavement(stage, side)
        for _ in range(rng.poisson(3.0 * options.traffic)):
            x = rng.uniform(pavement.left + 0.3, pavement.right - 0.3)
            z = rng.uniform(5, 14) if rng.random() < 0.4 else rng.uniform(8, 40)
            pieces.append((z, partial(paint_person, stage, (x, z))))
        pieces += _parked_cycles(stage, pavement)
    for _ in range(rng.poisson(0.5 * options.traffic)):
        x, z = rng.uniform(street.road.left, street.road.right), rng.uniform(12, 40)
        pieces.append((z, partial(paint_person, stage, (x, z))))
    return pieces + _riders(stage)


def _pavement(stage: Stage, side: int) -> Strip:
    pavement = stage.street.strip(LabelId.SIDEWALK, side)
    assert pavement is not None, "every street has two pavements"
    return pavement


def _spread(rng: np.random.Generator, near: float, far: float, gap: float) -> list[float]:
    """Draw distances between `near` and `far`, about `gap` apart or more."""
    places, z = [], near + rng.uniform(0, gap)
    while z < far:
        places.append(float(z))
        z += gap * rng.uniform(0.9, 1.8)
    return places


def _parked(stage: Stage) -> list[tuple[LabelId, Pose]]:
    rng, street = stage.rng, stage.street
    cars = []
    for side in (-1, 1):
        parking = street.strip(LabelId.PARKING, side)
        kerb = street.road.left if side < 0 else street.road.right
        if parking is None and rng.random() < 0.5:
            continue
        line = parking.middle if parking else kerb - side * 1.1
        for z in _spread(rng, 6, 55, 6.5):
            if rng.random() < 0.6 * stage.options.traffic:
                cars.append((LabelId.CAR, Pose(line, z, (0.0 if side > 0 else np.pi) + rng.normal(0, 0.04))))
    return cars


def _traffic(stage: Stage) -> list[tuple[LabelId, Pose]]:
    rng, oncoming = stage.rng, 2 * stage.street.lanes[0]  # X of the middle of the lane left of the camera's
    kinds = (LabelId.CAR, LabelId.TRUCK, LabelId.BUS)
    vehicles = []
    for line, heading, chance in ((0.1, 0.0, 0.75), (oncoming, np.pi, 0.7)):
        for z in _spread(rng, 9, 60, 14):
            if rng.random() < chance * stage.options.traffic:
                kind = kinds[rng.choice(3, p=(0.88, 0.07, 0.05))]
                vehicles.append((kind, Pose(line + rng.normal(0, 0.2), z, heading + rng.normal(0, 0.03))))
    return vehicles


def _feature(stage: Stage, vehicles: list[tuple[LabelId, Pose]]) -> list[tuple[LabelId, Pose]]:
    """Add the featured vehicle where it can be seen, and clear its place."""
    rng, feature = stage.rng, stage.options.feature
    if feature == "train":
        track = stage.street.strip(LabelId.RAIL_TRACK, -1)
        assert track is not None, "a train needs rails"
        pose = Pose(track.middle, rng.uniform(13, 20), float(rng.choice([0.0, np.pi])))
        return [*vehicles, (LabelId.TRAIN, pose)]
    if feature not in ("bus", "truck"):
        return vehicles
    oncoming = rng.random() < 0.5
    x, z = (2 * stage.street.lanes[0] if oncoming else 0.2), rng.uniform(12, 22)
    clear = [entry for entry in vehicles if abs(entry[1].x - x) > 1.5 or entry[1].z > z + 9]
    kind = LabelId.BUS if feature == "bus" else LabelId.TRUCK
    return [*clear, (kind, Pose(x, z, np.pi if oncoming else 0.0))]


def _parked_cycles(stage: Stage, pavement: Strip) -> list[Piece]:
    rng, options = stage.rng, stage.options
    pieces: list[Piece] = []
    for motor, name, usual in ((False, "bicycle", 0.25), (True, "motorcycle", 0.1)):
        if rng.random() < (0.9 if options.feature == name else usual * options.traffic):
            place = (pavement.middle + rng.normal(0, 0.4), rng.uniform(5, 14))
            pieces.append((place[1], partial(paint_parked_cycle, stage, place, motor=motor)))
    return pieces


def _riders(stage: Stage) -> list[Piece]:
    """Choose places for riders at the right edge of the road."""
    rng, feature = stage.rng, stage.options.feature
    count = rng.poisson(0.6 * stage.options.traffic) + {"rider": 2, "motorcycle": 1}.get(feature, 0)
    pieces: list[Piece] = []
    for number in range(count):
        motor = feature == "motorcycle" or (number > 0 and rng.random() < 0.4)
        place = (stage.street.road.right - 0.9 + rng.normal(0, 0.3), rng.uniform(5.5, 18))
        along = bool(rng.random() < 0.6)
        pieces.append((place[1], partial(paint_cyclist, stage, place, motor=motor, along=along)))
    return pieces
