"""Annotations of objects in the JSON of the official COCO 2017 download.

Source of the categories: `instances_train2017.json`, Lin et al., ECCV 2014.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco_mask

_SUPERCATEGORIES = {
    "person": "person",
    "vehicle": "bicycle, car, motorcycle, airplane, bus, train, truck, boat",
    "outdoor": "traffic light, fire hydrant, stop sign, parking meter, bench",
    "animal": "bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe",
    "accessory": "backpack, umbrella, handbag, tie, suitcase",
    "sports": "frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket",
    "kitchen": "bottle, wine glass, cup, fork, knife, spoon, bowl",
    "food": "banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake",
    "furniture": "chair, couch, potted plant, bed, dining table, toilet",
    "electronic": "tv, laptop, mouse, remote, keyboard, cell phone",
    "appliance": "microwave, oven, toaster, sink, refrigerator",
    "indoor": "book, clock, vase, scissors, teddy bear, hair drier, toothbrush",
}
_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_FINER = 4  # outlines are traced on a grid this much finer, so that they follow pixel edges


_NAMES = [(group, name) for group, names in _SUPERCATEGORIES.items() for name in names.split(", ")]
_IDS = [number for number in range(1, 91) if number not in _UNUSED_IDS]
CATEGORIES: list[dict[str, Any]] = [
    {"supercategory": group, "id": number, "name": name}
    for number, (group, name) in zip(_IDS, _NAMES, strict=True)
]
"""The 80 categories with their official numbers, as the JSON file lists them."""
CATEGORY_IDS: dict[str, int] = {entry["name"]: entry["id"] for entry in CATEGORIES}


def write_annotations(root: Path, pictures: list[dict[str, Any]]) -> None:
    """Write `instances_train2017.json` under `root`/coco.

    `pictures` holds, for each picture, its entry `image` and its `annotations`, not numbered yet.
    """
    annotations = [entry for picture in pictures for entry in picture["annotations"]]
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
        "images": [picture["image"] for picture in pictures],
        "annotations": [{**entry, "id": number} for number, entry in enumerate(annotations, start=1)],
        "categories": CATEGORIES,
    }
    path = root / "coco" / "annotations" / "instances_train2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def annotate_polygons(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any] | None:
    """Return `segmentation`, `area`, `bbox` and `iscrowd` of one object as polygons.

    COCO's polygons cannot have holes, so a shape with holes is cut through them into pieces without.
    Area and box are those of the polygons' raster, as COCO's own. None where nothing is left that a polygon
    could hold.
    """
    polygons = [polygon for piece in _without_holes(mask) for polygon in _outlines(piece)]
    if not polygons:
        return None
    return _annotation(polygons, coco_mask.merge(coco_mask.frPyObjects(polygons, *mask.shape)), 0)


def annotate_crowd(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """Return the annotation of a crowd: run lengths down the columns, starting with background."""
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    if flat[0]:
        counts.insert(0, 0)
    segmentation = {"counts": counts, "size": list(mask.shape)}
    return _annotation(segmentation, coco_mask.frPyObjects(segmentation, *mask.shape), 1)


def _annotation(segmentation: Any, runs: dict[str, Any], is_crowd: int) -> dict[str, Any]:
    return {
        "segmentation": segmentation,
        "area": float(coco_mask.area(runs)),
        "bbox": [float(value) for value in coco_mask.toBbox(runs)],
        "iscrowd": is_crowd,
    }


def _without_holes(mask: Bool[np.ndarray, "H W"]) -> list[Bool[np.ndarray, "H W"]]:
    """Cut a mask along one column through each hole.

    A hole is connected, so every column of its bounding box meets it, and each part of it touches the cut.
    """
    outside = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    count, parts, boxes, _ = cv2.connectedComponentsWithStats(outside, connectivity=4)
    holes = [number for number in range(1, count) if number != parts[0, 0]]
    left, width = boxes[:, cv2.CC_STAT_LEFT], boxes[:, cv2.CC_STAT_WIDTH]
    cuts = sorted({int(left[number] + width[number] // 2) - 1 for number in holes})
    columns = np.arange(mask.shape[1])
    ends = itertools.pairwise([0, *cuts, mask.shape[1]])
    return [mask & (first <= columns) & (columns < last) for first, last in ends]


def _outlines(mask: Bool[np.ndarray, "H W"]) -> list[list[float]]:
    fine = np.pad(mask, 1).astype(np.uint8).repeat(_FINER, axis=0).repeat(_FINER, axis=1)
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = []
    for contour in contours:
        # A contour runs through the centres of the outermost fine pixels; one of them is 1/_FINER wide.
        points = (contour[:, 0].astype(np.float64) + 0.5) / _FINER - 1
        if len(points) >= 3 and cv2.contourArea(contour) >= _FINER**2:
            outlines.append([round(float(value), 2) for value in points.flatten()])
    return outlines
