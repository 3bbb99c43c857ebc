from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards import index as index_module
from shards.index import index_path, load_index, parse_index
from shards.reader import open_shards
from tests.support.refused import refused
from tests.support.tars import write_tar


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "s.tar", {"a.x": b"1" * 700, "a.y": b"22", "b.x": b"333"})


def refuse_to_build(path: Path) -> None:
    raise AssertionError(f"{path} was indexed anew")


def make_newer(path: Path, than: Path) -> None:
    time = than.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(time, time))


def test_an_index_is_written_beside_the_shard_and_then_trusted(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = load_index(shard)
    assert index_path(shard) == shard.parent / "s.tar.index.json"
    assert json.loads(index_path(shard).read_bytes())["num_bytes"] == shard.stat().st_size
    assert [path.name for path in sorted(shard.parent.iterdir())] == ["s.tar", "s.tar.index.json"]
    monkeypatch.setattr(index_module, "build_index", refuse_to_build)
    assert load_index(shard) == built


DAMAGES: dict[str, Callable[[Any], object]] = {
    "older": lambda content: content["samples"][0].__setitem__(0, "wrong"),
    "version": lambda content: content.update(version=99),
    "size": lambda content: content.update(num_bytes=content["num_bytes"] + 512),
    "outside": lambda content: content["samples"][1][1][0].__setitem__(1, 10**12),
    "infinite": lambda content: content["samples"][1][1][0].__setitem__(1, float("inf")),
    "empty": lambda content: content["samples"].clear(),
    "bare": lambda content: content["samples"][1][1].clear(),
    "twice": lambda content: content["samples"][1].__setitem__(0, "a"),
}
TEXTS = {"no JSON": "{", "a list": "[]", "deep": "[" * 100_000}


@pytest.mark.parametrize("damage", [*DAMAGES, *TEXTS])
def test_an_index_that_does_not_fit_is_built_anew(shard: Path, damage: str) -> None:
    right = load_index(shard)
    content = json.loads(index_path(shard).read_bytes())
    DAMAGES.get(damage, str)(content)
    index_path(shard).write_text(TEXTS.get(damage, json.dumps(content)))
    if damage == "older":
        make_newer(shard, than=index_path(shard))
    assert load_index(shard) == right
    assert parse_index(index_path(shard).read_bytes(), shard.stat().st_size) == right  # and written again


def test_a_shard_replaced_by_one_of_equal_size_is_indexed_anew(shard: Path, tmp_path: Path) -> None:
    load_index(shard)
    write_tar(shard, {"c.x": b"1" * 700, "c.y": b"22", "d.x": b"333"})
    make_newer(index_path(shard), than=shard)  # as a copy that keeps old times would look
    assert [sample.key for sample in load_index(shard)] == ["c", "d"]


def test_a_member_that_moved_under_an_old_index_is_never_returned(shard: Path) -> None:
    """First and last member are where they were; what lies between is noticed when it is read."""
    reader = open_shards([str(shard)], None)
    write_tar(shard, {"a.x": b"1" * 700, "z.y": b"22", "b.x": b"333"})
    reader.close()
    assert reader.read(1) == {"x": b"333"}
    with refused(r"s\.tar: no member a\.y of 2 bytes at offset 2048; the file is not"):
        reader.read(0)


def test_a_read_only_folder_is_read_without_index(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(index_module, "write_atomically", refuse)
    assert [sample.key for sample in load_index(shard)] == ["a", "b"]
    assert not index_path(shard).exists()


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_survive_index_and_read(tmp_path: Path, kind: int) -> None:
    names = ["deep/er/short.x", f"{'d' * 90}/{'k' * 60}.x"]
    names += [] if kind == tarfile.USTAR_FORMAT else [f"{'k' * 140}.image.png", "straße.x"]
    path = write_tar(tmp_path / "s.tar", {name: name.encode() for name in names}, kind)
    for _ in range(2):  # the second time from the index file
        reader = open_shards([str(path)], None)
        assert [next(iter(reader.read(i).values())).decode() for i in range(len(reader))] == names


def test_members_that_are_no_neighbours_and_hidden_ones_are_read_as_if_sorted(tmp_path: Path) -> None:
    """`tar cf x.tar *.jpg *.png` on a Mac."""
    names = ["0.jpg", "._0.jpg", "1.jpg", "0.png", "1.png", "1.txt", "__MACOSX/0.txt", "@eaDir/1.cls"]
    path = write_tar(tmp_path / "s.tar", {name: name.encode() for name in names})
    for _ in range(2):  # the second time from the index file
        reader = open_shards([str(path)], None)
        assert reader.keys == ("0", "1")
        assert reader.read(0) == {"jpg": b"0.jpg", "png": b"0.png"}
        assert reader.read(1) == {"jpg": b"1.jpg", "png": b"1.png", "txt": b"1.txt"}
    sorted_path = write_tar(tmp_path / "t.tar", {n: n.encode() for n in ("0.jpg", "0.png", "1.jpg", "1.png")})
    assert reader.fingerprint() == open_shards([str(sorted_path)], None).fingerprint()


def header(kind: bytes, size: int, body: bytes = b"", name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + body + bytes(-len(body) % 512)


def pax(text: bytes) -> bytes:
    line = b"%d " % (len(text) + 4) + text + b"\n"
    return header(tarfile.XHDTYPE, len(line), line)


def sparse(size: bytes) -> bytes:
    """A header whose file is one hole, of an octal size."""
    block = bytearray(header(tarfile.GNUTYPE_SPARSE, 0, name="a.x"))
    block[386:410], block[483:495] = 2 * (b"0" * 11 + b"\0"), size + b"\0"
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def plain(*names: str, size: int = 0) -> bytes:
    return b"".join(header(tarfile.REGTYPE, size, bytes(size), name=name) for name in names)


NO_TAR, CUT, REFUSED = "is no plain tar", "is truncated", "refuses the member "
LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
SPECIAL = [(header(kind, 0, name="a.x"), f"{REFUSED}'a.x': only plain files") for kind in LINKS]
OUTSIDE = [(plain(n), f"{REFUSED}.*leaves the archive") for n in ("/etc/a.x", "../a.x", "b/../../a.x")]
HOSTILE = [
    (b"", NO_TAR),
    (b"hello" * 400, NO_TAR),
    (
        plain("a.x", "b.x", size=1)[:1024] + b"\xff" + bytes(511),
        "or damaged: no end-of-archive mark at byte 1024",
    ),
    (plain("a.x", size=5000)[:2000], "is truncated: member 'a.x' ends at byte 5512.*has 3024"),
    (header(tarfile.REGTYPE, 2**33 - 512, name="a.x"), "is truncated: member 'a.x' ends at byte"),
    (sparse(b"10000000000"), f"{REFUSED}'a.x': only plain files"),
    *SPECIAL,
    *OUTSIDE,
    (plain("one/a.x", "two/a.x"), "sample 'a' has two members with the suffix x"),
    *[(plain(name), "has no suffix; names such as") for name in ("README", "a.")],
    (header(tarfile.GNUTYPE_LONGNAME, 2**40), NO_TAR),
    (header(tarfile.GNUTYPE_LONGNAME, -(2**40)), NO_TAR),
    (header(tarfile.XHDTYPE, 2**40), NO_TAR),
    (header(tarfile.REGTYPE, -512, name="a.x"), f"{NO_TAR}|{CUT}"),
    (pax(b"path=a.x") * 20_000, f"{NO_TAR}|{CUT}"),
    (header(tarfile.GNUTYPE_LONGNAME, 4, b"a.x\0") * 20_000, f"{NO_TAR}|{CUT}"),
    (pax(b"GNU.sparse.size=x") + plain("a.x"), f"{NO_TAR}|{REFUSED}"),
    (pax(b"GNU.sparse.map=1,x") + plain("a.x"), f"{NO_TAR}|{REFUSED}"),
    (pax(b"size=-1024") + plain("a.x", size=512), f"{NO_TAR}|{CUT}"),
    (plain("a\udcff.x"), f"{REFUSED}.*is not UTF-8"),
]


@pytest.mark.parametrize(("content", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_an_unfit_or_hostile_tar_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(content + bytes(1024) * bool(content))
    with refused(rf"s\.tar: .*({message})") as error:
        load_index(path)
    assert len(str(error.value)) < 500
    assert str(error.value).count("s.tar") == 1


def test_an_index_leaves_nothing_of_a_process_that_was_killed_while_it_wrote_one(shard: Path) -> None:
    (shard.parent / ".s.tar.index.json.partial-1").write_text("half")
    (shard.parent / ".t.tar.index.json.partial-1").write_text("of another shard")
    load_index(shard)
    names = sorted(path.name for path in shard.parent.iterdir())
    assert names == [".t.tar.index.json.partial-1", "s.tar", "s.tar.index.json"]
