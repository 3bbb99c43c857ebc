"""Folders and zip files look the same, and a bad one is named."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from shards import source as source_module
from shards.picture import decode_picture
from shards.source import FolderSource, ZipSource, is_hidden, list_near, open_source
from tests.support.refused import refused

FILES = {
    "a/x.png": b"ax",
    "a/y.png": b"ay",
    "b/x.png": b"bx",
    "b/deep/x.png": b"deep",
    "a/._x.png": b"",
    "x.png": b"x",
}


def make_zip(path: Path, files: dict[str, bytes]) -> ZipSource:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return ZipSource(path)


def make_folder(path: Path, files: dict[str, bytes]) -> FolderSource:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return FolderSource(path)


@pytest.mark.parametrize("pattern", ["*", "*/*", "a/*.png", "*/x.png", "*/*/*", "c/*"])
def test_folder_and_zip_list_the_same_names(tmp_path: Path, pattern: str) -> None:
    folder = make_folder(tmp_path / "folder", FILES)
    archive = make_zip(tmp_path / "archive.zip", FILES)
    names = archive.match(pattern)
    assert [name for name in folder.match(pattern) if name in FILES] == names  # a folder also matches folders
    assert all(folder.read(name) == archive.read(name) == FILES[name] for name in names)
    assert archive.match("*/*.png") == ["a/x.png", "a/y.png", "b/x.png"]  # none hidden, none deeper


@pytest.mark.parametrize("name", ["/etc/x.png", "../x.png", "a/../../x.png", "a\\x.png"])
def test_a_zip_with_an_unsafe_name_is_refused(tmp_path: Path, name: str) -> None:
    archive = make_zip(tmp_path / "archive.zip", {name: b"evil", "a/x.png": b"good"})
    with refused("holds a member with the unsafe name .*; it is no official download"):
        archive.match("*/*")


def test_a_zip_source_travels_to_another_process_and_notices_another_file(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "archive.zip", {"a": b"1"})
    assert archive.read("a") == pickle.loads(pickle.dumps(archive)).read("a") == b"1"
    assert make_zip(tmp_path / "archive.zip", {"a": b"22"}).read("a") == b"22"


def test_a_path_that_is_no_source_is_named_with_its_option(tmp_path: Path) -> None:
    with refused(r"--images .*gone: does not exist; a folder or a zip file is needed"):
        open_source(tmp_path / "gone", "--images")
    (tmp_path / "x.zip").write_bytes(b"not a zip")
    with refused(r"--images .*x\.zip: is neither a folder nor a complete zip file"):
        open_source(tmp_path / "x.zip", "--images")


def test_a_pipe_and_a_device_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    for name in ("a.png", "b.png"):
        with refused(rf"{name}: cannot be read \(not a plain file\)"):
            FolderSource(tmp_path).read(name)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "x.zip", {"a.png": b"0123456789"})
    content = archive.path.read_bytes()
    archive.path.write_bytes(content[:-30])
    with refused(r"x\.zip: is no complete zip file"):
        archive.match("*")
    archive.path.write_bytes(content.replace(b"01234", b"xxxxx"))
    with refused(r"x\.zip:a\.png: cannot be read \(Bad CRC-32"):
        archive.read("a.png")
    with refused(r"folder/a/x\.png: cannot be read \(No such file or directory\)"):
        FolderSource(tmp_path / "folder").read("a/x.png")


def as_file(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_pictures_of_any_colour_space_become_colour(mode: str) -> None:
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    picture = Image.fromarray(np.stack(np.broadcast_arrays(ramp, ramp[::-1, None], np.uint8(90)), axis=-1))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees, which is ignored
    file = as_file(picture.convert(mode), "JPEG", quality=100, subsampling=0, exif=exif)
    expected = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    ours = decode_picture(file, "x.jpg")[..., ::-1]
    # Two decoders and two roundings of the colour conversion; a swapped or inverted channel differs by 100.
    np.testing.assert_allclose(ours.astype(int), expected.astype(int), atol=3)


@pytest.mark.parametrize("kind", [".png", ".jpg"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95], ids=["empty", "half", "almost whole"])
def test_a_truncated_picture_is_named(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    file = cv2.imencode(kind, noise)[1].tobytes()
    with refused(r"a/x: cannot be decoded as a picture \(\d+ bytes\)"):
        decode_picture(file[: int(share * len(file))], "a/x")
    bomb = bytearray(cv2.imencode(".png", noise)[1].tobytes())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    with refused("x: says that it has 60000 x 60000 pixels; at most 67,108,864 are decoded"):
        decode_picture(bytes(bomb), "x")


def test_a_member_that_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million zeros in a kilobyte; the limit is lowered so that the test stays small."""
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10**6))
    monkeypatch.setattr(source_module, "MAX_MEMBER_BYTES", 10**5)
    with refused(r"bomb\.zip:a\.png: says that it has 1,000,000 bytes; at most 100,000"):
        ZipSource(tmp_path / "bomb.zip").read("a.png")


def test_a_folder_that_holds_everything_in_a_zip_may_be_left_out(tmp_path: Path) -> None:
    names = ["top/gtFine/val/a.png", "top/gtFine/val/deep/b.png", "top/README", "__MACOSX/top/._README"]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(name, name)
    source = ZipSource(tmp_path / "x.zip")
    assert source.match("gtFine/val/*.png") == source.match("top/gtFine/val/*.png") == names[:1]
    assert source.find("gtFine/val/deep/b.png") == source.find("top/gtFine/val/deep/b.png") == names[1]
    assert source.find("val/a.png") is None
    assert list_near(source) == ["top/README"]


@pytest.mark.parametrize("name", ["../s", "/etc/passwd", "gone", "a" * 5000, "a\0b", ""])
def test_only_files_below_a_folder_are_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "s").write_text("secret")
    assert FolderSource(tmp_path / "f").find(name) is None


@pytest.mark.parametrize(
    "name", ["._a.png", "x/.DS_Store", "x/Thumbs.db", "__MACOSX/a.png", "x/@eaDir/a.png"]
)
def test_what_systems_leave_behind_is_hidden(name: str) -> None:
    assert is_hidden(name)
    assert not is_hidden(name.replace(".", "").replace("__", "").replace("@", "").replace("Th", "t"))
