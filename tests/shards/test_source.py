"""Folders and zip files look the same, and a bad one is named."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest

from shards import source as source_module
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
