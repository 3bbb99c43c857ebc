from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from shards.picture import (
    COLOUR,
    GREY,
    GREY16,
    MAX_PIXELS,
    Picture,
    decode_gray,
    decode_numbers,
    decode_picture,
    picture_size,
)
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
    with refused(rf"x: cannot be decoded as a picture \({len(content)} bytes\); PNG, JPEG and WebP are read"):
        Picture(content, "x")


def bomb(side: int, color: int, depth: int = 8, **extra: bytes) -> bytes:
    """A PNG whose header promises side x side pixels; its data are zeros, compressed a thousandfold."""
    header = struct.pack(">2I5B", side, side, depth, color, 0, 0, 0)
    chunks = [(b"IHDR", header), *((name.encode(), data) for name, data in extra.items())]
    chunks += [(b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_picture_that_would_fill_the_memory_is_refused_by_its_header() -> None:
    assert MAX_PIXELS < 60_000**2
    message = "x: says that it has 60000 x 60000 pixels; at most 67,108,864 are decoded"
    with refused(message):
        Picture(bomb(60_000, 2), "x")
    with refused(message):
        decode_gray(bomb(60_000, 0), "x")
    with refused(message):
        Picture(MAGIC + struct.pack("<4I", 60_000, 60_000, 128, 256), "x")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95], ids=["empty", "half", "almost whole"])
def test_a_truncated_picture_is_an_error_not_a_grey_half(kind: str, share: float) -> None:
    content = encode(kind, (60, 80))
    with refused(r"a/x: cannot be decoded as a picture \(\d+ bytes\)"):
        decode_picture(content[: int(share * len(content))], "a/x")


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_pictures_of_any_colour_space_become_colour(mode: str) -> None:
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    picture = Image.fromarray(np.stack(np.broadcast_arrays(ramp, ramp[::-1, None], np.uint8(90)), axis=-1))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # rotate by 90 degrees, which is ignored
    picture.convert(mode).save(file, "JPEG", quality=100, subsampling=0, exif=exif)
    expected = np.asarray(Image.open(file).convert("RGB"))
    ours = Picture(file.getvalue(), "x.jpg").decode()
    # Two decoders and two roundings of the colour conversion; a swapped or inverted channel differs by 100.
    np.testing.assert_allclose(ours.astype(int), expected.astype(int), atol=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *[
            (bomb(8, 0, bits), f"is grey of {bits} bits; grey of 8 bits or colour of 8")
            for bits in (1, 2, 4, 16)
        ],
        (bomb(8, 3, PLTE=bytes(range(9))), "is palette of 8 bits; grey of 8 bits or"),
        (bomb(8, 3, 2, PLTE=bytes(12)), "is palette of 2 bits; grey of 8 bits or"),
        (bomb(8, 4), "is grey with alpha of 8 bits; grey of 8 bits or"),
        (bomb(8, 9), "is colour type 9 of 8 bits; grey of 8 bits or"),
        (bomb(8, 2, tRNS=bytes(6)), "has a transparent colour; grey of 8 bits or"),
        (bomb(8, 0, gAMA=bytes(4), tRNS=bytes(2)), "has a transparent colour; grey of 8 bits or"),
        (bomb(8, 0, acTL=bytes(8)), "has several frames; grey of 8 bits or"),
        (encode("JPEG", (8, 8)), r"is no PNG file \(\d+ bytes\)"),
        (encode("BMP", (8, 8)), r"is no PNG file \(\d+ bytes\)"),
    ],
)
def test_a_picture_whose_numbers_a_decoder_would_change_is_refused(content: bytes, message: str) -> None:
    with refused(f"x: {message}"):
        decode_numbers(content, "x", (GREY, COLOUR))


def test_numbers_of_16_bits_and_beside_notes_of_the_camera_are_exact() -> None:
    label = np.random.default_rng(0).integers(0, 2**16, (20, 30), np.uint16)
    np.testing.assert_array_equal(
        decode_numbers(cv2.imencode(".png", label)[1].tobytes(), "x", (GREY16,)), label
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    file, small = io.BytesIO(), label.astype(np.uint8)
    Image.fromarray(small).save(file, "PNG", exif=exif, icc_profile=b"x" * 128)
    np.testing.assert_array_equal(decode_gray(file.getvalue(), "x"), small)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "PPM", "JPEG2000", "TGA"])
def test_a_kind_whose_size_we_cannot_tell_is_never_decoded(kind: str) -> None:
    """OpenCV would decode most of these, and a kilobyte of them can promise gigabytes."""
    with refused(r"x: cannot be decoded as a picture \(\d+ bytes\); PNG, JPEG and WebP are read"):
        decode_picture(encode(kind, (9, 9)), "x")
    hidden = bytearray(bomb(60_000, 0))
    hidden[12:16] = b"junk"  # in front of the true header
    with refused("x: cannot be decoded as a picture"):
        decode_picture(bytes(hidden), "x")
