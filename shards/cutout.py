"""A cut-out object: what is pasted onto a scene, in memory and as the members of a shard."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from shards.errors import InputError
from shards.files import from_json, to_json
from shards.picture import COLOR, OPACITIES, decode_numbers, decode_picture, require_sane_size

OBJECT_SUFFIX = "object.jpg"
MASK_SUFFIX = "mask.png"
META_SUFFIX = "meta.json"
CUTOUT_SUFFIXES = (OBJECT_SUFFIX, MASK_SUFFIX, META_SUFFIX)


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


def encode_cutout(cutout: Cutout) -> dict[str, bytes]:
    """Return the members of a cut-out's shard sample, by suffix.

    The mask is a PNG, because JPEG would change its values; of one bit where there is no soft edge, which
    decodes faster. The picture is a JPEG of quality 95.
    """
    bgr = cv2.cvtColor(cutout.image, cv2.COLOR_RGB2BGR)
    _, picture = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])
    is_soft = cv2.countNonZero(cv2.inRange(cutout.mask, (1,), (254,))) > 0
    _, mask = cv2.imencode(".png", cutout.mask, [] if is_soft else [cv2.IMWRITE_PNG_BILEVEL, 1])
    meta = to_json(_Meta(cutout.category, cutout.source_size), indent=None, sort_keys=True).rstrip()
    contents = (picture.tobytes(), mask.tobytes(), meta.encode())
    return dict(zip(CUTOUT_SUFFIXES, contents, strict=True))


_COLOR_FLAGS = {1: COLOR, 2: COLOR | cv2.IMREAD_REDUCED_COLOR_2}
_COLOR_FLAGS |= {4: COLOR | cv2.IMREAD_REDUCED_COLOR_4, 8: COLOR | cv2.IMREAD_REDUCED_COLOR_8}
_OPACITY_FLAGS = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
SHRINKS = tuple(_COLOR_FLAGS)
"""Factors by which a picture can be smaller than its file says; a JPEG decodes faster then."""


def decode_cutout(key: str, members: Mapping[str, bytes], *, shrink: int = 1) -> Cutout:
    """Rebuild a cut-out from its members by suffix, at 1 / `shrink` of its height and width, rounded up.

    `shrink` is one of `SHRINKS`.
    """
    if missing := [suffix for suffix in CUTOUT_SUFFIXES if suffix not in members]:
        held = ", ".join(sorted(members))
        raise InputError(f"cut-out {key}: has no {', '.join(missing)}; its members are {held}")
    picture = decode_picture(members[OBJECT_SUFFIX], f"cut-out {key}: {OBJECT_SUFFIX}", _COLOR_FLAGS[shrink])
    where = f"cut-out {key}: {MASK_SUFFIX}"
    mask = decode_numbers(members[MASK_SUFFIX], where, OPACITIES, _OPACITY_FLAGS)
    if picture.shape[:2] != tuple(-(-side // shrink) for side in mask.shape):
        size = tuple(side * shrink for side in picture.shape[:2])
        raise InputError(f"cut-out {key}: picture is {size} but mask is {mask.shape} (height, width)")
    if shrink > 1:
        mask = cv2.resize(mask, (picture.shape[1], picture.shape[0]), interpolation=cv2.INTER_AREA)
    category, source_size = decode_description(key, members[META_SUFFIX])
    image = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, dst=picture)
    return Cutout(key, image, mask, category, source_size)


def shrink_cutout(cutout: Cutout, shrink: int) -> Cutout:
    """Return a cut-out at a fraction of its height and width, rounded up, by averaging."""
    size = (-(-cutout.mask.shape[1] // shrink), -(-cutout.mask.shape[0] // shrink))
    image = cv2.resize(cutout.image, size, interpolation=cv2.INTER_AREA)
    mask = cv2.resize(cutout.mask, size, interpolation=cv2.INTER_AREA)
    return dataclasses.replace(cutout, image=image, mask=mask)


def crop_to_mask(
    image: UInt8[np.ndarray, "H W 3"], mask: UInt8[np.ndarray, "H W"]
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]] | None:
    """Crop both to the bounding box of what is not 0 in the mask; None where everything is."""
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        return None
    box = (slice(top, top + height), slice(left, left + width))
    return np.ascontiguousarray(image[box]), np.ascontiguousarray(mask[box])


@dataclass(frozen=True)
class _Meta:
    category: str
    source_size: tuple[int, int]


def decode_description(key: str, content: bytes) -> tuple[str, tuple[int, int]]:
    """Return category and source size (height, width) of a cut-out, without decoding a picture."""
    where = f"cut-out {key}: {META_SUFFIX}"
    held = from_json(dict[str, Any], content, where)
    meta = from_json(
        _Meta, {f.name: held[f.name] for f in dataclasses.fields(_Meta) if f.name in held}, where
    )
    if min(meta.source_size) < 1:
        raise InputError(f"{where}: source_size is {list(meta.source_size)}; 1 or more are needed")
    require_sane_size(meta.source_size, where)
    return meta.category, meta.source_size
