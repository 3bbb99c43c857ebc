"""Encoded pictures: their size without decoding, and the part that is needed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection

import cv2
import numpy as np
from jaxtyping import UInt8

from shards.errors import InputError
from shards.tiles import decode_tiles, require_zstandard, tiles_size

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our errors say the same in one line
MAX_PIXELS = 2**26
"""64 million, 32 times a Cityscapes frame. A header that promises more is refused before memory is taken."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOR = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
"""OpenCV's flags for 8 bits of B, G and R. The EXIF orientation is ignored: labels are drawn on the stored
pixels."""
GREY, COLOUR, GREY_ALPHA, COLOUR_ALPHA = (8, 0), (8, 2), (8, 4), (8, 6)
"""Kinds of PNG: bits per channel and colour type."""
GREY16 = (16, 0)
PALETTE = (8, 3)
"""Its numbers are those of the palette's entries, whatever colours these have."""
OPACITIES = ((1, 0), (2, 0), (4, 0), GREY)
"""Kinds whose numbers may be scaled to 0..255: how much of a pixel an object covers."""
_COLOR_TYPES = {0: "grey", 2: "colour", 3: "palette", 4: "grey with alpha", 6: "colour with alpha"}
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG segments that hold height and width."""


class Picture:
    """One encoded sRGB picture whose size is known and which has not been decoded yet."""

    def __init__(self, content: bytes, where: str) -> None:
        """Read the header of a PNG, JPEG or WebP file, or of tiles; `where` says in messages what it is."""
        self._content, self._where = content, where
        self.shape = read_size(content, where)
        """(height, width) in pixels."""

    def decode(self, rows: slice | None = None, columns: slice | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """Return a part of the picture, R G B; all of it by default. Tiles outside of it are not touched."""
        rows, columns = rows or slice(0, self.shape[0]), columns or slice(0, self.shape[1])
        if tiles_size(self._content) is not None:
            require_zstandard(self._where)
            try:
                return decode_tiles(self._content, rows, columns)
            except ValueError as error:
                raise _unreadable(self._content, self._where, f": {error}") from None
        picture = decode_picture(self._content, self._where)
        if picture.shape[:2] != self.shape:
            raise _unreadable(self._content, self._where)
        part = picture[rows, columns]
        return cv2.cvtColor(part, cv2.COLOR_BGR2RGB, dst=part if part.flags.c_contiguous else None)


def decode_picture(content: bytes, where: str, flags: int = COLOR) -> np.ndarray:
    """Decode a PNG, JPEG or WebP file by OpenCV's `flags`; any other kind, and a bomb, is refused unread.

    Grey and CMYK pictures become colour with the default. `where` opens each message.
    """
    read_size(content, where)
    if (picture := cv2.imdecode(np.frombuffer(content, np.uint8), flags)) is None:
        raise _unreadable(content, where)
    return picture


def decode_gray(content: bytes, where: str) -> UInt8[np.ndarray, "H W"]:
    """Decode a PNG of one 8-bit channel, exactly."""
    return decode_numbers(content, where, (GREY,))


def decode_numbers(
    content: bytes, where: str, kinds: Collection[tuple[int, int]], flags: int = cv2.IMREAD_UNCHANGED
) -> np.ndarray:
    """Decode a PNG whose pixels are numbers (a label, a mask, a map), as the file stores them."""
    if PALETTE in kinds and _kind(content) == PALETTE:
        content = _without_palette(content)
    require_kind(content, where, kinds)
    return decode_picture(content, where, flags)


def _kind(content: bytes) -> tuple[int, int]:
    return (content[24], content[25]) if content.startswith(PNG_SIGNATURE) and len(content) >= 26 else (0, 0)


def _without_palette(content: bytes) -> bytes:
    """Return a PNG with a palette as one of a grey channel, which holds the same numbers."""
    parts, place = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while place + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, place)
        data = content[place + 8 : place + 8 + length]
        if name == b"IHDR":
            data = data[:9] + bytes([GREY[1]]) + data[10:]
        if name in (b"IHDR", b"IDAT", b"IEND", b"acTL"):
            parts += [struct.pack(">I4s", len(data), name), data, struct.pack(">I", zlib.crc32(name + data))]
        place += 12 + length
    return b"".join(parts)


def require_kind(content: bytes, where: str, kinds: Collection[tuple[int, int]]) -> None:
    """Check by its first bytes that a PNG is of one of `kinds`, and that decoding changes no number of it.

    Decoders scale 1, 2 and 4 bits to 8, and turn the numbers of a palette into its colours.
    """
    if not (kind := _kind(content))[0]:
        raise InputError(f"{where}: is no PNG file ({len(content)} bytes)")
    needed = " or ".join(map(_describe, kinds))
    if kind not in kinds:
        raise InputError(f"{where}: is {_describe(kind)}; {needed} is needed, in which numbers stay exact")
    place = 8
    while place + 8 <= len(content) and (name := content[place + 4 : place + 8]) != b"IDAT":
        if name in (b"tRNS", b"acTL"):
            extra = "a transparent colour" if name == b"tRNS" else "several frames"
            raise InputError(f"{where}: has {extra}; {needed} without is needed")
        place += 12 + struct.unpack_from(">I", content, place)[0]


def _describe(kind: tuple[int, int]) -> str:
    return f"{_COLOR_TYPES.get(kind[1], f'colour type {kind[1]}')} of {kind[0]} bits"


def require_sane_size(size: tuple[int, int], where: str) -> None:
    """Check that decoding takes a bounded amount of memory."""
    if size[0] * size[1] > MAX_PIXELS:
        promised = f"{size[1]} x {size[0]} pixels"
        raise InputError(f"{where}: says that it has {promised}; at most {MAX_PIXELS:,} are decoded")


def _unreadable(content: bytes, where: str, reason: str = "") -> InputError:
    return InputError(f"{where}: cannot be decoded as a picture ({len(content)} bytes){reason}")


def read_size(content: bytes, where: str) -> tuple[int, int]:
    """Return (height, width) as the header says; another kind and a bomb are refused."""
    if (size := picture_size(content)) is None:
        raise _unreadable(content, where, "; PNG, JPEG and WebP are read")
    require_sane_size(size, where)
    return size


def picture_size(content: bytes) -> tuple[int, int] | None:
    """Return (height, width) as the header of a PNG, JPEG or WebP file or of tiles says; None: it is none."""
    if content.startswith(PNG_SIGNATURE):
        is_whole = len(content) >= 24 and content[12:16] == b"IHDR"
        width, height = struct.unpack_from(">II", content, 16) if is_whole else (0, 0)
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
