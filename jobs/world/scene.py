"""A street scene: plan, light, and everything on it, painted from far to near."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8, UInt16

from jobs.world.camera import draw_camera
from jobs.world.canvas import Canvas, ellipse_points
from jobs.world.ground import draw_street, paint_ground
from jobs.world.labels import LabelId
from jobs.world.population import place_furniture, place_people, place_vehicles
from jobs.world.roadside import paint_backdrop, paint_frontage
from jobs.world.stage import Piece, SceneOptions, Stage
from jobs.world.style import TownStyle, draw_light, expose
from jobs.world.texture import scaled, smooth_noise

_FRONTAGES: tuple[tuple[str, ...], ...] = (
    ("house",),
    ("house", "house", "hedge"),
    ("house", "house", "house", "wall"),
    ("house", "fence", "house"),
    ("hedge", "house"),
)


def draw_scene(
    height: int, width: int, town: TownStyle, rng: np.random.Generator, options: SceneOptions
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt16[np.ndarray, "H W"]]:
    """Draw a street scene.

    Returns:
        The picture, and instance ids as `gtFine_instanceIds` files hold them.
    """
    return finish_scene(set_stage(height, width, town, rng, options), [])


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
    featured_side = int(rng.choice([-1, 1]))
    for side in (-1, 1):
        kinds = _FRONTAGES[rng.integers(len(_FRONTAGES))]
        if options.feature in ("wall", "fence") and side == featured_side:
            kinds = (options.feature, "house", options.feature)
        paint_frontage(canvas, camera, street.frontier(side), town, rng, kinds)
    return stage


def finish_scene(
    stage: Stage, extra: list[Piece]
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt16[np.ndarray, "H W"]]:
    """Add what stands on the street, `extra` included, and take the picture.

    Returns:
        As `draw_scene`; identities that `extra` painted are among the instance ids.
    """
    pieces = [*place_furniture(stage), *place_vehicles(stage), *place_people(stage), *extra]
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
    top = canvas.height * (1 - stage.options.hood)
    centre = (canvas.width / 2, 1.35 * canvas.height)
    across, up = 0.62 * canvas.width, 1.35 * canvas.height - top
    dark = (tone * 0.8, tone * 0.8, tone * 0.85)
    rim = ellipse_points(centre, (across, up), count=80)
    inside = ellipse_points(centre, (0.9 * across, up - 0.03 * canvas.height), count=80)
    canvas.fill(rim, (tone, tone, tone + 5), LabelId.EGO_VEHICLE)
    canvas.fill(inside, dark, LabelId.EGO_VEHICLE)
