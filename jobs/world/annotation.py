"""Masks as COCO annotations: polygons, uncompressed run lengths, area and box."""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco_mask

_FINER = 4  # outlines are traced on a grid this much finer, so that they follow pixel edges


def annotate_polygons(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any] | None:
    """Return `segmentation`, `area`, `bbox` and `iscrowd` of one object as polygons.

    COCO's polygons cannot have holes, so a shape with holes is cut through them into pieces without.
    Area and box are those of the polygons' raster, as COCO's own.

    Returns:
        None where nothing is left that a polygon could hold.
    """
    polygons = [polygon for piece in _without_holes(mask) for polygon in _outlines(piece)]
    if not polygons:
        return None
    height, width = mask.shape
    runs = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return {
        "segmentation": polygons,
        "area": float(coco_mask.area(runs)),
        "bbox": [float(value) for value in coco_mask.toBbox(runs)],
        "iscrowd": 0,
    }


def annotate_crowd(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """Return the annotation of a crowd: run lengths down the columns, starting with background."""
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    if flat[0]:
        counts.insert(0, 0)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return {
        "segmentation": {"counts": counts, "size": list(mask.shape)},
        "area": float(mask.sum()),
        "bbox": [float(value) for value in box],
        "iscrowd": 1,
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
    pieces = []
    for first, last in itertools.pairwise([0, *cuts, mask.shape[1]]):
        piece = np.zeros_like(mask)
        piece[:, first:last] = mask[:, first:last]
        pieces.append(piece)
    return pieces


def _outlines(mask: Bool[np.ndarray, "H W"]) -> list[list[float]]:
    padded = np.pad(mask, 1).astype(np.uint8)
    fine = padded.repeat(_FINER, axis=0).repeat(_FINER, axis=1)
    contours, _ = cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = []
    for contour in contours:
        # A contour runs through the centres of the outermost fine pixels; one of them is 1/_FINER wide.
        points = (contour[:, 0].astype(np.float64) + 0.5) / _FINER - 1
        if len(points) >= 3 and cv2.contourArea(contour) >= _FINER**2:
            outlines.append([round(float(value), 2) for value in points.flatten()])
    return outlines
