from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from outlier_paste.bank import BYTES_PER_MB, CutoutBank, fitting_shrink, is_held_out, open_bank, photo_of
from outlier_paste.config import PasteConfig
from outlier_paste.paste import build_paste
from shards.cutout import Cutout
from shards.schema import OUTLIER_ID, Sample
from tests.support.refused import refused
from tests.support.tars import write_cutouts, write_tar

SIDE = 300  # pixels; one decoded cut-out is 360 kB


def write_bank(path: Path, categories: str, mask_value: int = 255) -> str:
    """Write one cut-out per letter of `categories`; its grey value tells its number."""
    mask = np.full((SIDE, SIDE), mask_value, np.uint8)
    images = [np.full((SIDE, SIDE, 3), 10 * i, np.uint8) for i in range(len(categories))]
    return write_cutouts(
        path, [Cutout(f"{i:03d}", images[i], mask, name, (480, 640)) for i, name in enumerate(categories)]
    )


def test_a_cutout_is_what_was_written(tmp_path: Path) -> None:
    bank = open_bank(write_bank(tmp_path / "b.tar", "zebra"))
    assert len(bank) == 5
    cutout = bank.get(3)
    assert (cutout.key, cutout.category, cutout.source_size) == ("003", "r", (480, 640))
    assert (cutout.image == 30).all()
    assert (cutout.mask == 255).all()
    assert bank.category_counts() == dict.fromkeys("zebra", 1)


def test_the_memory_keeps_what_was_used_last_within_its_size(tmp_path: Path) -> None:
    bank = open_bank(write_bank(tmp_path / "b.tar", "abcd"), cache_mb=1)  # two cut-outs, not three
    first = bank.get(0)
    bank.get(1)
    assert bank.get(0) is first
    second = bank.get(1)
    bank.get(2)
    assert bank.get(1) is second
    assert bank.get(0) is not first
    assert bank._cached_bytes == sum(c.image.nbytes + c.mask.nbytes for c in bank._cached.values())
    assert bank._cached_bytes <= BYTES_PER_MB


def test_a_pickle_carries_no_pixels(tmp_path: Path) -> None:
    bank = open_bank(write_bank(tmp_path / "b.tar", "ab"))
    bank.get(0)
    pickled = pickle.dumps(bank)
    assert len(pickled) < 5000
    np.testing.assert_array_equal(pickle.loads(pickled).get(1).image, bank.get(1).image)


def test_a_cutout_without_object_is_named(tmp_path: Path) -> None:
    bank: CutoutBank = open_bank(write_bank(tmp_path / "b.tar", "a", mask_value=127))
    with refused(r"cut-out 000: mask\.png is empty"):
        bank.get(0)


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_a_smaller_cutout_is_the_whole_one_averaged(tmp_path: Path, shrink: int) -> None:
    rows, columns = np.mgrid[:99, :130]
    image = np.stack([2 * rows, columns, rows + columns // 2], axis=2).astype(np.uint8)
    mask = np.where((rows - 50) ** 2 + (columns - 60) ** 2 < 1500, 255, 0).astype(np.uint8)
    bank = open_bank(write_cutouts(tmp_path / "b.tar", [Cutout("0", image, mask, "zebra", (480, 640))]))
    assert bank.shape(0) == (99, 130)
    small, size = bank.get(0, shrink), (-(-130 // shrink), -(-99 // shrink))
    assert small.mask.shape == size[::-1]
    expected = cv2.resize(image, size, interpolation=cv2.INTER_AREA)[:-1, :-1].astype(int)  # whole blocks
    np.testing.assert_allclose(small.image[:-1, :-1].astype(int), expected, atol=2 + shrink)
    np.testing.assert_array_equal(small.mask, cv2.resize(mask, size, interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize(
    ("shape", "wanted", "shrink"),
    [((100, 100), (100, 100), 1), ((100, 100), (51, 50), 1), ((100, 100), (50, 50), 2),
     ((999, 999), (9, 9), 8), ((5, 9), (50, 90), 1)],
)  # fmt: skip
def test_a_cutout_is_shrunk_to_no_less_than_is_wanted(
    shape: tuple[int, int], wanted: tuple[int, int], shrink: int
) -> None:
    assert fitting_shrink(shape, wanted) == shrink


def test_a_pool_is_a_window_that_moves_through_the_bank(tmp_path: Path) -> None:
    bank = open_bank(write_bank(tmp_path / "b.tar", "abcdefghij"), pool=(4, 0.5))
    pools = [{bank.draw(np.random.default_rng(seed), epoch) for seed in range(80)} for epoch in range(6)]
    assert [len(pool) for pool in pools] == [4] * 6
    assert [len(pool & after) for pool, after in itertools.pairwise(pools)] == [2] * 5
    assert set().union(*pools) == set(range(10))
    assert pools[0] == pools[5]  # 10 objects, 2 exchanged per epoch


def test_without_a_pool_all_objects_are_drawn_equally_often(tmp_path: Path) -> None:
    bank, rng = open_bank(write_bank(tmp_path / "b.tar", "abcde")), np.random.default_rng(0)
    counts = np.bincount([bank.draw(rng, epoch=7) for _ in range(5000)], minlength=5)
    assert abs(counts - 1000).max() < 4 * 29  # four standard deviations


def write_photos(path: Path, num_photos: int) -> str:
    """Two objects of each photograph."""
    image, mask = np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 255, np.uint8)
    keys = [f"{i:012d}-{part}" for i in range(num_photos) for part in (1, 2)]
    return write_cutouts(path, [Cutout(key, image, mask, "c", (9, 9)) for key in keys])


def test_what_is_held_out_is_never_in_the_training_part(tmp_path: Path) -> None:
    path = write_photos(tmp_path / "b.tar", 300)
    trained = open_bank(path, held_out=0.2)
    kept = open_bank(path, held_out=0.2, take_held_out=True)
    assert len(trained) + len(kept) == 600
    assert not {photo_of(key) for key in trained.keys} & {photo_of(key) for key in kept.keys}
    assert 0.1 < len(kept) / 600 < 0.3
    assert len(open_bank(path)) == 600


def test_a_larger_share_holds_out_more_and_never_less() -> None:
    keys = [f"{i:012d}-1" for i in range(500)]
    small, large = ({key for key in keys if is_held_out(key, share)} for share in (0.1, 0.5))
    assert small < large
    assert not any(is_held_out(key, 0.0) for key in keys)


def test_a_bank_of_which_everything_is_held_out_is_an_error(tmp_path: Path) -> None:
    path = write_photos(tmp_path / "b.tar", 1)
    with refused(r"paste\.held_out: is 0\.999, which holds all of the 2 objects"):
        open_bank(path, held_out=0.999)
    with refused(r"paste\.held_out: is 0\.0, which holds none of the 2 objects"):
        open_bank(path, take_held_out=True)


def write_png(path: Path, box: tuple[slice, slice] = np.s_[10:40, 20:30], dtype: type = np.uint8) -> None:
    """A picture of 50 x 60 that is opaque in a box; R, G, B = 250, 120, 10."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.zeros((50, 60, 4), dtype)
    picture[..., :3] = (10, 120, 250)  # B, G, R
    picture[(*box, slice(3, 4))] = 255
    cv2.imwrite(str(path), picture)


def test_a_folder_of_pngs_is_a_bank(tmp_path: Path) -> None:
    write_png(tmp_path / "cone.png")
    write_png(tmp_path / "crates" / "a.png", np.s_[0:50, 0:60])
    bank = open_bank(str(tmp_path))
    assert bank.keys == ("cone", "crates/a")
    assert bank.shape(0) == (30, 10)
    cutout = pickle.loads(pickle.dumps(bank)).get(0)
    assert cutout.image.shape == (30, 10, 3)
    assert (cutout.image == (250, 120, 10)).all()
    assert (cutout.mask == 255).all()
    assert cutout.source_size == (50, 60)
    assert bank.get(1, 4).mask.shape == (13, 15)
    assert bank.category_counts() == {tmp_path.name: 1, "crates": 1}


def test_it_is_pasted_from(tmp_path: Path) -> None:
    write_png(tmp_path / "cone.png")
    paste = build_paste(PasteConfig(bank=str(tmp_path), probability=1.0, mode="rba"))
    assert paste is not None
    image, label = np.zeros((90, 90, 3), np.uint8), np.zeros((90, 90), np.uint8)
    result = paste(Sample(key="s", image=image, label=label), np.random.default_rng(0))
    assert (result.label == OUTLIER_ID).sum() == 300
    assert (result.image[result.label == OUTLIER_ID] == (250, 120, 10)).all()


@pytest.mark.parametrize("kind", ["no alpha", "16 bits", "grey", "no picture"])
def test_a_file_without_alpha_is_named_when_the_bank_is_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    if kind == "16 bits":
        write_png(path, dtype=np.uint16)
    elif kind == "no picture":
        path.write_bytes(b"hello")
    else:
        cv2.imwrite(str(path), np.zeros((9, 9, 3) if kind == "no alpha" else (9, 9), np.uint8))
    with refused(r"paste\.bank: .*x\.png: is (.*colour with alpha of 8 bits or grey with alpha|no PNG)"):
        open_bank(str(tmp_path))


def test_a_transparent_or_broken_picture_is_named_when_it_is_used(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.s_[0:0, 0:0])
    write_png(tmp_path / "b.png")
    content = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[:33])  # the header and nothing else
    bank = open_bank(str(tmp_path))
    with refused(r"cut-out a: .*a\.png is transparent everywhere"):
        bank.shape(0)
    with refused(r"paste\.bank: .*b\.png: cannot be decoded"):
        bank.shape(1)


def test_what_is_no_bank_is_refused(tmp_path: Path) -> None:
    with refused(r"paste\.bank: .*: holds neither manifest\.json, .* nor PNG files"):
        open_bank(str(tmp_path))
    with refused(r"paste\.bank: .*s\.tar: holds no cut-outs"):
        open_bank(str(write_tar(tmp_path / "s.tar", {})))
    scene = write_tar(tmp_path / "t.tar", {"k.image.png": b"", "k.label.png": b""})
    with refused(r"paste\.bank: sample k is no cut-out: it has image\.png, label\.png; needed are object"):
        open_bank(str(scene))


def test_hidden_files_beside_objects_are_no_objects(tmp_path: Path) -> None:
    write_png(tmp_path / "cone.png")
    (tmp_path / "._cone.png").write_bytes(b"mac")
    (tmp_path / "@eaDir").mkdir()
    (tmp_path / "@eaDir" / "cone.png").write_bytes(b"thumbnail")
    assert open_bank(str(tmp_path)).keys == ("cone",)
