"""Picture files of the world, and an overview that shows some of them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt, UInt8

from eval.sets.registry import find_test_sets, read_image, read_target
from jobs.world.labels import colour_labels
from shards.schema import ANOMALY

_QUALITY = {
    ".jpg": [cv2.IMWRITE_JPEG_QUALITY, 95],
    ".webp": [cv2.IMWRITE_WEBP_QUALITY, 95],
    ".png": [cv2.IMWRITE_PNG_COMPRESSION, 3],
}
_TILE = (192, 384)  # rows, columns
_COLUMNS = 4
_OUTLINE = (255, 0, 255)


def write_picture(path: Path, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Write sRGB; the suffix (.png, .jpg or .webp) says how."""
    _write(path, np.ascontiguousarray(image[..., ::-1]))


def write_labels(path: Path, labels: UInt[np.ndarray, "H W"]) -> None:
    """Write a label map of 8 or 16 bits as PNG, which keeps every value."""
    assert path.suffix == ".png", f"{path}: labels need a format that keeps every value"
    _write(path, labels)


def _write(path: Path, array: UInt[np.ndarray, "..."]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(path.suffix, array, _QUALITY[path.suffix])
    assert done, f"{path}: OpenCV cannot encode {path.suffix}"
    path.write_bytes(data.tobytes())


def write_preview(root: Path) -> None:
    """Write `root`/preview.png: scenes with their labels, objects, and outlined anomalies."""
    pictures = []
    for path in sorted((root / "cityscapes").glob("leftImg8bit/train/*/*.png"))[::7][:4]:
        truth = str(path).replace("leftImg8bit.png", "gtFine_labelIds.png").replace("leftImg8bit", "gtFine")
        pictures += [_read(path), colour_labels(_read(Path(truth), cv2.IMREAD_UNCHANGED))]
    pictures += [_read(path) for path in sorted((root / "coco").glob("train2017/*.jpg"))[:6]]
    for test_set in find_test_sets(root / "anomaly"):
        for frame in test_set.frames[:2]:
            odd = (read_target(frame, test_set.convention) == ANOMALY).astype(np.uint8)
            contours, _ = cv2.findContours(odd, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            pictures.append(cv2.drawContours(read_image(frame), contours, -1, _OUTLINE, 1))
    tiles = [_fit(picture) for picture in pictures]
    tiles += [np.full((*_TILE, 3), 255, dtype=np.uint8)] * (-len(tiles) % _COLUMNS)
    rows = [np.concatenate(tiles[i : i + _COLUMNS], axis=1) for i in range(0, len(tiles), _COLUMNS)]
    write_picture(root / "preview.png", np.concatenate(rows))


def _read(path: Path, mode: int = cv2.IMREAD_COLOR) -> UInt8[np.ndarray, "..."]:
    array = cv2.imread(str(path), mode)
    assert array is not None, f"{path}: just written, yet unreadable"
    return np.ascontiguousarray(array[..., ::-1]) if array.ndim == 3 else array


def _fit(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Scale a picture into a tile and centre it on white."""
    factor = min(_TILE[0] / image.shape[0], _TILE[1] / image.shape[1])
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST)
    tile = np.full((*_TILE, 3), 255, dtype=np.uint8)
    top, left = (_TILE[0] - small.shape[0]) // 2, (_TILE[1] - small.shape[1]) // 2
    tile[top : top + small.shape[0], left : left + small.shape[1]] = small
    return tile
