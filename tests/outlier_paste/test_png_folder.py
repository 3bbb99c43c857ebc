from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from outlier_paste.bank import open_bank
from outlier_paste.config import PasteConfig
from outlier_paste.paste import build_paste
from shards.errors import InputError
from shards.schema import OUTLIER_ID, Sample


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


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"paste\.bank: .*: holds neither manifest\.json, .* nor PNG files"):
        open_bank(str(tmp_path))


@pytest.mark.parametrize("kind", ["no alpha", "16 bits", "grey", "no picture"])
def test_a_file_without_alpha_is_named_when_the_bank_is_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    if kind == "16 bits":
        write_png(path, dtype=np.uint16)
    elif kind == "no picture":
        path.write_bytes(b"hello")
    else:
        cv2.imwrite(str(path), np.zeros((9, 9, 3) if kind == "no alpha" else (9, 9), np.uint8))
    with pytest.raises(
        InputError, match=r"paste\.bank: .*x\.png: .*; a PNG of 8 bits with an alpha channel is needed"
    ):
        open_bank(str(tmp_path))


def test_a_transparent_or_broken_picture_is_named_when_it_is_used(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.s_[0:0, 0:0])
    write_png(tmp_path / "b.png")
    content = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[:33])  # the header and nothing else
    bank = open_bank(str(tmp_path))
    with pytest.raises(InputError, match=r"cut-out a: .*a\.png is transparent everywhere"):
        bank.shape(0)
    with pytest.raises(InputError, match=r"cut-out b: .*b\.png cannot be decoded"):
        bank.shape(1)
