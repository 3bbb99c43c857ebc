"""What many tests share: a handful of tiny scenes and objects, as shards that plain webdataset wrote."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset
from jaxtyping import install_import_hook

ROOT = Path(__file__).parents[1]
SHAPED = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("shards", "eval", "models", "trainer", "outlier_paste")
    for path in (ROOT / package).rglob("*.py")
    if "from jaxtyping import" in path.read_text()
]
"""Modules that say shapes. Tests check them in every call, which doubles its time: so no other module's."""
install_import_hook(SHAPED, "beartype.beartype")

from shards.cutout import Cutout, encode_cutout  # noqa: E402
from shards.schema import VOID_ID  # noqa: E402

NUM_SCENES = 8
TOGETHER = ("tests/slurm/", "tests/distributed/")
"""Folders whose files share what takes minutes, or what a machine has one of: a cluster, two ranks."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let long groups of files come first; the short ones behind them fill what the last long one leaves."""
    groups = [_find_group(item.nodeid) for item in items]
    long = [group for group, item in zip(groups, items, strict=True) if item.get_closest_marker("slow")]
    order = {group: place for place, group in enumerate(dict.fromkeys((*TOGETHER, *long, *groups)))}
    items.sort(key=lambda item: order[_find_group(item.nodeid)])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Let a group belong to one process.

    `--dist loadgroup` is to do it, but pytest 9.2 does not show the groups that pytest-xdist 3.8 finds.
    """
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _find_group(nodeid)

    return GroupScheduling(config, log)


def _find_group(nodeid: str) -> str:
    return next((folder for folder in TOGETHER if nodeid.startswith(folder)), nodeid.partition("::")[0])


def draw_scene(index: int, size: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Draw sky over road with a box in it; colours vary with `index`."""
    generator = np.random.default_rng(index)
    image = np.full((size, size, 3), (90, 140, 200), np.uint8)
    label = np.full((size, size), 10, np.uint8)  # sky
    horizon = int(generator.integers(size // 3, size // 2))
    image[horizon:], label[horizon:] = (80, 80, 85), 0  # road
    left = int(generator.integers(0, size - 16))
    box = (slice(horizon - 4, horizon + 8), slice(left, left + 14))
    image[box], label[box] = generator.integers(0, 256, 3), 13  # car
    label[-3:] = VOID_ID
    noise = generator.integers(-8, 9, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), label


def write_scenes(folder: Path) -> str:
    """Write eight scenes of 48x48 into eight shards; return the pattern that finds them."""
    for index in range(NUM_SCENES):
        image, label = draw_scene(index)
        sample = {
            "__key__": f"scene{index}",
            "image.png": cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes(),
            "label.png": cv2.imencode(".png", label)[1].tobytes(),
        }
        with webdataset.TarWriter(str(folder / f"scenes-{index:06d}.tar")) as writer:
            writer.write(sample)
    return str(folder / "scenes-*.tar")


@pytest.fixture(scope="session")
def scene_shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eight scenes in eight shards, as the pattern that finds them."""
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="session")
def cutout_shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two striped discs as a bank of cut-outs in one shard."""
    path = tmp_path_factory.mktemp("cutouts") / "cutouts-train-000000.tar"
    rows, columns = np.mgrid[:20, :20]
    mask = np.where((rows - 9.5) ** 2 + (columns - 9.5) ** 2 < 90, 255, 0).astype(np.uint8)
    with webdataset.TarWriter(str(path)) as writer:
        for index in range(2):
            stripes = np.where((rows + index * columns) % 6 < 3, 250, 20).astype(np.uint8)
            picture = np.stack([stripes, 255 - stripes, stripes], axis=2)
            cutout = Cutout(f"{index:012d}-1", picture, mask, "zebra", (480, 640))
            writer.write({"__key__": cutout.key, **encode_cutout(cutout)})
    return str(path)
