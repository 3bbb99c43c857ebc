"""Pasting inside the stream: what a scene gets depends on (seed, epoch, sample key) alone."""

from __future__ import annotations

import dataclasses
import itertools
from functools import cache

import numpy as np
import pytest

from outlier_paste.config import PasteConfig
from outlier_paste.paste import build_paste
from shards.config import AugmentConfig, StreamConfig
from shards.order import SampleOrder
from shards.schema import OUTLIER_ID
from shards.stream import build_stream
from tests.conftest import NUM_SCENES

# Python 3.12 warns of every fork of a process with threads; the DataLoader's default on Linux is to fork.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")

SETTINGS = (
    {"placement": "anywhere", "match": ("color", "motion", "noise")},
    {"placement": "road", "overlap": "none", "pool": 1},
    {"mode": "rba"},
)
Scene = tuple[bytes, bytes]


def make_stream(scenes: str, bank: str, choice: int, workers: int = 0, batch_size: int = 1, **options: int):
    paste = build_paste(PasteConfig(bank=bank, probability=0.7, **SETTINGS[choice]))  # type: ignore[arg-type]
    config = StreamConfig(shards=(scenes,), crop=(40, 40), batch_size=batch_size, workers=workers)
    return build_stream(config, seed=3, transform=paste, **options)


@pytest.fixture(scope="module")
def expected(scene_shards: str, cutout_shard: str):
    """Scene of (choice of settings, epoch, key), out of one plain stream over three epochs."""

    @cache
    def of(choice: int) -> dict[tuple[int, str], Scene]:
        order = SampleOrder(NUM_SCENES, 3)
        stream = make_stream(scene_shards, cutout_shard, choice, rank=0, world_size=1)
        scenes = {}
        for position, batch in enumerate(itertools.islice(stream, 3 * NUM_SCENES)):
            scene = (batch.image[0].numpy().tobytes(), batch.label[0].numpy().tobytes())
            scenes[(order.at(position)[0], batch.keys[0])] = scene
        return scenes

    return of


@pytest.mark.parametrize("choice", range(len(SETTINGS)))
def test_workers_change_nothing(expected, scene_shards: str, cutout_shard: str, choice: int) -> None:
    stream = make_stream(scene_shards, cutout_shard, choice, workers=2, rank=0, world_size=1)
    order = SampleOrder(NUM_SCENES, 3)
    for position, batch in enumerate(itertools.islice(stream, 2 * NUM_SCENES)):
        scene = (batch.image[0].numpy().tobytes(), batch.label[0].numpy().tobytes())
        assert scene == expected(choice)[(order.at(position)[0], batch.keys[0])]


def test_epochs_differ(expected) -> None:
    scenes = expected(0)
    keys = {key for _, key in scenes}
    assert sum(scenes[(0, key)] != scenes[(1, key)] for key in keys) == len(keys)


def test_an_object_on_the_frame_is_cropped_and_enlarged_with_it(scene_shards: str, cutout_shard: str) -> None:
    """A crop of the whole frame shows what mode rba pasted, to the pixel; a zoom shows it larger."""
    paste = build_paste(PasteConfig(bank=cutout_shard, probability=1.0, mode="rba"))
    plain = AugmentConfig(scale=(1.0, 1.0), flip=0.0, color=0.0)
    config = StreamConfig(shards=(scene_shards,), crop=(48, 48), batch_size=1, workers=0, augment=plain)
    rows, columns = np.mgrid[:20, :20] - 9.5
    disc = int((rows**2 + columns**2 < 90).sum())  # pixels of the object in its photograph
    for batch in build_stream(config, seed=0, rank=0, world_size=1, transform=paste, num_batches=8):
        outlier = (batch.label[0] == OUTLIER_ID).numpy()
        assert outlier.sum() == disc
        pixels = batch.image[0].numpy()[:, outlier].T
        objects = [paste.bank.get(index) for index in range(2)]
        assert any((pixels == item.image[item.mask > 0]).all() for item in objects)  # no blending
    zoomed = dataclasses.replace(config, augment=dataclasses.replace(plain, scale=(2.0, 2.0)))
    counts = [
        int((batch.label[0] == OUTLIER_ID).sum())
        for batch in build_stream(zoomed, seed=0, rank=0, world_size=1, transform=paste, num_batches=16)
    ]
    assert min(counts) < 2 * disc  # the crop has cut some off
    assert 3.5 * disc < max(counts) <= 4.5 * disc  # and shows others whole, twice as long
