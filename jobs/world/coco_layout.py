"""Pictures of objects in the folders and files of the official COCO 2017 download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jobs.world.canvas import Canvas, Identities, Picture
from jobs.world.coco_json import CATEGORY_IDS, annotate_crowd, annotate_polygons
from jobs.world.coco_objects import COCO_OBJECTS
from jobs.world.labels import OBJECT_ID, LabelId
from jobs.world.people import paint_person
from jobs.world.perspective import Camera, Pose, View
from jobs.world.picture_files import write_picture
from jobs.world.sprite import draw_sprite
from jobs.world.texture import draw_colour, smooth_noise
from jobs.world.vehicles import paint_vehicle

_DOMAIN = 3
_STREET_EVERY = 6  # every 6th picture also shows a person or a car
_SMALL_EVERY = 10  # every 10th picture is too small for the usual filter
_CROWD_EVERY = 9  # every 9th picture shows a crowd
_SMALLEST_AREA = 0.002  # share of the picture below which an object is not annotated
_CUT_OFF = 0.1  # share of an object that may lie outside

_Shown = tuple[int, str, bool]
"""Identity, category, and whether it is a crowd."""


@dataclass(frozen=True)
class ObjectPicture:
    """One picture to be drawn."""

    seed: int
    height: int
    """Rows of an ordinary picture; its width is 4/3 of it."""
    index: int

    def write(self, root: Path) -> dict[str, Any]:
        """Draw the picture under `root`/coco; return its entries for the JSON file."""
        image, identities, shown = self._draw(np.random.default_rng([self.seed, _DOMAIN, self.index]))
        # not consecutive, as in COCO; another seed draws other photographs
        image_id = 1001 + 37 * self.index + 10**8 * (self.seed % 10**4)
        file_name = f"{image_id:012d}.jpg"
        write_picture(root / "coco" / "train2017" / file_name, image)
        annotations = []
        for identity, name, is_crowd in shown:
            mask = identities == identity
            if mask.mean() < _SMALLEST_AREA:
                continue
            annotation = annotate_crowd(mask) if is_crowd else annotate_polygons(mask)
            if annotation is not None:
                annotations.append({**annotation, "image_id": image_id, "category_id": CATEGORY_IDS[name]})
        height, width = image.shape[:2]
        entry = {
            "id": image_id,
            "file_name": file_name,
            "height": height,
            "width": width,
            "license": 1,
            "date_captured": "2017-11-14 00:00:00",
            "coco_url": "",
            "flickr_url": "",
        }
        return {"image": entry, "annotations": annotations}

    def _draw(self, rng: np.random.Generator) -> tuple[Picture, Identities, list[_Shown]]:
        """Return the picture, identities, and what is on it."""
        scale = 0.7 if self.index % _SMALL_EVERY == _SMALL_EVERY - 1 else 1.0
        height, width = round(self.height * scale), round(self.height * scale * 4 / 3)
        if rng.random() < 0.25:
            height, width = width, height
        canvas = Canvas(height, width, rng)
        _paint_background(canvas, rng)
        shown: list[_Shown] = []
        if self.index % _STREET_EVERY == _STREET_EVERY - 1:
            shown.append(_paint_street_object(canvas, rng))
        if self.index % _CROWD_EVERY == _CROWD_EVERY - 1:
            shown.append(_paint_crowd(canvas, rng))
        for number in range(int(rng.integers(1, 4))):
            identity, name = OBJECT_ID + 1 + number, str(rng.choice(list(COCO_OBJECTS)))
            _paint_object(canvas, name, rng.uniform(0.3, 0.8), rng.normal(0, 0.25), identity, rng)
            shown.append((identity, name, False))
        image, identities = canvas.finish()
        noisy = image + rng.normal(0, rng.uniform(1, 4), image.shape)
        return np.clip(noisy, 0, 255).astype(np.uint8), identities, shown


def _paint_background(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint a wall over a floor, or one blurred surface."""
    rows, columns = canvas.pixels.shape[:2]
    upper = np.array(draw_colour(rng, (0.0, 1.0), (0.05, 0.4), (0.45, 0.9)), np.float32)
    lower = np.array(draw_colour(rng, (0.0, 1.0), (0.05, 0.4), (0.3, 0.7)), np.float32)
    edge = rng.uniform(0.45, 0.8) if rng.random() < 0.7 else 1.1
    colour = np.where((np.arange(rows) / rows > edge)[:, None, None], lower, upper)
    coarse = smooth_noise((rows // 4, columns // 4), int(rng.integers(5, 60)), rng)
    noise = cv2.resize(coarse, (columns, rows))
    canvas.pixels[:] = np.clip(colour * (0.8 + 0.4 * noise[..., None]), 0, 255).astype(np.uint8)


def _paint_object(
    canvas: Canvas,
    name: str,
    share: float,
    turn: float,
    identity: int,
    rng: np.random.Generator,
    lowest: float = 1.0,
) -> None:
    """Paint an object of a `share` of the shorter side anywhere above `lowest`, a share of the height."""
    side = round(share * min(canvas.height, canvas.width))
    sprite = draw_sprite(COCO_OBJECTS[name], side, rng, turn)
    if rng.random() < 0.5:
        sprite = sprite.mirrored()
    (height, width), (rows, columns) = sprite.mask.shape, canvas.identities.shape
    top = rng.uniform(-_CUT_OFF * height, lowest * rows - (1 - _CUT_OFF) * height)
    left = rng.uniform(-_CUT_OFF * width, columns - (1 - _CUT_OFF) * width)
    canvas.stamp(sprite, (int(top), int(left)), identity)


def _paint_crowd(canvas: Canvas, rng: np.random.Generator) -> _Shown:
    """Paint many small objects of one kind, which COCO annotates as one."""
    name = str(rng.choice(list(COCO_OBJECTS)))
    for _ in range(int(rng.integers(8, 14))):
        _paint_object(canvas, name, rng.uniform(0.1, 0.17), 0.0, OBJECT_ID, rng, lowest=0.6)
    return OBJECT_ID, name, True


def _paint_street_object(canvas: Canvas, rng: np.random.Generator) -> _Shown:
    """Paint a person or a car, for which the usual filter leaves the picture out."""
    camera = Camera(focal=1.1 * canvas.height, column=canvas.width / 2, horizon=0.4 * canvas.height)
    view = View(canvas, camera, rng)
    if rng.random() < 0.5:
        return paint_person(view, (rng.uniform(-0.8, 0.8), rng.uniform(3.2, 4.5))), "person", False
    pose = Pose(rng.uniform(-1, 1), rng.uniform(7, 9), rng.uniform(0.4, 2.0))
    return paint_vehicle(view, LabelId.CAR, pose), "car", False
