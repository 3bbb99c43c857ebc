"""Scenes of own classes: prepared, trained on, evaluated and exported; annotated outliers among them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from jobs.evaluate import main as evaluate
from jobs.export import main as export
from jobs.prepare import main as prepare
from models.config import read_description
from models.weights.checkpoint import load_model
from shards.schema import CITYSCAPES
from tests.support.downloads import write_png
from tests.support.evaluation import write_test_sets
from tests.support.refused import refused
from tests.trainer.small_run import (  # noqa: F401
    _fresh_accelerator,
    forget_after,
    make_arguments,
    read_scalars,
    train,
)

End = Callable[..., tuple[int, list[str]]]


def names_of(count: int) -> list[str]:
    return list(CITYSCAPES.names) if count == 19 else [f"thing {i}" for i in range(count)]


def write_scenes(root: Path, count: int, outlier: bool = True, title: str = "Things") -> Path:
    """Draw four scenes of squares in two splits, and prepare them."""
    rng = np.random.default_rng(count)
    for split in ("train", "val"):
        for i in range(2):
            ids = rng.permutation(np.resize(np.arange(count, dtype=np.uint8), 256)).reshape(16, 16)
            label = cv2.resize(ids, (48, 48), interpolation=cv2.INTER_NEAREST)
            picture = cv2.applyColorMap(label, cv2.COLORMAP_HSV)
            label[:4] = 255
            if outlier:
                label[20:32, 20:32] = 254
            write_png(root / f"images/{split}/{i}.png", picture)
            write_png(root / f"labels/{split}/{i}.png", label)
    classes = [{"name": n, "color": [i, 0, 255 - i], "ids": [i]} for i, n in enumerate(names_of(count))]
    (root / "c.yaml").write_text(yaml.safe_dump({"classes": classes, "void": [255], "outlier": [254]}))
    places = ["--images", f"{root}/images", "--labels", f"{root}/labels", "--classes", f"{root}/c.yaml"]
    prepare(["folders", *places, "--out", str(root / "S"), "--workers", "1", "--name", title])
    return root / "S"


SHORT = ("--loop.steps", "2", "--loop.save_every", "1", "--validation.limit", "1", "--loop.eval_every", "2")


@pytest.mark.parametrize("count", [3, 19, 150])
def test_own_classes_from_folders_to_results(tmp_path, count):
    scenes, names = str(write_scenes(tmp_path / "in", count)), names_of(count)
    outlier = ("--loss.outlier", "rba", "class_claim")
    train(tmp_path, scenes, *outlier, "--validation.shards", scenes, *SHORT)
    checkpoint = tmp_path / "run/checkpoints/step-0000002"
    config = read_description(checkpoint)[0]
    assert list(config.class_table.names) == names
    assert (config.num_classes, config.trained_on) == (count, ("Things",))
    assert ('"classes"' in (checkpoint / "model.json").read_text()) is (count != 19)  # Cityscapes' own
    if count == 3:
        forget_after(1, tmp_path / "run")
        train(tmp_path, scenes, *outlier, "--validation.shards", scenes, *SHORT, resume=True)
    words = ["--checkpoint", str(tmp_path / "run"), "--datasets", str(write_test_sets(tmp_path / "sets"))]
    words += ["--out", str(tmp_path / "E"), "--device", "cpu", "--scores", "RbA", "--limit", "1"]
    if count != 3:  # whose page is read
        words += ["--pictures", "0", "--components", "False"]
    evaluate([*words, "--cityscapes", scenes])
    with (tmp_path / "E/cityscapes.csv").open() as file:
        assert [row["class"] for row in csv.DictReader(file)] == names
    (record, *_) = json.loads((tmp_path / "E/results.json").read_text())
    assert 0 <= record["miou"] <= 1
    assert record["trained_on"] == "Things"
    assert "Scenes that run (first 1 frames) trained on: Things." in (tmp_path / "E/results.md").read_text()
    if count == 3:
        assert "thing 0" in (tmp_path / "E/report.html").read_text()
    export(["--checkpoint", str(checkpoint), "--to", "safetensors", "--out", str(tmp_path / "x")])
    assert load_model(tmp_path / "x/model.safetensors").config.class_table.colors == config.class_table.colors


def test_the_record_of_a_model_goes_through_huggingface(tmp_path):
    scenes = str(write_scenes(tmp_path / "in", 3))
    train(tmp_path, scenes, "--loop.steps", "1")
    export(["--checkpoint", str(tmp_path / "run"), "--to", "huggingface", "--out", str(tmp_path / "hf")])
    config = load_model(tmp_path / "hf").config
    assert (list(config.classes), config.trained_on) == (names_of(3), ("Things",))
    assert json.loads((tmp_path / "hf/config.json").read_text())["id2label"]["2"] == "thing 2"


def test_annotated_outliers_train_alone_and_beside_pasted_ones(tmp_path, cutout_shard):
    scenes = str(write_scenes(tmp_path / "in", 3))
    lone = ("--loss.outlier", "rba", "--loop.steps", "2")
    pasted = ("--paste.bank", cutout_shard, "--paste.probability", "1", "--name", "both")
    for name, extra in (("run", ()), ("both", pasted)):
        train(tmp_path, scenes, *lone, *extra)
        values = [value for _, value in read_scalars(tmp_path / name)["Loss/rba"]]
        assert len(values) == 2
        assert all(value > 0 for value in values)
    without = str(write_scenes(tmp_path / "other", 3, outlier=False))
    with refused("loss.outlier: there are no outliers for rba: none is pasted, and no label of 2 holds 254"):
        train(tmp_path, without, *lone, "--name", "none")


def test_vistas_beside_cityscapes_is_told_and_goes_along(tmp_path):
    first = str(write_scenes(tmp_path / "in", 19, title="Mapillary Vistas"))
    train(tmp_path, first, "--loop.steps", "1", "--loop.save_every", "1")
    again = ("--model.weights", str(tmp_path / "run"), "--loop.steps", "1", "--name", "more")
    train(tmp_path, str(write_scenes(tmp_path / "own", 19, title="Mine")), *again)
    described = read_description(tmp_path / "more/checkpoints/step-0000001")[0]
    assert described.trained_on == ("Mapillary Vistas", "Mine")


def test_classes_that_do_not_fit_are_one_line(tmp_path, scene_shards, cutout_shard, end):
    own = str(write_scenes(tmp_path / "in", 3))
    other = write_scenes(tmp_path / "other", 3)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["options"]["classes"][1]["name"] = "stone"
    (other / "manifest.json").write_text(json.dumps(manifest))
    train(tmp_path, scene_shards, "--loop.steps", "1", "--loop.save_every", "1", "--name", "nineteen")
    weights = ("--model.weights", str(tmp_path / "nineteen"))
    pasted = ("--paste.placement", "road", "--paste.probability", "1", "--paste.bank", cutout_shard)
    for shards, extra, text in (
        (own, weights, "has 19 classes, the shards 3; --init.skip class_head starts its class head anew"),
        (own, ("--model.num_classes", "19"), "num_classes must be 3, as many as the shards have, got 19"),
        (own, ("--validation.shards", str(other)), "has 'thing 1' as class 1, the shards 'stone'"),
        (own, ("--data.shards", own, str(other)), "has 'stone' as class 1, .* 'thing 1'; scenes of one run"),
        (own, pasted, "paste.placement road: needs a class 'road'; there are 3 classes .thing 0, thing 1, "),
    ):
        code, lines = end("finetune", *make_arguments(tmp_path, shards, *extra))
        assert (code, re.search(text, lines[-1]) is not None) == (2, True), lines
    train(tmp_path, own, *weights, "--init.skip", "class_head", "--loop.steps", "1", "--name", "three")
    words = ["--checkpoint", tmp_path / "nineteen", "--datasets", write_test_sets(tmp_path / "sets")]
    code, lines = end("evaluate", *words, "--out", tmp_path / "E", "--cityscapes", own, "--device", "cpu")
    assert code == 2
    assert "has 19 classes, Things 3; leave it out to measure anomaly scores alone" in lines[-1]
