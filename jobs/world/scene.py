"""A street scene: sky, ground and everything on it, painted from far to near."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float, Integer

from jobs.world.canvas import SUPERSAMPLING, Canvas, Identities, Picture, ellipse_points
from jobs.world.labels import LabelId
from jobs.world.perspective import draw_camera
from jobs.world.population import place_furniture, place_people, place_vehicles
from jobs.world.roadside import paint_backdrop, paint_frontage
from jobs.world.street import Light, Piece, SceneOptions, Stage, Street, TownStyle, draw_light, draw_street
from jobs.world.texture import draw_colour, scaled, smooth_noise, to_colour

_FRONTAGES: tuple[tuple[str, ...], ...] = (
    ("house",),
    ("house", "house", "hedge"),
    ("house", "house", "house", "wall"),
    ("house", "fence", "house"),
    ("hedge", "house"),
)
_KERB = 0.18  # metres
_X = Float[np.ndarray, "H W"]  # of the ground, in metres
_Z = Float[np.ndarray, "H 1"]


def set_stage(
    height: int, width: int, town: TownStyle, rng: np.random.Generator, options: SceneOptions
) -> Stage:
    """Paint sky, ground and houses, ready for what stands on the street."""
    canvas = Canvas(height, width, rng)
    light = draw_light(rng, unusual=options.unusual)
    canvas.haze, canvas.haze_per_metre = light.skyline, light.haze_per_metre
    camera = draw_camera(height, width, rng)
    street = draw_street(rng, rails=options.feature == "train", wide=options.wide)
    stage = Stage(canvas, camera, rng, street, town, light, options)
    _paint_sky(stage)
    paint_backdrop(stage)
    _paint_ground(stage)
    featured_side = int(rng.choice([-1, 1]))
    for side in (-1, 1):
        kinds = _FRONTAGES[rng.integers(len(_FRONTAGES))]
        if options.feature in ("wall", "fence") and side == featured_side:
            kinds = (options.feature, "house", options.feature)
        paint_frontage(stage, street.frontier(side), kinds)
    return stage


def finish_scene(stage: Stage, extra: list[Piece]) -> tuple[Picture, Identities]:
    """Add what stands on the street, `extra` included, and take the picture."""
    pieces = [*place_furniture(stage), *place_vehicles(stage), *place_people(stage), *extra]
    for _, paint in sorted(pieces, key=lambda piece: -piece[0]):
        paint()
    if stage.options.hood > 0:
        _paint_hood(stage)
    image, identities = stage.canvas.finish()
    image = _expose(image, stage.light, stage.rng)
    if stage.options.hood > 0:  # a dark rim, where rectification leaves no picture
        rim = max(1, round(image.shape[0] * 0.005))
        for part in (np.s_[:rim], np.s_[-rim:], np.s_[:, :rim], np.s_[:, -rim:]):
            image[part] = 0
            identities[part] = LabelId.OUT_OF_ROI
    return image, identities


def _expose(image: Picture, light: Light, rng: np.random.Generator) -> Picture:
    """Apply the light's colour, the lens's fall-off and slight blur, and the sensor's noise."""
    rows, columns = (np.linspace(-1, 1, side, dtype=np.float32) for side in image.shape[:2])
    falloff = 1 - 0.12 * (rows[:, None] ** 2 + columns**2) / 2
    exposed = image.astype(np.float32) * falloff[..., None] * np.asarray(light.gain, np.float32)
    blurred = cv2.GaussianBlur(exposed, (0, 0), 0.0004 * len(image) + 0.25)
    noisy = blurred + light.noise * rng.standard_normal(exposed.shape, dtype=np.float32)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _paint_sky(stage: Stage) -> None:
    """Paint a gradient from zenith to skyline, with clouds."""
    canvas, light = stage.canvas, stage.light
    rows, columns = canvas.pixels.shape[:2]
    bottom = min(rows, int(stage.camera.horizon * rows / canvas.height) + 2)
    share = np.linspace(0, 1, bottom, dtype=np.float32)[:, None, None]
    sky = np.asarray(light.zenith, np.float32) * (1 - share) + np.asarray(light.skyline, np.float32) * share
    cover = smooth_noise((bottom, columns), 7, stage.rng)
    cloud = np.clip((cover - 0.75 + 0.4 * light.clouds) * 4, 0, 0.9)[..., None]
    white = np.asarray(scaled(light.skyline, 1.08), np.float32)
    canvas.pixels[:bottom] = np.clip(sky * (1 - cloud) + white * cloud, 0, 255).astype(np.uint8)
    canvas.identities[:bottom] = LabelId.SKY


def _paint_hood(stage: Stage) -> None:
    """Paint the bonnet of the car that carries the camera."""
    canvas = stage.canvas
    tone = float(stage.rng.choice([40, 60, 90]))
    centre = (canvas.width / 2, 1.35 * canvas.height)
    across, up = 0.62 * canvas.width, 1.35 * canvas.height - canvas.height * (1 - stage.options.hood)
    inside = ellipse_points(centre, (0.9 * across, up - 0.03 * canvas.height), count=80)
    canvas.fill(ellipse_points(centre, (across, up), count=80), (tone, tone, tone + 5), LabelId.EGO_VEHICLE)
    canvas.fill(inside, (tone * 0.8, tone * 0.8, tone * 0.85), LabelId.EGO_VEHICLE)


def _paint_ground(stage: Stage) -> None:
    """Paint everything below the horizon: bands, lane marks, tiles, kerbs, and the houses' shadow."""
    canvas, street, light = stage.canvas, stage.street, stage.light
    top = max(0, int(np.ceil(stage.camera.horizon * SUPERSAMPLING)))
    rows = (np.arange(top, canvas.pixels.shape[0]) + 0.5) / SUPERSAMPLING
    columns = (np.arange(canvas.pixels.shape[1]) + 0.5) / SUPERSAMPLING
    x, z = stage.camera.ground(columns, rows)
    edges = [strip.left for strip in street.strips] + [street.strips[-1].right]
    beyond = LabelId.TERRAIN if stage.rng.random() < 0.6 else LabelId.GROUND
    labels = np.array([beyond, *(strip.label for strip in street.strips), beyond], dtype=np.uint16)
    identities = labels[np.digitize(x, edges)]
    colours = _ground_colours(x, z, identities, stage)
    reach = street.frontier(light.sun_side) - light.sun_side * 4.5
    shaded = np.clip((x - reach) * light.sun_side / 0.6, 0, 1)  # by the houses on the sun's side
    colours *= (1 - light.shadows * shaded)[..., None]
    clear = np.exp(-np.minimum(z, 500) * canvas.haze_per_metre)[..., None]
    colours = colours * clear + np.asarray(canvas.haze, np.float32) * (1 - clear)
    canvas.pixels[top:] = np.clip(colours, 0, 255).astype(np.uint8)
    canvas.identities[top:] = identities


def _ground_colours(x: _X, z: _Z, identities: Identities, stage: Stage) -> Float[np.ndarray, "H W 3"]:
    rng, pavement = stage.rng, np.asarray(stage.town.pavement)
    palette = _palette(stage.town, rng)
    amount = np.zeros(64, dtype=np.float32)
    amount[[LabelId.ROAD, LabelId.PARKING]] = 0.07
    amount[[LabelId.SIDEWALK, LabelId.GROUND]] = 0.06
    amount[[LabelId.RAIL_TRACK, LabelId.TERRAIN]] = 0.25
    # The noise repeats; its seam is 9 m to the side, out of sight where it would show.
    fine = (smooth_noise((512, 512), 100, rng) - 0.5)[_cells(z, 14, 512), _cells(x + 9, 28, 512)]
    coarse = (smooth_noise((256, 256), 12, rng) - 0.5)[_cells(z, 6, 256), _cells(x + 9, 14, 256)]
    fade = np.minimum(1, 14 / z)  # far away, the grain averages out
    colours = palette[identities] * (1 + 4 * amount[identities] * (fine * fade + 0.4 * coarse))[..., None]

    joints = (z < 16) & ((np.mod(x, 0.6) < 0.05) | (np.mod(z, 0.6) < 0.07))  # between paving stones
    colours[joints & (identities == LabelId.SIDEWALK)] *= 0.8
    for strip in stage.street.strips:
        if strip.label == LabelId.SIDEWALK:
            inner = strip.right if strip.middle < 0 else strip.left
            colours[np.abs(x - inner - np.sign(strip.middle) * _KERB / 2) < _KERB / 2] = pavement * 1.2
        if strip.label == LabelId.RAIL_TRACK:
            for rail in (strip.middle - 0.72, strip.middle + 0.72):
                colours[np.abs(x - rail) < 0.07] = (150, 148, 150)
    paint = 205 + 60 * coarse[..., None]
    return np.where(_markings(x, z, identities, stage.street)[..., None], paint, colours)


def _palette(town: TownStyle, rng: np.random.Generator) -> Float[np.ndarray, "64 3"]:
    """Choose the colour of each kind of ground, by label id."""
    palette = np.zeros((64, 3), dtype=np.float32)
    palette[LabelId.ROAD] = town.road
    palette[LabelId.SIDEWALK] = town.pavement
    palette[LabelId.PARKING] = np.asarray(town.road) * 1.12
    palette[LabelId.RAIL_TRACK] = to_colour(0.08, 0.25, 0.42)
    palette[LabelId.TERRAIN] = draw_colour(rng, (0.17, 0.24), (0.4, 0.6), (0.5, 0.64))
    palette[LabelId.GROUND] = to_colour(0.09, 0.15, 0.55)
    return palette


def _cells(metres: Float[np.ndarray, "..."], per_metre: float, count: int) -> Integer[np.ndarray, "..."]:
    """Return the index of the noise cell at a place; the noise repeats after `count` cells."""
    return np.floor(metres * per_metre).astype(np.int64) % count


def _markings(x: _X, z: _Z, identities: Identities, street: Street) -> Bool[np.ndarray, "H W"]:
    """Return where paint is: lines between lanes and along edges, a zebra crossing, parking bays."""
    road = street.road
    painted = np.zeros(x.shape, dtype=bool)
    for line in street.lanes:
        painted |= (np.abs(x - line) < 0.08) & (np.mod(z, 6) < 3.2)
    for edge in (road.left + 0.3, road.right - 0.3):
        painted |= np.abs(x - edge) < 0.06
    if street.crossing is not None:
        across = (z > street.crossing) & (z < street.crossing + 3.5)
        painted = np.where(across, np.mod(x, 1.0) < 0.5, painted)
    painted &= identities == LabelId.ROAD
    return painted | ((identities == LabelId.PARKING) & (np.mod(z, 5.5) < 0.15))
