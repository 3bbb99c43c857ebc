from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.doctor import main
from shards.cutout import Cutout
from shards.examine import examine_folder, render_findings
from shards.tiles import encode_tiles
from tests.support.refused import refused
from tests.support.tars import encode, write_cutouts, write_shards, write_tar


def scene(key: str, label: np.ndarray) -> dict[str, bytes]:
    image = np.random.default_rng(0).integers(0, 256, (*label.shape, 3), np.uint8)
    return {f"{key}.image.tiles": encode_tiles(image), f"{key}.label.png": encode(label)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    road, half = np.zeros((10, 20), np.uint8), np.zeros((10, 20), np.uint8)
    half[5:] = 13
    half[:, 18:] = 255
    samples = {"train-0": scene("a", road), "train-1": scene("b", half), "val-0": scene("c", half)}
    return write_shards(tmp_path / "S", samples)


def test_counts_sizes_and_class_shares_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: 200 + 90 of 400 pixels are road, 90 car, 20 void."""
    main(["shards", str(folder), "--workers", "1"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "members 2 image.tiles, 2 label.png" in lines
    assert "pictures 20 x 10 (2)" in lines
    assert "0 road 290 0.72500 2" in lines
    assert "13 car 90 0.22500 1" in lines
    assert "17 motorcycle 0 0.00000 0" in lines
    assert "255 (void) 20 0.05000 1" in lines
    assert "every member was decoded; no problem found" in lines


def test_every_problem_is_found_in_one_go(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray((folder / "train-0.tar").read_bytes())
    content[700] ^= 255  # inside the picture
    (folder / "train-0.tar").write_bytes(content)
    (folder / "train-1.tar").unlink()
    with refused(r"train-0\.tar: bytes differ from the manifest's hash \(and 2 more\)"):
        main(["shards", str(folder)])
    told = capsys.readouterr().out
    assert "train-0.tar: sample a: image.tiles" in told
    assert "train-1.tar: No such file" in told
    assert "no problem found" not in told


def test_a_truncated_shard_and_a_wrong_label_are_problems(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "S", {"train-0": scene("a", np.full((4, 4), 77, np.uint8))})
    problems = examine_folder(str(folder))["train"].problems
    assert len(problems) == 1
    assert "sample a: label.png holds 77" in problems[0]
    path = folder / "train-0.tar"
    path.write_bytes(path.read_bytes()[:1000])
    assert any("train-0.tar: is " in problem for problem in examine_folder(str(folder))["train"].problems)


def test_shards_that_hold_nothing_are_a_problem(tmp_path: Path) -> None:
    empty = write_tar(tmp_path / "s.tar", {})
    with refused(r"s\.tar: holds no samples"):
        main(["shards", str(empty)])
    with refused("T: the manifest lists no shards"):
        main(["shards", str(write_shards(tmp_path / "T", {}))])


def test_a_key_in_two_shards_is_a_problem(tmp_path: Path) -> None:
    road = np.zeros((4, 4), np.uint8)
    folder = write_shards(tmp_path / "S", {"train-0": scene("a", road), "train-1": scene("a", road)})
    (problem,) = examine_folder(str(folder))["train"].problems
    assert "sample 'a' is already in" in problem


def test_bare_tar_files_and_cutouts_are_examined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, mask = np.zeros((6, 5, 3), np.uint8), np.full((6, 5), 255, np.uint8)
    good = Cutout("000000000001-1", image, mask, "zebra", (480, 640))
    empty = Cutout("000000000001-2", image, 0 * mask, "zebra", (480, 640))
    write_cutouts(tmp_path / "good.tar", [good])
    main(["shards", str(tmp_path / "g*.tar")])
    assert "categories 1: 1 zebra" in capsys.readouterr().out
    write_cutouts(tmp_path / "bad.tar", [empty])
    with refused(r"bad\.tar: cut-out 000000000001-2: the mask is empty"):
        main(["shards", str(tmp_path / "bad.tar")])


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        ([0, 1, 2, 5, 255, 255, 255, 255, 255], "no class from traffic light on, and 56% void: were these"),
        ([0, 255, 255, 255], "the labels hold 0 and 255 alone: if they are masks, an outlier is 254"),
        ([0, 1, 255, 255, 255], ""),
        ([0, 1, 2, 13, 255, 255, 255, 255, 255], ""),
    ],
)
def test_labels_that_are_a_mistake_as_a_rule_are_warned_of(
    tmp_path: Path, values: list[int], warning: str
) -> None:
    path = str(write_tar(tmp_path / "s.tar", scene("0", np.array([values], np.uint8))))
    text = render_findings(path, examine_folder(path, 1))
    assert ("warning" in text) is bool(warning)
    assert warning in text


def test_names_in_a_shard_cannot_forge_lines_of_the_report(tmp_path: Path) -> None:
    path = str(write_tar(tmp_path / "s.tar", {"a.x\n  no problem\x1b[2J": b""}))
    text = render_findings(path, examine_folder(path, 1))
    assert r"1 x\n  no problem\x1b[2j" in text
    assert all(line.isprintable() for line in text.splitlines())
