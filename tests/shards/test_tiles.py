from __future__ import annotations

import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.picture import Picture
from shards.tiles import MAGIC, TILE, decode_tiles, encode_tiles, tiles_size
from tests.support.refused import refused

SIZES = [(1, 1), (5, 7), TILE, (TILE[0] + 1, TILE[1] + 1), (300, 600), (2 * TILE[0], 3)]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_pixel_survives(size: tuple[int, int]) -> None:
    picture = noise(*size)
    content = encode_tiles(picture)
    assert tiles_size(content) == size
    np.testing.assert_array_equal(decode_tiles(content, slice(0, size[0]), slice(0, size[1])), picture)


PICTURE = noise(300, 600)
CONTENT = encode_tiles(PICTURE)


@given(
    top=st.integers(0, 299), left=st.integers(0, 599), height=st.integers(1, 300), width=st.integers(1, 600)
)
@settings(max_examples=60, deadline=None)
def test_a_part_is_that_part_of_the_picture(top: int, left: int, height: int, width: int) -> None:
    rows, columns = slice(top, min(300, top + height)), slice(left, min(600, left + width))
    np.testing.assert_array_equal(decode_tiles(CONTENT, rows, columns), PICTURE[rows, columns])


def test_the_format_is_the_documented_one() -> None:
    """Decoded by hand, with zstd and a running sum."""
    picture = noise(130, 10)
    content = encode_tiles(picture)
    assert content[:8] == b"EATILES1"
    assert struct.unpack_from("<4I", content, 8) == (130, 10, 128, 256)
    sizes = struct.unpack_from("<2I", content, 24)
    assert 32 + sum(sizes) == len(content)
    frames = content[32 : 32 + sizes[0]], content[32 + sizes[0] :]
    for frame, part in zip(frames, (picture[:128], picture[128:]), strict=True):
        rows = np.frombuffer(zstandard.decompress(frame), np.uint8).reshape(-1, 10, 3)
        np.testing.assert_array_equal(rows.cumsum(axis=0) % 256, part)


def test_only_the_tiles_of_a_part_are_decoded() -> None:
    """What lies outside may be damaged; a crop does not notice, a whole picture does."""
    broken = bytearray(CONTENT)
    broken[-50:] = bytes(50)  # in the last tile
    rows, columns = slice(0, 100), slice(0, 200)
    np.testing.assert_array_equal(decode_tiles(bytes(broken), rows, columns), PICTURE[rows, columns])
    with refused(r"sample k: image\.tiles: cannot be decoded as a picture \(\d+ bytes\): "):
        Picture(bytes(broken), "sample k: image.tiles").decode()


CHANGED = bytearray(CONTENT)
CHANGED[len(CHANGED) // 2] ^= 1
BOMB = zstandard.ZstdCompressor().compress(bytes(2**28))  # 256 MiB of zeros in 8 kB
BOMB = MAGIC + struct.pack("<5I", 4, 4, 128, 256, len(BOMB)) + BOMB


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        *[(CONTENT[:keep], "") for keep in (0, 7, 20, 40, 1000, len(CONTENT) - 1)],
        (bytes(CHANGED), ""),
        (BOMB, ": a tile of 268435456 bytes, 48 are needed"),
        (MAGIC + struct.pack("<4I", 4, 4, 0, 256) + CONTENT[24:], ": tiles of 0 x 256 pixels"),
    ],
)
def test_damaged_tiles_are_named(content: bytes, reason: str) -> None:
    with refused(rf"x: cannot be decoded as a picture \(\d+ bytes\){reason}"):
        Picture(content, "x").decode()
