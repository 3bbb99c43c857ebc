"""A cut-out survives the way through its shard members."""

from __future__ import annotations

import io
import json
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from shards.cutout import Cutout, decode_cutout, encode_cutout
from tests.support.refused import refused


def example() -> Cutout:
    rows, columns = np.mgrid[0:40, 0:30].astype(np.uint8)
    image = np.stack([rows * 6, columns * 8, np.full_like(rows, 60)], axis=-1)
    mask = np.where((rows - 20.0) ** 2 + (columns - 15.0) ** 2 < 150, 255, 0).astype(np.uint8)
    mask[20, :5] = [10, 20, 30, 40, 50]  # a soft edge
    return Cutout("000000000009-17", image, mask, "zebra", (480, 640))


def test_mask_and_meta_come_back_exactly_and_the_picture_nearly() -> None:
    cutout = example()
    members = encode_cutout(cutout)
    again = decode_cutout(cutout.key, members)
    np.testing.assert_array_equal(again.mask, cutout.mask)
    assert (again.key, again.category, again.source_size) == ("000000000009-17", "zebra", (480, 640))
    error = np.abs(again.image.astype(int) - cutout.image)
    assert error.mean() < 2  # a JPEG of a smooth picture; swapped channels would differ by 50


def test_the_members_are_those_of_the_documented_format() -> None:
    members = encode_cutout(example())
    assert sorted(members) == ["mask.png", "meta.json", "object.jpg"]
    assert json.loads(members["meta.json"]) == {"category": "zebra", "source_size": [480, 640]}
    assert cv2.imdecode(np.frombuffer(members["mask.png"], np.uint8), cv2.IMREAD_UNCHANGED).shape == (40, 30)


def as_png(mode: str) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (30, 40)).save(file, "PNG")
    return file.getvalue()


BOMB = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s2I5B", 13, b"IHDR", 100_000, 100_000, 8, 0, 0, 0, 0)
PICTURES = ("object.jpg", "mask.png")


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        ("mask.png", None, r"has no mask\.png; its members are meta\.json, object\.jpg"),
        *[
            (suffix, BOMB, f"{suffix}: says that it has 100000 x 100000 pixels; at most")
            for suffix in PICTURES
        ],
        *[
            (suffix, bad, f"{suffix}: {'is no PNG' if suffix == 'mask.png' else 'cannot be decoded'}")
            for suffix in PICTURES
            for bad in (b"", b"no picture")
        ],
        (
            "mask.png",
            cv2.imencode(".png", np.zeros((7, 5), np.uint8))[1].tobytes(),
            r"picture is \(40, 30\) but mask is \(7, 5\) \(height, width\)",
        ),
        ("mask.png", as_png("P"), "mask.png: is palette of 1 bits; grey of 1 bits or"),
        ("mask.png", as_png("RGB"), "mask.png: is colour of 8 bits; grey of 1 bits or"),
        ("object.jpg", b"BM" + bytes(60), r"object\.jpg: cannot be decoded .*; PNG, JPEG and WebP are read"),
        ("meta.json", b"{", "meta.json: is no valid JSON"),
        ("meta.json", b"{}", "meta.json: has no field 'category'"),
        ("meta.json", b"[]", "meta.json: is a list"),
        ("meta.json", b'{"category": "zebra", "source_size": [1]}', r"meta.json: source_size is \[1\]"),
        ("meta.json", b'{"category": "a", "source_size": [1e999, 1]}', r"meta.json: source_size\[0\] is inf"),
    ],
)
def test_an_unfit_member_is_named(suffix: str, content: bytes | None, message: str) -> None:
    members = {**encode_cutout(example()), suffix: content}
    with refused(f"cut-out k: {message}"):
        decode_cutout("k", {name: held for name, held in members.items() if held is not None})
