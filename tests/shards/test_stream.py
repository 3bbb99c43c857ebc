from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import shutil
import subprocess
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.batch import Batch
from shards.config import AugmentConfig, StreamConfig
from shards.prepare.writer import write_shard
from shards.reader import open_shards
from shards.schema import Sample, Transform
from shards.settings import build_config
from shards.stream import Stream, build_stream
from tests.support.refused import refused

NUM_SAMPLES = 13  # a prime: no batch size divides an epoch

# Python 3.12 warns of every fork of a process with threads; the DataLoader's default on Linux is to fork.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five shards of 13 scenes of 24 x 48 pixels, written by WebDataset itself."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for shard in range(5):
        with webdataset.TarWriter(str(folder / f"s-{shard}.tar")) as writer:
            for i in range(shard, NUM_SAMPLES, 5):
                image = rng.integers(0, 256, (24, 48, 3), dtype=np.uint8)
                label = rng.integers(0, 19, (24, 48), dtype=np.uint8)
                pngs = [cv2.imencode(".png", array)[1].tobytes() for array in (image, label)]
                writer.write({"__key__": f"scene{i:02d}", "image.png": pngs[0], "label.png": pngs[1]})
    return folder


def make_config(folder: Path, batch_size: int = 2, workers: int = 0) -> StreamConfig:
    return StreamConfig(
        shards=(f"{folder}/s-{{0..4}}.tar",), crop=(16, 16), batch_size=batch_size, workers=workers
    )


class Mark(Transform):
    """A transform whose random numbers can be read from the pixels."""

    def __call__(self, sample: Sample, generator: np.random.Generator, epoch: int = 0) -> Sample:
        sample.image[0] = generator.integers(0, 256, 3)
        return sample


def open_stream(
    config: StreamConfig, num: int | None = None, rank: int = 0, world: int = 1, start: int = 0, **more: Any
) -> Stream:
    share = {"rank": rank, "world_size": world, "start_position": start, "num_batches": num}
    return build_stream(config, seed=1, **{"transform": Mark(), **share, **more})


def read(config: StreamConfig, num: int, **share: int) -> list[Batch]:
    return list(open_stream(config, num, **share))


def keys_of(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def assert_equal_batches(left: list[Batch], right: list[Batch]) -> None:
    assert keys_of(left) == keys_of(right)
    assert all(torch.equal(a.image, b.image) for a, b in zip(left, right, strict=True))
    assert all(torch.equal(a.label, b.label) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("stop", [1, 5, 7])
def test_a_restart_continues_bit_for_bit(folder: Path, stop: int) -> None:
    config = make_config(folder, batch_size=3)
    stream = open_stream(config)
    first = list(itertools.islice(stream, stop))
    assert stream.position == stop * 3
    rest = read(config, 10 - stop, start=stream.position)
    assert_equal_batches(first + rest, read(config, 10))


def test_a_scene_varies_from_epoch_to_epoch(folder: Path) -> None:
    batches = read(make_config(folder, batch_size=1), 2 * NUM_SAMPLES)
    images = {(batch.keys[0], batch.image.numpy().tobytes()) for batch in batches}
    assert len(images) == 2 * NUM_SAMPLES


def test_the_transform_does_not_change_crops_and_colours(folder: Path) -> None:
    config = make_config(folder)
    plain = open_stream(config, 7, transform=None)
    without = dataclasses.replace(config, augment=AugmentConfig(color=0.0))
    for marked, batch in zip(read(config, 7), plain, strict=True):
        assert torch.equal(marked.image[:, :, 1:], batch.image[:, :, 1:])
        assert torch.equal(marked.label, batch.label)
    assert not torch.equal(read(without, 1)[0].image, read(config, 1)[0].image)


def test_batches_have_the_promised_shape(folder: Path) -> None:
    batch = read(make_config(folder, batch_size=3), 1)[0]
    assert batch.image.shape == (3, 3, 16, 16)
    assert batch.label.shape == (3, 16, 16)
    assert batch.image.dtype == batch.label.dtype == torch.uint8
    assert len(batch) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_draws_nothing_from_the_global_generator(folder: Path, workers: int) -> None:
    before = torch.get_rng_state()
    read(make_config(folder, workers=workers), 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_sample_is_one_line_even_from_a_worker(folder: Path, tmp_path: Path, workers: int) -> None:
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"{shard}.tar")) as writer:
            writer.write({"__key__": f"bad{shard}", "image.png": b"junk", "label.png": b"junk"})
    config = StreamConfig(shards=(f"{tmp_path}/*.tar",), crop=(8, 8), batch_size=1, workers=workers)
    stream = open_stream(config)
    with refused(
        r"^sample bad\d: image\.png: cannot be decoded as a picture \(4 bytes\); PNG, JPEG and WebP .*$"
    ):
        next(iter(stream))


def test_a_sample_without_label_is_found_before_the_first_batch(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "s.tar")) as writer:
        writer.write({"__key__": "bare", "image.png": b"junk"})
    with refused(r"sample bare: has no label\.png"):
        open_stream(StreamConfig(shards=(f"{tmp_path}/s.tar",), workers=0))


@given(
    num_shards=st.integers(1, 5),
    ranks=st.sampled_from([1, 2, 3, 4]),
    resumed_ranks=st.sampled_from([1, 2, 3, 4]),
    stop=st.integers(0, 7),
)
@settings(max_examples=12, deadline=None)
def test_any_ranks_and_any_interruption_see_the_same_pixels(
    folder: Path, num_shards: int, ranks: int, resumed_ranks: int, stop: int
) -> None:
    """A global batch of 12 is cut over the ranks; after `stop` steps others go on, over other cuts.

    The same scenes may lie in any number of shards, and the expected pixels are made one by one.
    """
    config = dataclasses.replace(make_config(folder, batch_size=12), shards=spread(folder, num_shards))
    one = dataclasses.replace(config, shards=spread(folder, 1))
    dataset = open_stream(one).dataset
    seen: list[tuple[str, bytes, bytes]] = []
    for first, last, world in ((0, stop, ranks), (stop, 8, resumed_ranks)):
        part = dataclasses.replace(config, batch_size=12 // world)
        parts = [read(part, last - first, rank=rank, world=world, start=12 * first) for rank in range(world)]
        for step in range(last - first):
            seen += [pixels for batches in parts for pixels in pixels_of(batches[step])]
    expected = [dataset.make_scene(position) for position in range(96)]
    assert seen == [(s.key, s.image.tobytes(), s.label.tobytes()) for s in expected]


def spread(folder: Path, num_shards: int) -> tuple[str, ...]:
    """Put the 13 scenes into another number of shards, sorted by key, and return their pattern."""
    target = folder / f"in-{num_shards}"
    if not target.is_dir():
        target.mkdir()
        source = open_shards([f"{folder}/s-*.tar"], None)
        scenes = sorted((key, source.read(index)) for index, key in enumerate(source.keys))
        for number in range(num_shards):
            first, last = number * 13 // num_shards, (number + 1) * 13 // num_shards
            write_shard(target / f"{number}.tar", scenes[first:last])
    return (f"{target}/*.tar",)


def pixels_of(batch: Batch) -> list[tuple[str, bytes, bytes]]:
    images = batch.image.permute(0, 2, 3, 1).contiguous().numpy()
    return [
        (key, image.tobytes(), label.tobytes())
        for key, image, label in zip(batch.keys, images, batch.label.numpy(), strict=True)
    ]


@pytest.mark.parametrize(("ranks", "workers", "stop"), [(1, 1, 3), (1, 2, 5), (2, 1, 1), (2, 2, 4)], ids=str)
def test_workers_on_several_ranks_resume_bit_for_bit(
    folder: Path, ranks: int, workers: int, stop: int
) -> None:
    config = make_config(folder, batch_size=4 // ranks)
    loaded = dataclasses.replace(config, workers=workers)
    for rank in range(ranks):
        first = read(loaded, stop, rank=rank, world=ranks)
        rest = read(loaded, 8 - stop, rank=rank, world=ranks, start=4 * stop)
        assert_equal_batches(first + rest, read(config, 8, rank=rank, world=ranks))


def damage(shard: Path, member: str) -> None:
    """Overwrite the first bytes of a member by zeros."""
    with tarfile.open(shard) as tar:
        place = tar.getmember(member).offset_data
    content = bytearray(shard.read_bytes())
    content[place : place + 40] = bytes(40)
    shard.write_bytes(content)


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    """The five shards, with the label of scene07 damaged and the last shard cut."""
    for path in folder.glob("s-*.tar"):
        shutil.copy(path, tmp_path)
    damage(tmp_path / "s-2.tar", "scene07.label.png")
    shard = tmp_path / "s-4.tar"
    shard.write_bytes(shard.read_bytes()[:-6000])
    return tmp_path


def test_unreadable_shards_and_samples_are_errors_by_default(damaged: Path) -> None:
    with refused(r"s-4\.tar: is truncated"):
        read(make_config(damaged), 1)
    (damaged / "s-4.tar").unlink()
    with refused(r"s-\{0\.\.4\}\.tar \(.*s-4\.tar\): no shard found"):
        read(make_config(damaged), 1)
    config = dataclasses.replace(make_config(damaged), shards=(f"{damaged}/s-*.tar",))
    with refused(r"sample scene07: label\.png: is no PNG file \(\d+ bytes\)"):
        read(config, NUM_SAMPLES)


@pytest.mark.parametrize("missing", [False, True])
def test_tolerated_errors_are_told_and_replaced_alike_on_all_ranks_and_workers(
    damaged: Path, caplog: pytest.LogCaptureFixture, missing: bool
) -> None:
    if missing:
        (damaged / "s-4.tar").unlink()
    config = dataclasses.replace(make_config(damaged, batch_size=2), max_errors=1)
    whole = read(config, 22)  # four epochs of the 11 samples that are left
    assert "left out: " in caplog.text
    assert caplog.text.count("unreadable, 1 of 1 allowed: sample scene07: label.png") == 1
    assert len(caplog.records) == 2
    counts = Counter(keys_of(whole))
    assert set(counts) == {f"scene{i:02d}" for i in range(NUM_SAMPLES)} - {"scene04", "scene09", "scene07"}
    assert sum(len(batch.errors) for batch in whole) == 4
    assert sorted(counts.values())[:6] == [4] * 6  # the others stood in for scene07
    assert sum(counts.values()) == 44
    assert_equal_batches(read(dataclasses.replace(config, workers=1), 22), whole)
    ranks = [read(dataclasses.replace(config, batch_size=1), 22, rank=rank, world=2) for rank in (0, 1)]
    together = [key for step in range(22) for batches in ranks for key in batches[step].keys]
    assert together == keys_of(whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_more_errors_than_allowed_stop_the_run(damaged: Path, workers: int) -> None:
    """Each sample counts once, however often it comes."""
    damage(damaged / "s-1.tar", "scene11.image.png")
    config = dataclasses.replace(make_config(damaged, batch_size=1, workers=workers), max_errors=1)
    with refused(r"data\.max_errors: 2 samples cannot be read, 1 are allowed; "):
        read(config, 2 * NUM_SAMPLES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"shards: the list is empty"),
        ({"crop": (0, 8)}, r"crop: got \[0, 8\]; height and width of at least 1"),
        ({"batch_size": 0}, r"batch_size: got 0; 1..4096 are allowed"),
        ({"max_errors": -1}, r"max_errors: got -1; 0 or more are needed"),
        ({"workers": -1}, r"workers: got -1; 0..256 are allowed"),
        (
            {"augment": {"scale": (2.0, 1.0)}},
            r"augment\.scale: got \[2\.0, 1\.0\]; two numbers in 0\.05",
        ),
        ({"augment": {"scale": (0.0, 1.0)}}, r"augment\.scale: got \[0\.0, 1\.0\]"),
        ({"augment": {"flip": 1.5}}, r"augment\.flip: got 1\.5; a number in 0\.\.1 is needed"),
        ({"augment": {"class_balance": 2.0}}, r"augment\.class_balance: got 2\.0; a number in 0\.\.1"),
        (
            {"augment": {"max_class_share": 0.0}},
            r"augment\.max_class_share: got 0\.0; more than 0, at most 1",
        ),
        ({"augment": {"color": -0.1}}, r"augment\.color: got -0\.1; a number in 0\.\.1"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, object], message: str) -> None:
    with refused(rf"data\.{message}"):
        open_stream(build_config(StreamConfig, settings, "data"))


def test_workers_obey_their_parent_and_nobody_else(folder: Path) -> None:
    """Schedulers signal every process of a job, but only the training process knows when to leave."""
    batches = iter(open_stream(make_config(folder, workers=1)))
    next(batches)
    (worker,) = multiprocessing.active_children()
    for name in ("TERM", "USR1", "INT"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    time.sleep(0.3)
    assert worker.is_alive()
    next(batches)
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_closing_the_stream_ends_its_workers(folder: Path) -> None:
    batches = iter(open_stream(make_config(folder, workers=1)))
    next(batches)
    assert len(multiprocessing.active_children()) == 1
    batches.close()
    assert multiprocessing.active_children() == []
