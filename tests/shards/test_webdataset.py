"""The shards are WebDataset's: the pipeline of docs/sample-format.md reads them without our code."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from shards.prepare.plan import EncodedSample, FolderPlan, split_into_shards
from shards.prepare.writer import write_folder

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "sample-format.md"
SIZE = (12, 20)


def encode(numbers: tuple[int, ...]) -> list[EncodedSample]:
    samples: list[EncodedSample] = []
    for number in numbers:
        picture = cv2.imencode(".jpg", np.full((*SIZE, 3), 5 * number, np.uint8))[1].tobytes()
        label = cv2.imencode(".png", np.full(SIZE, number % 19, np.uint8))[1].tobytes()
        samples.append((f"frame_{number:03d}", {"image.jpg": picture, "label.png": label}))
    return samples


@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # webdataset's, closed by gc.collect below
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_documented_pipeline_reads_every_scene_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    shards = split_into_shards(range(40), 5, encode, name="cityscapes", split="train")
    write_folder(FolderPlan("cityscapes", "x", "jpeg", {}, shards, []), tmp_path / "S", workers=1)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code.replace("000046", "000007").replace("num_workers=2", f"num_workers={workers}"), scope)
    seen = {}
    for keys, pictures, labels in scope["loader"]:
        for key, picture, label in zip(keys, pictures, labels, strict=True):
            assert key not in seen
            seen[key] = (int(picture[0, 0, 0]), int(label[0, 0]), tuple(picture.shape))
    gc.collect()
    assert sorted(seen) == [f"frame_{i:03d}" for i in range(40)]
    assert list(seen) != sorted(seen)
    for i in range(40):
        assert seen[f"frame_{i:03d}"] == (pytest.approx(5 * i, abs=1), i % 19, (*SIZE, 3))
