"""A cut-out object: what is pasted onto a scene, in memory and as the members of a shard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from shards.errors import InputError

OBJECT_SUFFIX = "object.jpg"
MASK_SUFFIX = "mask.png"
META_SUFFIX = "meta.json"


@dataclass(frozen=True)
class Cutout:
    """One object, cropped to its bounding box."""

    key: str
    """Unique in the bank: `{image id:012d}-{annotation id}` for COCO."""
    image: UInt8[np.ndarray, "h w 3"]
    """sRGB in [0, 255], channels in the order R, G, B; outside of the mask, the object's surroundings."""
    mask: UInt8[np.ndarray, "h w"]
    """0 is background, 255 is object; values between are a soft edge."""
    category: str
    """Name of the object's category, such as `zebra`."""
    source_size: tuple[int, int]
    """(height, width) in pixels of the photograph the object was cut from."""


def encode_cutout(cutout: Cutout, *, jpeg_quality: int = 95) -> dict[str, bytes]:
    """Return the members of a cut-out's shard sample, by suffix.

    The mask is a PNG, because JPEG would change its values; the picture is a JPEG of `jpeg_quality`.
    """
    bgr = np.ascontiguousarray(cutout.image[..., ::-1])
    _, picture = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality])
    _, mask = cv2.imencode(".png", cutout.mask)
    meta = {"category": cutout.category, "source_size": list(cutout.source_size)}
    return {
        OBJECT_SUFFIX: picture.tobytes(),
        MASK_SUFFIX: mask.tobytes(),
        META_SUFFIX: json.dumps(meta, sort_keys=True).encode(),
    }


def decode_cutout(key: str, members: Mapping[str, bytes]) -> Cutout:
    """Rebuild a cut-out from its members.

    Raises:
        InputError: a member is missing or broken, or the mask's size is not the picture's.
    """
    missing = [suffix for suffix in (OBJECT_SUFFIX, MASK_SUFFIX, META_SUFFIX) if suffix not in members]
    if missing:
        raise InputError(
            f"cut-out {key}: has no {', '.join(missing)}; its members are {', '.join(sorted(members))}"
        )
    picture = _decode(members[OBJECT_SUFFIX], cv2.IMREAD_COLOR)
    mask = _decode(members[MASK_SUFFIX], cv2.IMREAD_GRAYSCALE)
    if picture is None or mask is None:
        raise InputError(
            f"cut-out {key}: {OBJECT_SUFFIX if picture is None else MASK_SUFFIX} cannot be decoded"
        )
    if picture.shape[:2] != mask.shape:
        raise InputError(
            f"cut-out {key}: picture is {picture.shape[:2]} but mask is {mask.shape} (height, width)"
        )
    category, source_size = decode_description(key, members[META_SUFFIX])
    return Cutout(key, np.ascontiguousarray(picture[..., ::-1]), mask, category, source_size)


def decode_description(key: str, content: bytes) -> tuple[str, tuple[int, int]]:
    """Return category and source size (height, width) of a cut-out, without decoding a picture.

    Raises:
        InputError: the description is broken.
    """
    try:
        meta = json.loads(content)
        category, (height, width) = str(meta["category"]), meta["source_size"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"cut-out {key}: {META_SUFFIX} is not category and source_size: {error!r}") from None
    return category, (int(height), int(width))


def _decode(content: bytes, flags: int) -> UInt8[np.ndarray, "..."] | None:
    """Decode a picture; None where the bytes are none (OpenCV itself refuses an empty buffer)."""
    return cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
