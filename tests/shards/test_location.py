"""Remote shards: over HTTP from this machine, and through fsspec's file system in memory."""

from __future__ import annotations

import functools
import http.server
import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from shards import location
from shards.errors import StorageError
from shards.location import Shard, default_cache, find_shards
from shards.reader import open_shards
from tests.support.refused import refused
from tests.support.tars import write_shards, write_tar

# Python 3.12 warns of every fork of a process with threads; the DataLoader's default on Linux is to fork.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two prepared shards with indexes and a manifest."""
    return write_shards(tmp_path / "remote", {"train-0": {"k0.x": b"0" * 600}, "val-1": {"k1.x": b"1" * 600}})


class Server(http.server.ThreadingHTTPServer):
    """Counts what it is asked for."""

    asked: list[str]


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "PAUSE_S", 0.0)


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_a_full_cache_is_a_fault_of_storage(folder: Path, tmp_path: Path) -> None:
    (shard, *_) = find_shards(f"file://{folder}/train-0.tar", None, "/sys/cache")
    with pytest.raises(StorageError, match="^data.cache /sys/cache: .*: cannot be read or written: "):
        shard.fetch()


def test_a_remote_folder_is_opened_without_downloading_its_shards(server: Server, cache: str) -> None:
    reader = open_shards([address(server)], "train", cache=cache)
    assert reader.keys == ("k0",)
    assert server.asked == ["/manifest.json", "/train-0.tar.index.json"]
    assert reader.read(0) == {"x": b"0" * 600}
    assert server.asked.count("/train-0.tar") == 1
    again = open_shards([address(server)], "train", cache=cache)
    assert again.read(0) == {"x": b"0" * 600}
    assert server.asked.count("/train-0.tar") == 1


def test_a_shard_without_index_or_manifest_is_downloaded_and_indexed(
    server: Server, folder: Path, cache: str
) -> None:
    for path in folder.glob("*.json"):
        path.unlink()
    pattern = f"{address(server)}/{{train-0,val-1}}.tar"
    assert open_shards([pattern], None, cache=cache).keys == ("k0", "k1")
    reader = open_shards([pattern], None, cache=cache)
    assert [reader.read(i)["x"][:1] for i in (0, 1)] == [b"0", b"1"]
    assert server.asked.count("/train-0.tar") == server.asked.count("/val-1.tar") == 1


def test_a_shard_that_changed_on_the_server_is_downloaded_anew(
    server: Server, folder: Path, cache: str
) -> None:
    url = f"{address(server)}/train-0.tar"
    (folder / "manifest.json").unlink()
    assert open_shards([url], None, cache=cache).keys == ("k0",)
    write_tar(folder / "train-0.tar", {"new.x": b"1" * 9000, "newer.x": b"2" * 9000})
    assert open_shards([url], None, cache=cache).keys == ("new", "newer")


def fetch_in_child(shard: Shard, start: multiprocessing.synchronize.Barrier) -> None:
    start.wait()
    assert shard.fetch().read_bytes()[:5] == b"k0.x\0"


def test_many_processes_share_one_download(server: Server, cache: str) -> None:
    shard = find_shards(address(server), "train", cache)[0]
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    children = [context.Process(target=fetch_in_child, args=(shard, start)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    assert server.asked.count("/train-0.tar") == 1
    assert not list(Path(cache).rglob("*partial*"))


def die_while_downloading(shard: Shard) -> None:
    location._reach = lambda *_: os._exit(9)  # type: ignore[assignment]
    shard.fetch()


def test_a_process_killed_while_downloading_blocks_nobody(server: Server, cache: str) -> None:
    shard = find_shards(address(server), "train", cache)[0]
    child = multiprocessing.get_context("fork").Process(target=die_while_downloading, args=(shard,))
    child.start()
    child.join(60)
    assert child.exitcode == 9
    assert len(list(Path(cache).rglob("*partial*"))) == 1
    assert shard.fetch().stat().st_size == shard.num_bytes
    assert not list(Path(cache).rglob("*partial*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"short", r"train-0\.tar: has 5 bytes, the manifest says \d+"),
        (None, r"train-0\.tar: its bytes differ from the manifest's hash"),
    ],
    ids=["size", "hash"],
)
def test_a_download_that_is_not_what_the_manifest_says_is_refused(
    server: Server, folder: Path, content: bytes | None, message: str, cache: str
) -> None:
    path = folder / "train-0.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"!" if content is None else content)
    reader = open_shards([address(server)], "train", cache=cache)
    with refused(message):
        reader.read(0)
    assert not [path for path in Path(cache).rglob("*.tar*") if path.suffix != ".lock"]


def test_a_signed_address_is_no_pattern(server: Server, cache: str) -> None:
    url = f"{address(server)}/train-0.tar?signature=a%2Fb&expires=1"
    assert open_shards([url], None, cache=cache).keys == ("k0",)
    assert [path.name for path in Path(cache).rglob("*.tar")] == ["train-0.tar"]


def test_wildcards_work_where_the_file_system_can_list(tmp_path: Path, cache: str) -> None:
    system = fsspec.filesystem("memory")
    for name in ("a", "b"):
        content = write_tar(tmp_path / "x.tar", {f"{name}.x": name.encode()}).read_bytes()
        system.pipe_file(f"/bucket/s-{name}.tar", content)
    reader = open_shards(["memory://bucket/s-*.tar"], None, cache=cache)
    assert reader.keys == ("a", "b")
    assert reader.read(1) == {"x": b"b"}
    with refused(r"memory://bucket/t-\*\.tar: no shard found"):
        find_shards("memory://bucket/t-*.tar", None, str(tmp_path))


def test_a_missing_remote_shard_is_left_out_where_errors_may_be(
    server: Server, tmp_path: Path, cache: str
) -> None:
    pattern = f"{address(server)}/{{train-0,none,val-1}}.tar"
    reader = open_shards([pattern], None, cache=str(tmp_path), max_errors=1)
    assert reader.keys == ("k0", "k1")
    assert "/none.tar: cannot be read: no such file" in reader.errors[0]


def test_the_cache_is_where_the_desktop_standard_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/eomt-anomaly")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache/eomt-anomaly"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("SERVER/none.tar", r"http://.*/none\.tar: cannot be read: no such file"),
        ("http://127.0.0.1:9/s.tar", r"http://127\.0\.0\.1:9/s\.tar: cannot be read after 3 attempts: "),
        ("gopher://x/s.tar", "gopher://x/s.tar: Protocol not known: gopher"),
    ],
)
def test_an_unreadable_remote_file_is_one_line(server: Server, url: str, message: str, cache: str) -> None:
    with refused(message):
        open_shards([url.replace("SERVER", address(server))], None, cache=cache)
