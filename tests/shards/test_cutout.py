"""A cut-out survives the way through its shard members."""

from __future__ import annotations

import json
import struct

import cv2
import numpy as np
import pytest

from shards.cutout import Cutout, decode_cutout, encode_cutout
from shards.errors import InputError


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


@pytest.mark.parametrize("suffix", ["object.jpg", "mask.png"])
def test_a_member_that_promises_too_many_pixels_is_refused_before_it_is_decoded(suffix: str) -> None:
    header = struct.pack(">II5B", 100_000, 100_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    with pytest.raises(
        InputError, match=rf"cut-out 9-17: {suffix} says that it has 100000 x 100000 pixels; at most"
    ):
        decode_cutout("9-17", {**encode_cutout(example()), suffix: bomb})


def test_a_lower_quality_makes_a_smaller_file() -> None:
    small, large = (encode_cutout(example(), jpeg_quality=quality)["object.jpg"] for quality in (50, 95))
    assert len(small) < len(large)


def test_a_missing_member_is_named() -> None:
    members = encode_cutout(example())
    del members["mask.png"]
    with pytest.raises(
        InputError, match=r"cut-out k: has no mask\.png; its members are meta\.json, object\.jpg"
    ):
        decode_cutout("k", members)


@pytest.mark.parametrize("suffix", ["object.jpg", "mask.png"])
def test_a_member_that_is_no_picture_is_named(suffix: str) -> None:
    with pytest.raises(InputError, match=f"cut-out k: {suffix} cannot be decoded"):
        decode_cutout("k", {**encode_cutout(example()), suffix: b"no picture"})


def test_a_mask_of_another_size_is_refused() -> None:
    mask = cv2.imencode(".png", np.zeros((7, 5), np.uint8))[1].tobytes()
    with pytest.raises(InputError, match=r"picture is \(40, 30\) but mask is \(7, 5\) \(height, width\)"):
        decode_cutout("k", {**encode_cutout(example()), "mask.png": mask})


@pytest.mark.parametrize("meta", [b"{", b"{}", b"[]", b'{"category": "zebra", "source_size": [1]}'])
def test_a_broken_description_is_named(meta: bytes) -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    members = encode_cutout(Cutout("a", picture, picture[..., 0], "zebra", (4, 4)))
    with pytest.raises(InputError, match=r"cut-out a: meta.json is not category and source_size"):
        decode_cutout("a", {**members, "meta.json": meta})


@pytest.mark.parametrize("suffix", ["object.jpg", "mask.png"])
def test_an_empty_picture_is_named(suffix: str) -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    members = encode_cutout(Cutout("a", picture, picture[..., 0], "zebra", (4, 4)))
    with pytest.raises(InputError, match=f"cut-out a: {suffix} cannot be decoded"):
        decode_cutout("a", {**members, suffix: b""})
