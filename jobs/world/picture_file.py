"""Picture files: RGB arrays and label maps to disk."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt, UInt8

_QUALITY = {
    ".jpg": [cv2.IMWRITE_JPEG_QUALITY, 95],
    ".webp": [cv2.IMWRITE_WEBP_QUALITY, 95],
    ".png": [cv2.IMWRITE_PNG_COMPRESSION, 3],
}


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
