"""Pictures of objects in the folders, files and JSON of the official COCO 2017 download."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16

from jobs.world.annotation import annotate_crowd, annotate_polygons
from jobs.world.camera import Camera
from jobs.world.canvas import Canvas
from jobs.world.coco_categories import CATEGORIES, category_id
from jobs.world.coco_objects import COCO_OBJECTS
from jobs.world.labels import OBJECT_ID, LabelId
from jobs.world.people import paint_person
from jobs.world.picture_file import write_picture
from jobs.world.solid import Pose
from jobs.world.sprite import draw_sprite
from jobs.world.texture import smooth_noise, to_colour
from jobs.world.vehicles import paint_car

_DOMAIN = 3
_STREET_EVERY = 6  # every 6th picture also shows a person or a car
_SMALL_EVERY = 10  # every 10th picture is too small for the usual filter
_CROWD_EVERY = 9  # every 9th picture shows a crowd
_SMALLEST_AREA = 0.002  # share of the picture below which an object is not annotated


@dataclass(frozen=True)
class ObjectPicture:
    """One picture to be drawn."""

    seed: int
    height: int
    """Rows of an ordinary picture; its width is 4/3 of it."""
    index: int

    @property
    def image_id(self) -> int:
        """Return the number in the JSON file; not consecutive, as in COCO."""
        return 1001 + 37 * self.index

    @property
    def file_name(self) -> str:
        """Return the name as COCO builds it from the number."""
        return f"{self.image_id:012d}.jpg"

    def write(self, root: Path) -> dict[str, Any]:
        """Draw the picture under `root`/coco; return its entries for the JSON file."""
        rng = np.random.default_rng([self.seed, _DOMAIN, self.index])
        image, identities, categories = self._draw(rng)
        write_picture(root / "coco" / "train2017" / self.file_name, image)
        annotations = []
        for identity, name, crowd in categories:
            mask = identities == identity
            if mask.mean() < _SMALLEST_AREA:
                continue
            annotation = annotate_crowd(mask) if crowd else annotate_polygons(mask)
            if annotation is not None:
                annotations.append(
                    {**annotation, "image_id": self.image_id, "category_id": category_id(name)}
                )
        height, width = image.shape[:2]
        entry = {
            "id": self.image_id,
            "file_name": self.file_name,
            "height": height,
            "width": width,
            "license": 1,
            "date_captured": "2017-11-14 00:00:00",
            "coco_url": "",
            "flickr_url": "",
        }
        return {"image": entry, "annotations": annotations}

    def _draw(
        self, rng: np.random.Generator
    ) -> tuple[UInt8[np.ndarray, "H W 3"], UInt16[np.ndarray, "H W"], list[tuple[int, str, bool]]]:
        """Return the picture, identities, and (identity, category, is a crowd) of what is on it."""
        scale = 0.7 if self.index % _SMALL_EVERY == _SMALL_EVERY - 1 else 1.0
        height, width = round(self.height * scale), round(self.height * scale * 4 / 3)
        if rng.random() < 0.25:
            height, width = width, height
        canvas = Canvas(height, width, rng)
        _paint_background(canvas, rng)
        shown: list[tuple[int, str, bool]] = []
        if self.index % _STREET_EVERY == _STREET_EVERY - 1:
            shown.append(_paint_street_object(canvas, rng))
        if self.index % _CROWD_EVERY == _CROWD_EVERY - 1:
            shown.append(_paint_crowd(canvas, rng))
        for number in range(int(rng.integers(1, 4))):
            shown.append(_paint_object(canvas, OBJECT_ID + 1 + number, rng))
        image, identities = canvas.finish()
        noisy = image + rng.normal(0, rng.uniform(1, 4), image.shape)
        return np.clip(noisy, 0, 255).astype(np.uint8), identities, shown


def plan_coco(seed: int, height: int, count: int) -> list[ObjectPicture]:
    """List the pictures."""
    return [ObjectPicture(seed, height, index) for index in range(count)]


def write_annotations(root: Path, drawn: list[dict[str, Any]]) -> None:
    """Write `instances_train2017.json` from what `ObjectPicture.write` returned."""
    annotations = [entry for picture in drawn for entry in picture["annotations"]]
    content = {
        "info": {
            "description": "synthetic objects in the layout of COCO 2017",
            "url": "",
            "version": "1.0",
            "year": 2017,
            "contributor": "jobs.synthesize",
            "date_created": "2017/09/01",
        },
        "licenses": [{"id": 1, "name": "MIT", "url": "https://opensource.org/license/mit"}],
        "images": [picture["image"] for picture in drawn],
        "annotations": [{**entry, "id": number} for number, entry in enumerate(annotations, start=1)],
        "categories": [
            {"supercategory": supercategory, "id": number, "name": name}
            for number, name, supercategory in CATEGORIES
        ],
    }
    path = root / "coco" / "annotations" / "instances_train2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _paint_background(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint a wall over a floor, or one blurred surface."""
    rows, columns = canvas.pixels.shape[:2]
    upper = np.array(to_colour(rng.random(), rng.uniform(0.05, 0.4), rng.uniform(0.45, 0.9)), np.float32)
    lower = np.array(to_colour(rng.random(), rng.uniform(0.05, 0.4), rng.uniform(0.3, 0.7)), np.float32)
    edge = rng.uniform(0.45, 0.8) if rng.random() < 0.7 else 1.1
    below = (np.arange(rows) / rows > edge)[:, None, None]
    colour = np.where(below, lower, upper)
    noise = cv2.resize(
        smooth_noise((rows // 4, columns // 4), int(rng.integers(5, 60)), rng), (columns, rows)
    )
    canvas.pixels[:] = np.clip(colour * (0.8 + 0.4 * noise[..., None]), 0, 255).astype(np.uint8)


def _paint_object(canvas: Canvas, identity: int, rng: np.random.Generator) -> tuple[int, str, bool]:
    name = str(rng.choice(list(COCO_OBJECTS)))
    shorter = min(canvas.height, canvas.width)
    sprite = draw_sprite(COCO_OBJECTS[name], round(rng.uniform(0.3, 0.8) * shorter), rng, rng.normal(0, 0.25))
    _stamp(canvas, sprite.picture, sprite.mask, identity, rng, lowest=1.0)
    return identity, name, False


def _paint_crowd(canvas: Canvas, rng: np.random.Generator) -> tuple[int, str, bool]:
    """Paint many small objects of one kind, which COCO annotates as one."""
    name = str(rng.choice(list(COCO_OBJECTS)))
    shorter = min(canvas.height, canvas.width)
    for _ in range(int(rng.integers(8, 14))):
        sprite = draw_sprite(COCO_OBJECTS[name], round(rng.uniform(0.1, 0.17) * shorter), rng)
        _stamp(canvas, sprite.picture, sprite.mask, OBJECT_ID, rng, lowest=0.6)
    return OBJECT_ID, name, True


def _stamp(
    canvas: Canvas,
    picture: UInt8[np.ndarray, "h w 3"],
    mask: np.ndarray,
    identity: int,
    rng: np.random.Generator,
    lowest: float,
) -> None:
    """Put a sprite anywhere above `lowest` (a share of the height); at most a tenth of it is cut off."""
    if rng.random() < 0.5:
        picture, mask = picture[:, ::-1], mask[:, ::-1]
    rows, columns = canvas.pixels.shape[:2]
    slack = 0.1
    top = rng.uniform(-slack * mask.shape[0], lowest * rows - (1 - slack) * mask.shape[0])
    left = rng.uniform(-slack * mask.shape[1], columns - (1 - slack) * mask.shape[1])
    canvas.stamp(picture, mask, (int(top), int(left)), identity)


def _paint_street_object(canvas: Canvas, rng: np.random.Generator) -> tuple[int, str, bool]:
    """Paint a person or a car, for which the usual filter leaves the picture out."""
    camera = Camera(focal=1.1 * canvas.height, column=canvas.width / 2, horizon=0.4 * canvas.height)
    if rng.random() < 0.5:
        identity = canvas.new_instance(LabelId.PERSON)
        paint_person(canvas, camera, (rng.uniform(-0.8, 0.8), rng.uniform(3.2, 4.5)), identity, rng)
        return identity, "person", False
    identity = canvas.new_instance(LabelId.CAR)
    pose = Pose(rng.uniform(-1, 1), rng.uniform(7, 9), rng.uniform(0.4, 2.0))
    paint_car(canvas, camera, pose, identity, rng)
    return identity, "car", False
