"""Frames in the official layouts whose files cost about as much to decode as real ones, drawn at random."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from jobs.prepare import main as prepare
from shards.schema import CITYSCAPES_CLASSES

FRAME = (1024, 2048)
PHOTO = (480, 640)


def write_frames(root: Path, num_frames: int, num_photos: int) -> None:
    """Write `root`/cityscapes and `root`/coco, as the downloads look when unpacked."""
    images, labels = root / "cityscapes/leftImg8bit/train/city", root / "cityscapes/gtFine/train/city"
    for folder in (images, labels, root / "coco/train2017", root / "coco/annotations"):
        folder.mkdir(parents=True)
    for i in range(num_frames):
        rng = np.random.default_rng([0, i])
        ids = draw_labels(rng)
        stem = f"city_{i:06d}_000019"
        cv2.imwrite(str(images / f"{stem}_leftImg8bit.png"), draw_texture(rng, FRAME, ids))
        cv2.imwrite(str(labels / f"{stem}_gtFine_labelIds.png"), ids)
    write_photos(root / "coco", num_photos)


def make_scenes(root: Path, out: Path, encoding: str, workers: int = 1) -> None:
    """Make shards of what `write_frames` wrote."""
    options = ["--root", str(root / "cityscapes"), "--out", str(out), "--splits", "train"]
    prepare(["cityscapes", *options, "--image_encoding", encoding, "--workers", str(workers)])


def make_bank(root: Path, out: Path, workers: int = 1) -> None:
    """Make a bank of all objects that `write_frames` wrote."""
    sources = ["--images", str(root / "coco/train2017"), "--annotations", str(root / "coco/annotations")]
    everything = ["--excluded_categories", "--min_side", "0"]
    prepare(["coco", *sources, "--out", str(out), *everything, "--workers", str(workers)])


def draw_labels(rng: np.random.Generator) -> UInt8[np.ndarray, "H W"]:
    """Draw label ids: bands of the large classes, then 60 ellipses so that all 19 classes occur."""
    ids = np.full(FRAME, 23, np.uint8)  # sky
    ids[300:], ids[560:], ids[940:] = 11, 7, 1  # building, road, and the ego vehicle, which is void
    names = [entry.ids[0] for entry in CITYSCAPES_CLASSES]
    for i in range(60):
        centre = (int(rng.integers(FRAME[1])), int(rng.integers(300, 900)))
        axes = (int(rng.integers(10, 120)), int(rng.integers(10, 120)))
        cv2.ellipse(ids, centre, axes, float(rng.integers(180)), 0, 360, (names[i % len(names)],), -1)
    return ids


def draw_texture(
    rng: np.random.Generator, shape: tuple[int, int], ids: UInt8[np.ndarray, "_H _W"] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw smooth light, edges where the labels change, and a camera's grain, so that a PNG has 2 to 3 MB."""
    coarse = rng.integers(40, 160, (shape[0] // 32, shape[1] // 32, 3)).astype(np.float32)
    picture = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    if ids is not None:
        picture += rng.uniform(-40, 40, (256, 3))[ids]
    grain = cv2.GaussianBlur(rng.normal(0, 4, (*shape, 3)).astype(np.float32), (0, 0), 0.8)
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def write_photos(root: Path, num_photos: int) -> None:
    """Write COCO photographs of one object each, with polygons of 40 corners."""
    images, annotations = [], []
    for i in range(num_photos):
        rng = np.random.default_rng([1, i])
        name = f"{i:012d}.jpg"
        cv2.imwrite(str(root / "train2017" / name), draw_texture(rng, PHOTO), [cv2.IMWRITE_JPEG_QUALITY, 92])
        images.append({"id": i, "file_name": name, "height": PHOTO[0], "width": PHOTO[1]})
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        radii = rng.uniform(60, 110, 40)
        points = np.stack([320 + radii * np.cos(angles), 240 + radii * np.sin(angles)], axis=1)
        low, high = points.min(axis=0), points.max(axis=0)
        area = float(cv2.contourArea(points.astype(np.float32)))
        shape = {"area": area, "bbox": [*low.tolist(), *(high - low).tolist()]}
        outline = [points.round(2).ravel().tolist()]
        entry = {"id": i, "image_id": i, "category_id": 24, "iscrowd": 0, "segmentation": outline}
        annotations.append(entry | shape)
    categories = [{"id": 24, "name": "zebra", "supercategory": "animal"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations/instances_train2017.json").write_text(json.dumps(content))
