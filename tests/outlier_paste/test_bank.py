from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from outlier_paste.bank import BYTES_PER_MB, CutoutBank, open_bank
from shards.cutout import Cutout, encode_cutout
from shards.errors import InputError

SIDE = 300  # pixels; one decoded cut-out is 360 kB


def write_bank(path: Path, categories: str, mask_value: int = 255) -> Path:
    """Write one cut-out per letter of `categories`; its grey value tells its number."""
    members = {}
    for i, category in enumerate(categories):
        image = np.full((SIDE, SIDE, 3), 10 * i, np.uint8)
        mask = np.full((SIDE, SIDE), mask_value, np.uint8)
        cutout = Cutout(key=f"{i:03d}", image=image, mask=mask, category=category, source_size=(480, 640))
        members |= {f"{i:03d}.{suffix}": content for suffix, content in encode_cutout(cutout).items()}
    return write_tar(path, members)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_a_cutout_is_what_was_written(tmp_path: Path) -> None:
    bank = open_bank(str(write_bank(tmp_path / "b.tar", "zebra")))
    assert len(bank) == 5
    cutout = bank.get(3)
    assert (cutout.key, cutout.category, cutout.source_size) == ("003", "r", (480, 640))
    assert (cutout.image == 30).all()
    assert (cutout.mask == 255).all()


def test_categories_are_counted(tmp_path: Path) -> None:
    assert open_bank(str(write_bank(tmp_path / "b.tar", "banana"))).category_counts() == {
        "a": 3,
        "n": 2,
        "b": 1,
    }


def test_the_memory_keeps_what_was_used_last_within_its_size(tmp_path: Path) -> None:
    bank = open_bank(str(write_bank(tmp_path / "b.tar", "abcd")), cache_mb=1)  # two cut-outs, not three
    first = bank.get(0)
    bank.get(1)
    assert bank.get(0) is first
    second = bank.get(1)
    bank.get(2)
    assert bank.get(1) is second
    assert bank.get(0) is not first
    assert bank._cached_bytes == sum(c.image.nbytes + c.mask.nbytes for c in bank._cached.values())
    assert bank._cached_bytes <= BYTES_PER_MB


def test_no_memory_decodes_every_time(tmp_path: Path) -> None:
    bank = open_bank(str(write_bank(tmp_path / "b.tar", "a")), cache_mb=0)
    assert bank.get(0) is not bank.get(0)


def test_a_pickle_carries_no_pixels(tmp_path: Path) -> None:
    bank = open_bank(str(write_bank(tmp_path / "b.tar", "ab")))
    bank.get(0)
    pickled = pickle.dumps(bank)
    assert len(pickled) < 5000
    np.testing.assert_array_equal(pickle.loads(pickled).get(1).image, bank.get(1).image)


def test_shards_of_scenes_are_no_bank(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"k.image.png": b"", "k.label.png": b""})
    with pytest.raises(
        InputError,
        match=r"paste\.bank: sample k is no cut-out: it has image\.png, label\.png; needed are object",
    ):
        open_bank(str(path))


def test_an_empty_bank_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {})
    with pytest.raises(InputError, match=r"paste\.bank: .*s\.tar: holds no cut-outs"):
        open_bank(str(path))


def test_a_cutout_without_object_is_named(tmp_path: Path) -> None:
    bank: CutoutBank = open_bank(str(write_bank(tmp_path / "b.tar", "a", mask_value=127)))
    with pytest.raises(InputError, match=r"cut-out 000: mask\.png is empty"):
        bank.get(0)
