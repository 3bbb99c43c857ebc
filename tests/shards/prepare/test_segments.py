from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.cutout import decode_cutout
from shards.prepare.segments import SegmentFilter, plan_segments, read_ids
from tests.support.refused import refused

ANY = SegmentFilter(min_area=1)


class Download:
    """Pictures of 30 x 40, whose red is their column and green their row."""

    def __init__(self, folder: Path) -> None:
        self.images, self.maps = folder / "images", folder / "maps"
        self.images.mkdir(parents=True)
        self.maps.mkdir()

    def add(self, stem: str, ids: np.ndarray) -> None:
        rows, columns = np.mgrid[:30, :40]
        drawn = np.stack([np.zeros_like(rows), 8 * rows, 6 * columns], axis=-1).astype(np.uint8)  # B, G, R
        cv2.imwrite(str(self.images / f"{stem}.png"), drawn)
        cv2.imwrite(str(self.maps / f"{stem}.png"), ids)

    def cutouts(self, rule: SegmentFilter = ANY) -> dict[str, object]:
        plan = plan_segments(self.images, self.maps, rule=rule)
        samples = [sample for shard in plan.shards for sample in shard.samples()]
        assert len(samples) == sum(shard.num_samples for shard in plan.shards)
        return {key: decode_cutout(key, members) for key, members in samples}


@pytest.fixture
def download(tmp_path: Path) -> Download:
    return Download(tmp_path / "ade")


def two_squares(dtype: type = np.uint8, number: int = 7) -> np.ndarray:
    ids = np.zeros((30, 40), dtype)
    ids[2:10, 4:16] = ids[20:25, 30:36] = number
    return ids


def test_every_connected_region_becomes_a_cutout(download: Download) -> None:
    download.add("a.b", two_squares())
    found = download.cutouts()
    assert list(found) == ["a_b-7p1", "a_b-7p2"]
    first = found["a_b-7p1"]
    assert (first.mask.shape, first.category, first.source_size) == ((8, 12), "segment 7", (30, 40))
    np.testing.assert_allclose(first.image[3, 5], [6 * (4 + 5), 8 * (2 + 3), 0], atol=12)  # JPEG


def test_a_number_is_one_cutout_on_request(download: Download) -> None:
    download.add("a", two_squares())
    (cutout,) = download.cutouts(SegmentFilter(min_area=1, connected=False)).values()
    assert cutout.mask.shape == (23, 32)
    assert (cutout.mask == 255).sum() == 8 * 12 + 5 * 6


def test_numbers_of_16_bits_and_of_three_channels_are_read() -> None:
    wide = cv2.imencode(".png", two_squares(np.uint16, 3000))[1].tobytes()
    assert set(np.unique(read_ids(wide, "m"))) == {0, 3000}
    colored = np.zeros((4, 4, 3), np.uint8)
    colored[0, 0] = (3, 2, 1)  # B, G, R
    assert read_ids(cv2.imencode(".png", colored)[1].tobytes(), "m")[0, 0] == 1 + 256 * 2 + 65536 * 3


def test_filters(download: Download) -> None:
    ids = two_squares()
    ids[28, 0] = 9
    download.add("a", ids)
    assert len(download.cutouts()) == 3
    assert list(download.cutouts(SegmentFilter(min_area=1, only_ids=(9,)))) == ["a-9p1"]
    assert len(download.cutouts(SegmentFilter(min_area=1, ignored_ids=(0, 7)))) == 1
    plan = plan_segments(download.images, download.maps, rule=SegmentFilter(min_area=31))
    assert plan.report == [
        "pictures: 1 kept of 1 maps",
        "segments: 1 kept; 2 dropped: smaller than 31 pixels (min_area)",
    ]


def test_mistakes_are_named(download: Download) -> None:
    with refused(r"--segments .*: holds no \.png files"):
        download.cutouts()
    download.add("a", two_squares())
    with refused(r"no segments are left; the last 2 .*smaller than 999 .*min_area"):
        download.cutouts(SegmentFilter(min_area=999))
    with refused("holds no segments that only_ids, ignored_ids and min_side leave"):
        download.cutouts(SegmentFilter(only_ids=(5,)))
    cv2.imwrite(str(download.maps / "b.png"), two_squares())
    with refused(r"b\.png: map without picture; no b\.jpg or \.png is there"):
        download.cutouts()
    cv2.imwrite(str(download.images / "b.png"), np.zeros((9, 9, 3), np.uint8))
    with refused(r"b\.png: is 9x9 pixels, its map .*b\.png 40x30"):
        download.cutouts()
    (download.maps / "b.png").write_bytes(b"no map")
    with refused(r"maps/b\.png: is no PNG file \(6 bytes\)"):
        download.cutouts()
    cv2.imwrite(str(download.maps / "b.png"), np.zeros((9, 9, 4), np.uint8))
    with refused(r"b\.png: is colour with alpha of 8 bits; grey of 8 bits or grey of 16"):
        download.cutouts()
    with refused("min_area: is -1"):
        SegmentFilter(min_area=-1)
