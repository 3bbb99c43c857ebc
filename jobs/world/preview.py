"""One picture that shows a few scenes with their labels, objects and anomalies of a synthetic world."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from jobs.world.anomaly_layout import ANOMALY_SETS
from jobs.world.labels import colour_labels
from jobs.world.picture_file import write_picture

_TILE = (192, 384)  # rows, columns
_COLUMNS = 4
_OUTLINE = (255, 0, 255)


def write_preview(root: Path) -> None:
    """Write `root`/preview.png from the files that lie there."""
    tiles = [
        *_street_tiles(root / "cityscapes"),
        *_object_tiles(root / "coco"),
        *_anomaly_tiles(root / "anomaly"),
    ]
    while len(tiles) % _COLUMNS:
        tiles.append(np.full((*_TILE, 3), 255, dtype=np.uint8))
    rows = [np.concatenate(tiles[i : i + _COLUMNS], axis=1) for i in range(0, len(tiles), _COLUMNS)]
    write_picture(root / "preview.png", np.concatenate(rows))


def _street_tiles(root: Path) -> list[UInt8[np.ndarray, "h w 3"]]:
    tiles = []
    for path in sorted(root.glob("leftImg8bit/train/*/*.png"))[::7][:4]:
        truth = Path(str(path).replace("leftImg8bit", "gtFine")).with_name(
            path.name.replace("leftImg8bit", "gtFine_labelIds")
        )
        tiles += [_fit(_read(path)), _fit(colour_labels(_read_labels(truth)))]
    return tiles


def _object_tiles(root: Path) -> list[UInt8[np.ndarray, "h w 3"]]:
    return [_fit(_read(path)) for path in sorted(root.glob("train2017/*.jpg"))[:6]]


def _anomaly_tiles(root: Path) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Show two pictures of every set, the anomaly outlined."""
    tiles = []
    for entry in ANOMALY_SETS.values():
        for path in sorted((root / entry.folder / "images").iterdir())[:2]:
            labels = _read_labels(path.parent.parent / "labels_masks" / f"{path.stem}.png")
            odd = (labels == entry.anomaly_value).astype(np.uint8)
            contours, _ = cv2.findContours(odd, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            tiles.append(_fit(cv2.drawContours(_read(path), contours, -1, _OUTLINE, 1)))
    return tiles


def _read(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert bgr is not None, f"{path}: just written, yet unreadable"
    return np.ascontiguousarray(bgr[..., ::-1])


def _read_labels(path: Path) -> UInt8[np.ndarray, "h w"]:
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert labels is not None, f"{path}: just written, yet unreadable"
    return labels


def _fit(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Scale a picture into a tile and centre it on white."""
    factor = min(_TILE[0] / image.shape[0], _TILE[1] / image.shape[1])
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST)
    tile = np.full((*_TILE, 3), 255, dtype=np.uint8)
    top, left = (_TILE[0] - small.shape[0]) // 2, (_TILE[1] - small.shape[1]) // 2
    tile[top : top + small.shape[0], left : left + small.shape[1]] = small
    return tile
