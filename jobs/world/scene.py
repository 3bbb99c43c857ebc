"""A street scene: plan, light, and everything on it, painted from far to near."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8, UInt16

from jobs.world.camera import Camera, draw_camera
from jobs.world.canvas import Canvas, ellipse_points
from jobs.world.ground import Street, draw_street, paint_ground
from jobs.world.labels import LabelId
from jobs.world.people import paint_cyclist, paint_parked_cycle, paint_person
from jobs.world.roadside import (
    paint_backdrop,
    paint_bin,
    paint_frontage,
    paint_lamp,
    paint_sign,
    paint_traffic_light,
    paint_tree,
)
from jobs.world.solid import Pose
from jobs.world.style import Light, TownStyle, draw_light, expose
from jobs.world.texture import scaled, smooth_noise
from jobs.world.vehicles import PAINTERS

RARE: tuple[str, ...] = ("bus", "rider", "wall", "truck", "motorcycle", "train", "fence", "bicycle")
"""What few streets have; scene number i is sure to try for the i-th of them, modulo their number."""

_FRONTAGES: tuple[tuple[str, ...], ...] = (
    ("house",),
    ("house", "house", "hedge"),
    ("house", "house", "house", "wall"),
    ("house", "fence", "house"),
    ("hedge", "house"),
)


@dataclass(frozen=True)
class SceneOptions:
    """How a scene differs from the ordinary."""

    feature: str = ""
    """One of `RARE` that the scene shall show."""
    hood: float = 0.1
    """Height of the ego vehicle's bonnet, as a share of the picture's."""
    frame: bool = True
    """A dark rim where rectification leaves no picture; labelled out of roi."""
    traffic: float = 1.0
    """How many cars and people, relative to an ordinary street."""
    wide: bool = False
    """A wide road."""
    unusual: bool = False
    """Light that the training scenes do not have."""


@dataclass
class Stage:
    """A street in the making: what the pieces of a scene need to paint themselves."""

    canvas: Canvas
    camera: Camera
    street: Street
    town: TownStyle
    light: Light
    options: SceneOptions
    rng: np.random.Generator


Piece = tuple[float, Callable[[], None]]
"""Distance in metres, and what paints something there."""


def draw_scene(
    height: int, width: int, town: TownStyle, rng: np.random.Generator, options: SceneOptions
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt16[np.ndarray, "H W"]]:
    """Draw a street scene.

    Returns:
        The picture, and instance ids as `gtFine_instanceIds` files hold them.
    """
    stage = set_stage(height, width, town, rng, options)
    return finish_scene(stage, [])


def set_stage(
    height: int, width: int, town: TownStyle, rng: np.random.Generator, options: SceneOptions
) -> Stage:
    """Paint sky, ground and houses, ready for what stands on the street."""
    canvas = Canvas(height, width, rng)
    light = draw_light(rng, unusual=options.unusual)
    canvas.haze, canvas.haze_per_metre = light.skyline, light.haze_per_metre
    camera = draw_camera(height, width, rng)
    street = draw_street(rng, rails=options.feature == "train", wide=options.wide)
    stage = Stage(canvas, camera, street, town, light, options, rng)
    _paint_sky(stage)
    paint_backdrop(canvas, camera, town, rng)
    paint_ground(canvas, camera, street, town, light, rng)
    for side in (-1, 1):
        kinds = _FRONTAGES[rng.integers(len(_FRONTAGES))]
        if options.feature in ("wall", "fence") and side == int(rng.choice([-1, 1])):
            kinds = (options.feature, "house", options.feature)
        paint_frontage(canvas, camera, street.frontier(side), town, rng, kinds)
    return stage


def finish_scene(
    stage: Stage, extra: list[Piece]
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt16[np.ndarray, "H W"]]:
    """Add what stands on the street, `extra` included, and take the picture."""
    pieces = [*_furniture(stage), *_vehicles(stage), *_people(stage), *extra]
    for _, paint in sorted(pieces, key=lambda piece: -piece[0]):
        paint()
    if stage.options.hood > 0:
        _paint_hood(stage)
    image, identities = stage.canvas.finish()
    image = expose(image, stage.light, stage.rng)
    if stage.options.frame:
        rim = max(1, round(image.shape[0] * 0.005))
        for part in (np.s_[:rim], np.s_[-rim:], np.s_[:, :rim], np.s_[:, -rim:]):
            image[part] = 0
            identities[part] = LabelId.OUT_OF_ROI
    return image, identities


def _paint_sky(stage: Stage) -> None:
    canvas, light = stage.canvas, stage.light
    bottom = min(canvas.pixels.shape[0], int(stage.camera.horizon * canvas.pixels.shape[0] / canvas.height) + 2)
    share = np.linspace(0, 1, bottom, dtype=np.float32)[:, None, None]
    sky = np.asarray(light.zenith, np.float32) * (1 - share) + np.asarray(light.skyline, np.float32) * share
    cover = smooth_noise((bottom, canvas.pixels.shape[1]), 7, stage.rng)
    cloud = np.clip((cover - 0.75 + 0.4 * light.clouds) * 4, 0, 0.9)[..., None]
    white = np.asarray(scaled(light.skyline, 1.08), np.float32)
    canvas.pixels[:bottom] = np.clip(sky * (1 - cloud) + white * cloud, 0, 255).astype(np.uint8)
    canvas.identities[:bottom] = LabelId.SKY


def _spread(rng: np.random.Generator, near: float, far: float, gap: float) -> list[float]:
    """Distances between `near` and `far`, at least about `gap` apart."""
    places, z = [], near + rng.uniform(0, gap)
    while z < far:
        places.append(float(z))
        z += gap * rng.uniform(0.9, 1.8)
    return places


def _furniture(stage: Stage) -> list[Piece]:
    """Trees, lamps, lights, signs and bins along both pavements."""
    rng, street = stage.rng, stage.street
    pieces: list[Piece] = []
    choices = (paint_lamp, paint_traffic_light, paint_sign, paint_sign, paint_bin)
    for side in (-1, 1):
        pavement = street.strip(LabelId.SIDEWALK, side)
        terrain = street.strip(LabelId.TERRAIN, side)
        assert pavement is not None, "every street has two pavements"
        kerb = pavement.right if side < 0 else pavement.left
        for z in _spread(rng, 7, 70, 8):
            paint = choices[rng.choice(len(choices), p=(0.25, 0.25, 0.2, 0.2, 0.1))]
            place = (kerb + side * rng.uniform(0.4, 0.7), z)
            pieces.append((z, lambda paint=paint, place=place: paint(stage.canvas, stage.camera, place, rng)))
        line = terrain.middle if terrain else kerb + side * 1.3
        for z in _spread(rng, 9, 80, 8):
            if rng.random() < stage.town.trees:
                place = (line, z)
                pieces.append((z, lambda place=place: paint_tree(stage.canvas, stage.camera, place, stage.town, rng)))
    return pieces


def _vehicles(stage: Stage) -> list[Piece]:
    """Parked cars, traffic ahead and oncoming, and the scene's featured vehicle."""
    rng, street, options = stage.rng, stage.street, stage.options
    poses: list[tuple[LabelId, Pose]] = []
    for side in (-1, 1):
        parking = street.strip(LabelId.PARKING, side)
        curb = street.road.left if side < 0 else street.road.right
        if parking is None and rng.random() < 0.5:
            continue
        line = parking.middle if parking else curb - side * 1.1
        for z in _spread(rng, 6, 55, 6.5):
            if rng.random() < 0.6 * options.traffic:
                heading = 0.0 if side > 0 else np.pi
                poses.append((LabelId.CAR, Pose(line, z, heading + rng.normal(0, 0.04))))
    lane = 0.0 if not street.lanes else 2 * street.lanes[0]
    for line, heading, chance in ((0.1, 0.0, 0.75), (lane, np.pi, 0.7)):
        for z in _spread(rng, 9, 60, 14):
            if rng.random() < chance * options.traffic:
                kind = LabelId(int(rng.choice([LabelId.CAR, LabelId.TRUCK, LabelId.BUS], p=(0.88, 0.07, 0.05))))
                poses.append((kind, Pose(line + rng.normal(0, 0.2), z, heading + rng.normal(0, 0.03))))
    poses = _feature_vehicle(stage, poses, lane)
    return [(pose.z, lambda kind=kind, pose=pose: _paint_vehicle(stage, kind, pose)) for kind, pose in poses]


def _feature_vehicle(
    stage: Stage, poses: list[tuple[LabelId, Pose]], lane: float
) -> list[tuple[LabelId, Pose]]:
    """Put the featured vehicle where it can be seen, and clear its place."""
    rng, feature = stage.rng, stage.options.feature
    if feature == "train":
        track = stage.street.strip(LabelId.RAIL_TRACK, -1)
        assert track is not None, "a train needs rails"
        return [*poses, (LabelId.TRAIN, Pose(track.middle, rng.uniform(16, 26), float(rng.choice([0.0, np.pi]))))]
    if feature not in ("bus", "truck"):
        return poses
    kind = LabelId.BUS if feature == "bus" else LabelId.TRUCK
    oncoming = rng.random() < 0.5
    x, z = (lane if oncoming else 0.2), rng.uniform(12, 24)
    clear = [entry for entry in poses if abs(entry[1].x - x) > 1.5 or entry[1].z > z + 9]
    return [*clear, (kind, Pose(x, z, np.pi if oncoming else 0.0))]


def _paint_vehicle(stage: Stage, kind: LabelId, pose: Pose) -> None:
    identity = stage.canvas.new_instance(kind)
    PAINTERS[kind](stage.canvas, stage.camera, pose, identity, stage.rng)


def _people(stage: Stage) -> list[Piece]:
    """People on the pavements, a few crossing, riders at the road's edge, parked cycles."""
    rng, street, options = stage.rng, stage.street, stage.options
    canvas, camera = stage.canvas, stage.camera
    pieces: list[Piece] = []

    def walker(x: float, z: float) -> None:
        identity = canvas.new_instance(LabelId.PERSON)
        paint_person(canvas, camera, (x, z), identity, rng)

    for side in (-1, 1):
        pavement = street.strip(LabelId.SIDEWALK, side)
        assert pavement is not None, "every street has two pavements"
        for _ in range(rng.poisson(2.6 * options.traffic)):
            x, z = rng.uniform(pavement.left + 0.3, pavement.right - 0.3), rng.uniform(6, 45)
            pieces.append((z, lambda x=x, z=z: walker(x, z)))
        for motor, wanted in ((False, "bicycle"), (True, "motorcycle")):
            if rng.random() < (0.9 if options.feature == wanted else 0.12 * options.traffic):
                x, z = pavement.middle + rng.normal(0, 0.4), rng.uniform(6, 18)
                pieces.append((z, lambda x=x, z=z, motor=motor: paint_parked_cycle(canvas, camera, (x, z), rng, motor=motor)))
    for _ in range(rng.poisson(0.5 * options.traffic)):
        x, z = rng.uniform(street.road.left, street.road.right), rng.uniform(12, 40)
        pieces.append((z, lambda x=x, z=z: walker(x, z)))
    riders = rng.poisson(0.5 * options.traffic) + 2 * (options.feature == "rider") + (options.feature == "motorcycle")
    for number in range(riders):
        motor = options.feature == "motorcycle" or (number > 0 and rng.random() < 0.4)
        x, z, along = street.road.right - 0.9 + rng.normal(0, 0.3), rng.uniform(7, 26), bool(rng.random() < 0.6)
        pieces.append((z, lambda x=x, z=z, motor=motor, along=along: paint_cyclist(canvas, camera, (x, z), rng, motor=motor, along=along)))
    return pieces


def _paint_hood(stage: Stage) -> None:
    """Paint the bonnet of the car that carries the camera."""
    canvas, rng = stage.canvas, stage.rng
    width, height = canvas.width, canvas.height
    tone = float(rng.choice([40, 60, 90]))
    top = height * (1 - stage.options.hood)
    centre, radii = (width / 2, height + 0.35 * height), (0.62 * width, height + 0.35 * height - top)
    canvas.fill(ellipse_points(centre, radii, count=80), (tone, tone, tone + 5), LabelId.EGO_VEHICLE)
    inner = (radii[0] * 0.9, radii[1] - 0.03 * height)
    canvas.fill(ellipse_points(centre, inner, count=80), (tone * 0.8, tone * 0.8, tone * 0.85), LabelId.EGO_VEHICLE)
