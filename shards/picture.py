"""Encoded pictures: their size without decoding, and the part that is needed."""

from __future__ import annotations

import struct

import cv2
import numpy as np
from jaxtyping import UInt8

from shards.errors import InputError
from shards.tiles import decode_tiles, require_zstandard, tiles_size

MAX_PIXELS = 2**26
"""64 million, 32 times a Cityscapes frame. A header that promises more is refused before memory is taken."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG segments that hold height and width."""


class Picture:
    """One encoded sRGB picture whose size is known and which has not been decoded yet."""

    def __init__(self, content: bytes, where: str) -> None:
        """Read the header of a PNG, JPEG or WebP file, or of tiles; `where` says in messages what it is."""
        self._content, self._where = content, where
        if (size := picture_size(content)) is None:
            raise _undecodable(content, where)
        require_sane_size(size, where)
        self.shape: tuple[int, int] = size
        """(height, width) in pixels."""

    def decode(self, rows: slice | None = None, columns: slice | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """Return a part of the picture, R G B; all of it by default. Tiles outside of it are not touched."""
        rows, columns = rows or slice(0, self.shape[0]), columns or slice(0, self.shape[1])
        if tiles_size(self._content) is not None:
            require_zstandard(self._where)
            try:
                return decode_tiles(self._content, rows, columns)
            except ValueError as error:
                raise _undecodable(self._content, self._where, f": {error}") from None
        # The EXIF orientation is ignored: labels are drawn on the stored pixels.
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        picture = cv2.imdecode(np.frombuffer(self._content, np.uint8), flags)
        if picture is None or picture.shape[:2] != self.shape:
            raise _undecodable(self._content, self._where)
        part = picture[rows, columns]
        return cv2.cvtColor(part, cv2.COLOR_BGR2RGB, dst=part if part.flags.c_contiguous else None)


def decode_gray(content: bytes, where: str) -> UInt8[np.ndarray, "H W"]:
    """Decode a picture of one 8-bit channel, exactly."""
    if (label := decode_bounded(content, where, cv2.IMREAD_UNCHANGED)) is None:
        raise _undecodable(content, where)
    if label.ndim != 2 or label.dtype != np.uint8:
        raise InputError(f"{where} is {label.dtype} of shape {label.shape}; one channel of 8 bits is needed")
    return label


def decode_bounded(content: bytes, where: str, flags: int) -> np.ndarray | None:
    """Decode a picture by OpenCV's `flags`; None where it is broken or `picture_size` knows no such kind."""
    if (size := picture_size(content)) is None:
        return None
    require_sane_size(size, where)
    return cv2.imdecode(np.frombuffer(content, np.uint8), flags)


def require_sane_size(size: tuple[int, int], where: str) -> None:
    """Check that decoding takes a bounded amount of memory."""
    if size[0] * size[1] > MAX_PIXELS:
        promised = f"{size[1]} x {size[0]} pixels"
        raise InputError(f"{where} says that it has {promised}; at most {MAX_PIXELS:,} are decoded")


def _undecodable(content: bytes, where: str, reason: str = "") -> InputError:
    return InputError(f"{where} ({len(content)} bytes) cannot be decoded{reason}")


def picture_size(content: bytes) -> tuple[int, int] | None:
    """Return (height, width) as the header of a PNG, JPEG or WebP file or of tiles says; None: it is none."""
    if content.startswith(_PNG_SIGNATURE):
        width, height = struct.unpack_from(">II", content, 16) if len(content) >= 24 else (0, 0)
        return (height, width) if height and width else None
    if content.startswith(b"\xff\xd8"):
        return _jpeg_size(content)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _webp_size(content)
    return tiles_size(content)


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    place = 2
    while place + 9 <= len(content) and content[place] == 0xFF:
        if (marker := content[place + 1]) in _FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", content, place + 5)
            return (height, width) if height and width else None
        is_fill = marker == 0xFF
        place += 1 if is_fill else 2 + struct.unpack_from(">H", content, place + 2)[0]
    return None


def _webp_size(content: bytes) -> tuple[int, int] | None:
    if len(content) < 30:
        return None
    kind = content[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", content, 21)[0]
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8X":
        width, height = (int.from_bytes(content[i : i + 3], "little") + 1 for i in (24, 27))
        return height, width
    return None
