"""Shards: plain tar files whose bytes depend on nothing but the samples."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from shards.manifest import ShardEntry, read_manifest
from shards.prepare.plan import MIN_SHARDS, EncodedSample, FolderPlan, ShardPlan, split_into_shards
from shards.prepare.writer import write_folder, write_shard


def samples(first: int, count: int) -> list[EncodedSample]:
    return [
        (f"key_{i:03d}", {"label.png": b"L" * i, "image.jpg": b"I" * 700})
        for i in range(first, first + count)
    ]


def plans(num_shards: int, per_shard: int = 3) -> list[ShardPlan]:
    return [
        ShardPlan(
            f"x-train-{i:06d}.tar", "train", per_shard, partial(iter, samples(i * per_shard, per_shard))
        )
        for i in range(num_shards)
    ]


def write(shards: list[ShardPlan], out: Path, workers: int = 1) -> tuple[ShardEntry, ...]:
    write_folder(FolderPlan("cutouts", "x", "jpeg", {}, shards, []), out, workers=workers)
    return read_manifest(out).shards


def split(items: Sequence[Any], largest: int, weights: list[int] | None = None) -> list[list[Any]]:
    plans = split_into_shards(items, largest, list, name="x", split="train", weights=weights)
    return [list(plan.samples()) for plan in plans]


def test_names_that_plain_headers_cannot_hold_are_written_the_same_way(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.tar", [("straße", {"image.jpg": b"I"})])
    with tarfile.open(tmp_path / "x.tar") as archive:
        assert [(m.name, m.pax_headers) for m in archive] == [("straße.image.jpg", {})]


def test_headers_are_plain_and_members_sorted(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.tar", samples(0, 2))
    with tarfile.open(tmp_path / "x.tar") as archive:
        members = archive.getmembers()
    assert [m.name for m in members] == [
        f"key_00{i}.{end}" for i in (0, 1) for end in ("image.jpg", "label.png")
    ]
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
        assert (member.mode, member.type, member.pax_headers) == (0o644, tarfile.REGTYPE, {})


def test_an_entry_describes_its_file(tmp_path: Path) -> None:
    (entry,) = write(plans(1), tmp_path / "S")
    content = (tmp_path / "S" / entry.name).read_bytes()
    assert (entry.split, entry.num_samples, entry.keys) == ("train", 3, ("key_000", "key_001", "key_002"))
    assert (entry.num_bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    results = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        entries = write(plans(5), folder, workers)
        results.append((entries, [(folder / entry.name).read_bytes() for entry in entries]))
    assert results[0] == results[1]
    assert [entry.name for entry in results[0][0]] == [f"x-train-{i:06d}.tar" for i in range(5)]


@given(count=st.integers(0, 200), largest=st.integers(1, 40))
@settings(deadline=None)
def test_pieces_are_a_balanced_partition(count: int, largest: int) -> None:
    pieces = split(range(count), largest)
    assert [item for piece in pieces for item in piece] == list(range(count))
    sizes = [len(piece) for piece in pieces]
    assert max(sizes, default=0) <= largest
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert len(pieces) >= min(count, MIN_SHARDS)


@given(weights=st.lists(st.integers(1, 30), max_size=60), largest=st.integers(1, 40))
@settings(deadline=None)
def test_weighted_pieces_are_a_partition_and_exceed_by_less_than_one_item(
    weights: list[int], largest: int
) -> None:
    pieces = split(list(enumerate(weights)), largest, weights)
    assert [i for piece in pieces for i, _ in piece] == list(range(len(weights)))
    assert all(piece for piece in pieces)
    assert all(sum(weight for _, weight in piece[:-1]) < largest for piece in pieces)


def test_the_official_training_set_fills_47_shards() -> None:
    sizes = [len(piece) for piece in split(range(2975), 64)]
    assert len(sizes) == 47
    assert set(sizes) == {63, 64}
