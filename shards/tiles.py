"""A lossless picture format that decodes only what a crop shows, several times faster than PNG.

The picture is cut into tiles of 128 x 256 pixels. In each tile the value of the pixel above is subtracted
(modulo 256) from every value but those of the tile's first row, and the result is one zstd frame. Undoing
that is one vectorised addition per row, where PNG runs through the bytes one by one. The file:

    8 bytes   b"EATILES1"
    4 x u32   height, width, tile height, tile width, in pixels; all numbers are little-endian
    n x u32   size in bytes of each tile's frame, row by row: ceil(height / tile height) rows of them
    n frames  each (rows, columns, 3) bytes, R G B; tiles at the lower and right border are smaller
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from shards.errors import InputError

try:
    import zstandard
except ImportError:  # an extra; whoever meets such a file is told
    zstandard: Any = None  # type: ignore[no-redef]

MAGIC = b"EATILES1"
TILE = (128, 256)
"""Rows and columns of a tile: 96 kB decompressed, so that it stays in the processor's cache."""
LEVEL = 1
"""Level of zstd; 3 saves 3 % of the size and costs 20 % of the time."""
_HEADER = struct.Struct("<8s4I")


def require_zstandard(setting: str) -> None:
    """Check that the library is installed."""
    if zstandard is None:
        raise InputError(f"{setting}: tiles need the package zstandard; install eomt-anomaly[tiles]")


def zstd_version() -> str:
    """Return the version of the library that decides the bytes of `encode_tiles`."""
    return ".".join(map(str, zstandard.ZSTD_VERSION))


def encode_tiles(picture: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Encode an sRGB picture; equal pixels give equal bytes with the same version of zstd."""
    height, width = picture.shape[:2]
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    frames = []
    for top in range(0, height, TILE[0]):
        for left in range(0, width, TILE[1]):
            tile = picture[top : top + TILE[0], left : left + TILE[1]].copy()
            tile[1:] -= picture[top : top + TILE[0], left : left + TILE[1]][:-1]
            frames.append(compressor.compress(tile.tobytes()))
    sizes = struct.pack(f"<{len(frames)}I", *map(len, frames))
    return _HEADER.pack(MAGIC, height, width, *TILE) + sizes + b"".join(frames)


def tiles_size(content: bytes) -> tuple[int, int] | None:
    """Return (height, width) from the header; None: these are no tiles."""
    if len(content) < _HEADER.size or content[:8] != MAGIC:
        return None
    _, height, width, _, _ = _HEADER.unpack_from(content)
    return (height, width) if height and width else None


def decode_tiles(content: bytes, rows: slice, columns: slice) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a part of a picture, touching only the tiles that it meets.

    Raises:
        ValueError: the content is damaged. Its size was checked by the caller, so that no header can ask
            for more memory than the picture has.
    """
    _, height, width, tile_height, tile_width = _HEADER.unpack_from(content)
    if not (0 < tile_height <= height + TILE[0] and 0 < tile_width <= 2**16):
        raise ValueError(f"tiles of {tile_height} x {tile_width} pixels")
    across = -(-width // tile_width)
    bounds, view = _frame_bounds(content, -(-height // tile_height) * across), memoryview(content)
    top, left = rows.start // tile_height * tile_height, columns.start // tile_width * tile_width
    bottom = min(height, -(-rows.stop // tile_height) * tile_height)
    right = min(width, -(-columns.stop // tile_width) * tile_width)
    picture = np.empty((bottom - top, right - left, 3), np.uint8)
    decompressor = zstandard.ZstdDecompressor()  # making one costs as much as a tile
    for y in range(top, bottom, tile_height):
        for x in range(left, right, tile_width):
            part = picture[y - top : y - top + tile_height, x - left : x - left + tile_width]
            number = y // tile_height * across + x // tile_width
            frame = view[bounds[number] : bounds[number + 1]]
            part[:] = _decompress(decompressor, frame, part.size).reshape(part.shape)
    _add_rows_above(picture.reshape(len(picture), -1), tile_height)
    return picture[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def _frame_bounds(content: bytes, count: int) -> Int64[np.ndarray, " N"]:
    """Return where the compressed tiles begin, and where the last one ends."""
    if len(content) < _HEADER.size + 4 * count:
        raise ValueError(f"{len(content)} bytes are too few for {count} tiles")
    sizes = np.frombuffer(content, "<u4", count, _HEADER.size).astype(np.int64)
    bounds = np.cumsum(np.concatenate([[_HEADER.size + 4 * count], sizes]))
    if bounds[-1] != len(content):
        raise ValueError(f"{len(content)} bytes, the tiles end at {bounds[-1]}")
    return bounds


def _decompress(decompressor: Any, frame: memoryview, size: int) -> UInt8[np.ndarray, " N"]:
    try:
        if zstandard.frame_content_size(frame) != size:  # asked before any memory is taken
            raise ValueError(f"a tile of {zstandard.frame_content_size(frame)} bytes, {size} are needed")
        return np.frombuffer(decompressor.decompress(frame), np.uint8)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None


def _add_rows_above(picture: UInt8[np.ndarray, "h n"], tile_height: int) -> None:
    """Undo the differences in place, in all rows of tiles at once."""
    whole = len(picture) // tile_height * tile_height
    for part in (picture[:whole].reshape(-1, tile_height, picture.shape[1]), picture[whole:][None]):
        for i in range(1, part.shape[1]):
            np.add(part[:, i], part[:, i - 1], out=part[:, i])
