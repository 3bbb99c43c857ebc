"""`jobs.prepare folders`: pictures and label maps of any classes become scenes, or one line says why not."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from jobs.prepare import main
from shards.manifest import read_manifest
from shards.picture import PNG_SIGNATURE
from shards.prepare.folders import read_classes
from shards.reader import open_shards
from shards.scene import decode_scene
from shards.schema import CITYSCAPES, OUTLIER_ID, VOID_ID
from tests.support.downloads import write_png
from tests.support.refused import refused

EXAMPLES = Path(__file__).parents[3] / "jobs/classes"
ROAD: dict[str, Any] = {"name": "road", "color": [1, 2, 3], "ids": [7]}
TREE: dict[str, Any] = {"name": "tree", "color": [4, 5, 6], "ids": [1]}
TABLE: dict[str, Any] = {"classes": [ROAD, TREE], "void": [255], "outlier": [30]}
IDS = np.repeat(np.array([[7, 1, 255, 30]], np.uint8), 4, axis=0)
TRAIN_IDS = np.repeat(np.array([[0, 1, VOID_ID, OUTLIER_ID]], np.uint8), 4, axis=0)
PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def write_classes(root: Path, table: object = TABLE) -> Path:
    (root / "classes.yaml").write_text(yaml.safe_dump(table))
    return root / "classes.yaml"


def prepare(root: Path, *extra: object, classes: Path | None = None) -> Path:
    places = ["--images", root / "images", "--labels", root / "labels", "--out", root / "S"]
    words = [*places, "--classes", classes or write_classes(root), "--workers", 1, *extra]
    main(["folders", *map(str, words)])
    return root / "S"


def write_frame(root: Path, image: str = "a.png", label: str = "a.png", ids: np.ndarray = IDS) -> None:
    write_png(root / "images" / image, PICTURE)
    write_png(root / "labels" / label, ids)


def test_numbers_of_label_files_become_train_ids_and_the_manifest_names_the_classes(tmp_path: Path) -> None:
    write_frame(tmp_path)
    shards = prepare(tmp_path, "--image_encoding", "png", "--name", "Mine")
    reader = open_shards([str(shards)], "train")
    sample = decode_scene(reader, 0)
    np.testing.assert_array_equal(sample.label, TRAIN_IDS)
    np.testing.assert_array_equal(sample.image, PICTURE[..., ::-1])
    assert reader.classes.colors == {"road": (1, 2, 3), "tree": (4, 5, 6)}
    options = json.loads((shards / "manifest.json").read_text())["options"]
    assert {name: options[name] for name in TABLE} == TABLE
    assert (read_manifest(shards).kind, reader.shards[0].title) == ("scenes", "Mine")
    bare = open_shards([f"{shards}/*.tar"], "train")
    assert (bare.classes, bare.shards[0].title) == (reader.classes, "Mine")
    (shards / "manifest.json").write_text("[]")  # of somebody else
    assert open_shards([f"{shards}/*.tar"], "train").classes == CITYSCAPES


def as_palette(ids: np.ndarray) -> bytes:
    """Encode numbers as entries of a palette whose colours say nothing, by hand: OpenCV writes none."""
    rows = b"".join(b"\0" + row.tobytes() for row in ids)
    header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], 8, 3, 0, 0, 0)
    parts = [(b"IHDR", header), (b"PLTE", bytes(768)), (b"tRNS", b"\0"), (b"IDAT", zlib.compress(rows))]
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (*parts, (b"IEND", b""))
    ]
    return PNG_SIGNATURE + b"".join(chunks)


def test_palettes_16_bits_and_colours_are_numbers_too(tmp_path: Path) -> None:
    table = {
        "classes": [ROAD | {"ids": [7, 3000]}, TREE | {"ids": [1, [9, 8, 7]]}],
        "void": [255],
        "outlier": [30, [0, 0, 1]],
    }
    write_frame(tmp_path, "wide.jpg", "wide.png", np.where(IDS == 7, 3000, IDS.astype(np.uint16)))
    write_frame(tmp_path, "palette.png", "palette.png")
    (tmp_path / "labels/palette.png").write_bytes(as_palette(IDS))
    colors = np.array([[(0, 0, 7), (7, 8, 9), (0, 0, 255), (1, 0, 0)]] * 4, np.uint8)  # B, G, R
    write_frame(tmp_path, "colours.png", "colours.png", colors)
    shards = prepare(tmp_path, classes=write_classes(tmp_path, table))
    reader = open_shards([str(shards)], "train")
    assert reader.keys == ("colours", "palette", "wide")
    for index in range(3):
        np.testing.assert_array_equal(decode_scene(reader, index).label, TRAIN_IDS)


LAYOUTS: dict[str, tuple[list[str], str, str, dict[str, tuple[str, ...]]]] = {
    "flat": ([], "x.png", "x.png", {"train": ("x",)}),
    "splits": ([], "val/b 1.jpg", "val/b 1.png", {"val": ("val_b_1",)}),
    "one split": (["--split", "val"], "x.png", "x.png", {"val": ("x",)}),
    "camvid": (
        ["--label_ending", "_L.png"], "0001TP_00.png", "0001TP_00_L.png", {"train": ("0001TP_00",)},
    ),
    "idd": (
        ["--image_ending", "_leftImg8bit.png", "--label_ending", "_gtFine_labellevel3Ids.png"],
        "val/4/000001_leftImg8bit.png", "val/4/000001_gtFine_labellevel3Ids.png", {"val": ("val_4_000001",)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    options, image, label, expected = LAYOUTS[layout]
    write_frame(tmp_path, image, label)
    (tmp_path / "labels/._junk.png").write_bytes(b"")
    manifest = read_manifest(prepare(tmp_path, *options))
    assert {s: tuple(k for e in manifest.select(s) for k in e.keys) for s in manifest.splits} == expected


@pytest.mark.parametrize(
    ("name", "count", "ids"), [("camvid", 11, (128, 64, 64)), ("idd", 26, 14), ("vistas", 19, 6)]
)
def test_the_example_tables(tmp_path: Path, name: str, count: int, ids: object) -> None:  # colours B, G, R
    table = read_classes(EXAMPLES / f"{name}.yaml")
    assert len(table) == count
    assert (table == CITYSCAPES) is (name == "vistas")
    shape = (4, 4) if isinstance(ids, int) else (4, 4, 3)
    write_frame(tmp_path, ids=np.full(shape, ids, np.uint8))
    shards = prepare(tmp_path, classes=EXAMPLES / f"{name}.yaml")
    label = decode_scene(open_shards([str(shards)], "train"), 0).label
    wanted = "wall" if name != "camvid" else "fence"
    assert set(np.unique(label)) == {table.names.index(wanted)}


FAULTS: list[tuple[object, str]] = [
    ({"classes": [ROAD, TREE | {"ids": [7]}]}, "classes: tree: id 7 is given twice, before in classes: road"),
    ({"classes": [ROAD, TREE | {"ids": [1, 1]}]}, "classes: tree: id 1 is given twice"),
    ({"classes": [ROAD, TREE], "void": [7]}, "void: id 7 is given twice, before in classes: road"),
    ({"classes": [ROAD, ROAD | {"ids": [9]}]}, "classes: road is given twice"),
    ({"classes": [{"name": "road", "ids": [7]}, TREE]}, r"missing classes\[0\]\.color"),
    ({"classes": [ROAD | {"colour": [0, 0, 0]}, TREE]}, r"classes\[0\]\.colour: unknown setting.*color"),
    ({"classes": [ROAD | {"color": [0, 0]}, TREE]}, r"classes\[0\]\.color: expected 3 values"),
    ({"classes": [ROAD | {"color": [0, 0, 256]}]}, r"road: color is \[0, 0, 256\]; 0\.\.255"),
    ({"classes": [ROAD | {"ids": []}, TREE]}, "road: has no ids"),
    ({"classes": [ROAD | {"ids": [-1]}, TREE]}, "id is -1; 0.."),
    ({"classes": [ROAD | {"ids": ["7"]}, TREE]}, r"ids\[0\]: expected int, got '7'"),
    ({"classes": [ROAD | {"name": "a\x1b[31m"}, TREE]}, "name is .*printable"),
    ({"classes": []}, "there are 0; 1 to 254"),
    ({"classes": [ROAD | {"name": str(i), "ids": [i]} for i in range(255)]}, "there are 255; 1 to 254"),
    ({"classes": [ROAD], "ignore": [0]}, "ignore: unknown setting"),
    ({"void": [0]}, "missing classes"),
    ([ROAD], "expected settings by name"),
]


@pytest.mark.parametrize(("table", "text"), FAULTS)
def test_a_bad_table_is_one_line(tmp_path: Path, table: object, text: str) -> None:
    write_frame(tmp_path)
    with refused(text) as caught:
        prepare(tmp_path, classes=write_classes(tmp_path, table))
    assert str(caught.value).startswith("--classes ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "S").exists()


def test_labels_and_pairs_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    with refused("--images .*images: is no folder"):
        prepare(tmp_path)
    write_frame(tmp_path, ids=np.where(IDS == 7, 9, IDS))
    with refused(r"labels/a\.png: holds 9, which the table of classes does not know; give each to a class"):
        prepare(tmp_path)
    write_frame(tmp_path, ids=np.dstack([IDS * 0, IDS, IDS]))
    with refused(r"holds 257 \[1, 1, 0\].*1799 \[7, 7, 0\]"):
        prepare(tmp_path)
    write_frame(tmp_path, ids=np.dstack([IDS] * 4))
    with refused("is colour with alpha of 8 bits; grey of 8 bits or"):
        prepare(tmp_path)
    write_frame(tmp_path, ids=IDS[:2])
    with refused(r"labels/a\.png is 4x2 pixels, but .*images/a\.png is 4x4"):
        prepare(tmp_path)
    write_frame(tmp_path, "b 1.png", "b 1_L.png")
    with refused(r"picture .*b 1\.png has no label; --image_ending and --label_ending say"):
        prepare(tmp_path)
    write_frame(tmp_path, "b 1.png", "b 1.png")
    with refused(r"label .*b 1_L\.png has no picture"):
        prepare(tmp_path)
    (tmp_path / "labels/b 1_L.png").unlink()
    write_frame(tmp_path, "b_1.png", "b_1.png")
    with refused(r"b_1\.png: .*b 1\.png would share the key b_1; rename one"):
        prepare(tmp_path)
    with refused(r"--labels .*: holds no \*_X\.png down to 4 folders"):
        prepare(tmp_path, "--label_ending", "_X.png")
    assert not (tmp_path / "S").exists()
