from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from shards.picture import MAX_PIXELS, Picture, decode_gray, picture_size
from shards.tiles import MAGIC
from tests.support.refused import refused


def encode(kind: str, size: tuple[int, int], **options: object) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(noise).save(file, kind, **options)
    return file.getvalue()


KINDS = {
    "png": {"kind": "PNG"},
    "jpeg": {"kind": "JPEG"},
    "progressive": {"kind": "JPEG", "progressive": True},
    "jpeg with comment": {"kind": "JPEG", "comment": b"x" * 700},
    "webp": {"kind": "WEBP"},
    "lossless webp": {"kind": "WEBP", "lossless": True},
    "webp with profile": {"kind": "WEBP", "icc_profile": b"x" * 128},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("size", [(3, 5), (400, 300)], ids=str)
def test_headers_say_the_size_that_pillow_reads(options: dict[str, object], size: tuple[int, int]) -> None:
    content = encode(size=size, **options)  # type: ignore[arg-type]
    width, height = Image.open(io.BytesIO(content)).size
    assert picture_size(content) == (height, width) == size
    picture = Picture(content, "x")
    assert picture.decode().shape == (*size, 3)
    np.testing.assert_array_equal(picture.decode(slice(1, 3), slice(2, 5)), picture.decode()[1:3, 2:5])


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF1234WEBP", b"GIF89a", MAGIC]
)
def test_what_is_no_picture_has_no_size(content: bytes) -> None:
    assert picture_size(content) is None
    with refused(rf"x \({len(content)} bytes\) cannot be decoded"):
        Picture(content, "x")


def bomb(side: int, color: int) -> bytes:
    """A PNG whose header promises side x side pixels; its data are zeros, compressed a thousandfold."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">2I5B", side, side, 8, color, 0, 0, 0)
    data = zlib.compress(bytes(10**6))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_picture_that_would_fill_the_memory_is_refused_by_its_header() -> None:
    assert MAX_PIXELS < 60_000**2
    message = "x says that it has 60000 x 60000 pixels; at most 67,108,864 are decoded"
    with refused(message):
        Picture(bomb(60_000, 2), "x")
    with refused(message):
        decode_gray(bomb(60_000, 0), "x")
    with refused(message):
        Picture(MAGIC + struct.pack("<4I", 60_000, 60_000, 128, 256), "x")


def test_a_truncated_picture_is_an_error_not_a_grey_half() -> None:
    content = encode("JPEG", (200, 200))
    with refused(r"x \(\d+ bytes\) cannot be decoded"):
        Picture(content[: len(content) // 2], "x").decode()


def test_the_orientation_of_a_camera_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert Picture(encode("JPEG", (20, 40), exif=exif), "x").decode().shape == (20, 40, 3)


def test_gray_is_exact() -> None:
    label = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    np.testing.assert_array_equal(decode_gray(cv2.imencode(".png", label)[1].tobytes(), "x"), label)
