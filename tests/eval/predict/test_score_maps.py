"""Stored score maps are read exactly, and what is none is one line before anything of it is read."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest

from eval.predict.score_maps import read_map
from eval.submissions.smiyc import SMIYC
from tests.support.refused import refused

RAMP = np.arange(48, dtype=np.float32).reshape(6, 8)


@pytest.mark.parametrize(
    "options", [{}, {"compression": 9, "shuffle": True, "fletcher32": True}, {"chunks": (2, 8)}]
)
@pytest.mark.parametrize("name", ["value", "scores"])
def test_an_hdf5_file_is_read(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset(name, data=RAMP, **options)
    np.testing.assert_array_equal(read_map(tmp_path / "a.hdf5"), RAMP)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_an_npy_file_is_read(tmp_path: Path, kind: type[np.floating]) -> None:
    np.save(tmp_path / "a.npy", RAMP.astype(kind))
    np.testing.assert_array_equal(read_map(tmp_path / "a.npy"), RAMP)


def external(file: h5py.File) -> None:
    file.create_dataset("value", (6, 8), "f4", external=[("/etc/passwd", 0, 192)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((6, 8), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "value", (6, 8))
    file.create_virtual_dataset("value", layout)


def link_to_a_file(file: h5py.File) -> None:
    file["value"] = h5py.ExternalLink("/etc/passwd", "value")


def link(file: h5py.File) -> None:
    file["a"] = RAMP
    file["value"] = h5py.SoftLink("/a")


def dangling(file: h5py.File) -> None:
    file["value"] = h5py.SoftLink("/gone")


def group(file: h5py.File) -> None:
    file.create_group("value")


def large_chunk(file: h5py.File) -> None:
    file.create_dataset("value", (6, 8), "f4", chunks=(16_000, 16_000), maxshape=(None, None))


def many_chunks(file: h5py.File) -> None:
    file.create_dataset("value", data=np.ones((200, 200), "f4"), chunks=(1, 1))


def bomb(file: h5py.File) -> None:
    values = file.create_dataset("value", (6, 8), "f4", chunks=(6, 8), compression=9)
    values.id.write_direct_chunk((0, 0), zlib.compress(bytes(10_000_000)))


def huge(file: h5py.File) -> None:
    file.create_dataset("value", (2**31, 2**33), "f4", chunks=(8, 8))


HDF5 = [
    (external, "value lies in other files; a map holds its own numbers"),
    (virtual, "value lies in other files"),
    (link_to_a_file, "value is a link or a group; a dataset is needed"),
    (link, "value is a link or a group"),
    (dangling, "value is a link or a group"),
    (group, "value is a link or a group"),
    (
        large_chunk,
        r"value has chunks of \(16000, 16000\); at most 10,000, none larger than the map, are read",
    ),
    (many_chunks, r"value has chunks of \(1, 1\); at most 10,000"),
    (bomb, "value unpacks to more than its shape says"),
    (huge, r"value has shape \(2147483648, 8589934592\); at most 67,108,864 pixels are read"),
    (lambda file: file.create_dataset("value", data=RAMP, compression="lzf"), "filter 32000; gzip, shuffle,"),
    (lambda file: file.create_dataset("value", (0, 8), "f4"), r"shape \(0, 8\); expected floating-point"),
    (
        lambda file: file.create_dataset("value", data=h5py.Empty("f4")),
        r"shape \(\); expected floating-point",
    ),
    (lambda file: file.create_dataset("value", data=RAMP.astype(int)), "is int64 of shape"),
    (lambda file: file.create_dataset("value", (6, 8), h5py.string_dtype()), "is object of shape"),
    (lambda file: None, "holds nothing; expected the dataset value"),
    (lambda file: file.update({"a": RAMP, "b": RAMP}), "holds a, b; expected the dataset value"),
]


@pytest.mark.parametrize(("write", "text"), HDF5)
def test_an_hdf5_file_that_is_no_map_is_refused(
    tmp_path: Path, write: Callable[[h5py.File], None], text: str
) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        write(file)
    with refused(rf"a\.hdf5: .*{text}"):
        read_map(tmp_path / "a.hdf5")
    with refused(r"^in a package: "):
        SMIYC.decode([(tmp_path / "a.hdf5").read_bytes()], ["in a package"])


def npy_head(shape: str, kind: str = "<f4") -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


def npz() -> bytes:
    content = io.BytesIO()
    np.savez(content, a=RAMP)
    return content.getvalue()


class Fires:
    """Ends the test's process where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.exit, ("code of a pickle ran",)


FILES = [
    ("a.npy", npy_head("(1000000, 1000000)") + bytes(192), "cannot be read as an array"),
    ("a.npy", npy_head("(9223372036854775807, 4)") + bytes(192), "cannot be read as an array"),
    ("a.npy", npy_head("(-6, -8)") + bytes(192), "cannot be read as an array|expected floating-point"),
    ("a.npy", npy_head("(0, 8)"), r"float32 of shape \(0, 8\); expected"),
    ("a.npy", npy_head("(" * 5000) + bytes(192), "cannot be read as an array"),
    ("a.npy", npy_head("(6, 8)", "|O") + pickle.dumps(Fires()), "cannot be read as an array"),
    ("a.npy", pickle.dumps(Fires()), "cannot be read as an array"),
    ("a.npy", npy_head("(6, 8)", "<i4") + bytes(192), r"int32 of shape \(6, 8\); expected floating-point"),
    ("a.npy", npy_head("(48,)") + bytes(192), r"float32 of shape \(48,\); expected floating-point"),
    ("a.npy", npy_head("(6, 8)") + bytes(191), "cannot be read as an array"),
    ("a.npy", npz(), "is an npz file; a single array is needed, as np.save writes it"),
    ("a.npy", b"", "cannot be read as an array"),
    ("a.hdf5", b"no", "cannot be read as HDF5"),
    ("a.h5", b"", "cannot be read as HDF5"),
    ("a.png", cv2.imencode(".png", np.zeros((6, 8), np.uint8))[1].tobytes(), "is grey of 8 bits; grey of 16"),
    (
        "a.png",
        cv2.imencode(".png", np.zeros((6, 8, 3), np.uint16))[1].tobytes(),
        "is colour of 16 bits;",
    ),
    ("a.png", cv2.imencode(".webp", np.zeros((6, 8, 3), np.uint8))[1].tobytes(), "is no PNG file"),
]


@pytest.mark.parametrize(("name", "content", "text"), FILES)
def test_a_file_that_is_no_map_is_refused(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(rf"{name}: ({text})") as error:
        read_map(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_file_of_more_bytes_than_any_map_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.hdf5").open("wb") as file:
        file.truncate(2**40)
    with refused("is no file of at most 537,919,488 bytes"):
        read_map(tmp_path / "a.hdf5")
    (tmp_path / "a.npy").mkdir()
    with refused("is no file of"):
        read_map(tmp_path / "a.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_map_is_finite(tmp_path: Path, value: float) -> None:
    np.save(tmp_path / "a.npy", np.where(RAMP == 3, value, RAMP))
    with refused("holds (NaN|infinity)"):
        read_map(tmp_path / "a.npy")
