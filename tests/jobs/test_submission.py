"""A checkpoint becomes a package, and `jobs.doctor submission` says what a package is."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from eval.predict.scores import rba
from eval.predict.windows import SlidingPredictor
from jobs.doctor import main as doctor
from jobs.export import main as export
from models.segmenter import make_predictor
from models.weights.checkpoint import load_segmenter
from tests.support.evaluation import write_run
from tests.support.refused import refused


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path)


@pytest.fixture
def downloads(tmp_path) -> Path:
    folder = tmp_path / "downloads/dataset_AnomalyTrack/images"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for stem in ("validation0000", "zebra0000"):
        cv2.imwrite(str(folder / f"{stem}.jpg"), rng.integers(0, 256, (40, 64, 3), dtype=np.uint8))
    return tmp_path / "downloads"


def test_the_confidence_of_a_mask_model_for_bravo_is_its_share_of_the_evidence(run, downloads, tmp_path):
    image = cv2.imread(str(downloads / "dataset_AnomalyTrack/images/zebra0000.jpg"))
    (downloads / "bravo_ACDC").mkdir()
    cv2.imwrite(str(downloads / "bravo_ACDC/0.png"), image)
    given = ["--checkpoint", str(run), "--to", "bravo", "--datasets", str(downloads), "--device", "cpu"]
    export([*given, "--out", str(tmp_path / "out")])
    model = load_segmenter(run / "checkpoints/step-0000010")
    predictor = SlidingPredictor(make_predictor(model, "cpu"), model.image_size)
    evidence = predictor(image[..., ::-1].copy()).double()
    sure = cv2.imread(str(tmp_path / "out/bravo_ACDC/0_conf.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(sure / 65536, evidence.amax(dim=0) / evidence.sum(dim=0), atol=2e-5)
    assert json.loads((tmp_path / "out/submission.json").read_text())["score"] == "NormalizedMSP"


def test_an_export_holds_the_models_scores_and_passes_the_doctor(run, downloads, tmp_path, capsys):
    out = tmp_path / "out"
    given = ["--checkpoint", str(run), "--to", "smiyc", "--score", "RbA", "--datasets", str(downloads)]
    export([*given, "--out", str(out), "--device", "cpu"])
    assert capsys.readouterr().out.startswith(f"{out}: 2 images for smiyc, method rba_run\n")
    model = load_segmenter(run / "checkpoints/step-0000010")
    image = cv2.imread(str(downloads / "dataset_AnomalyTrack/images/zebra0000.jpg"))[..., ::-1].copy()
    class_scores = SlidingPredictor(make_predictor(model, "cpu"), model.image_size)(image)
    with h5py.File(out / "anomaly_p/rba_run/AnomalyTrack-all/zebra0000.hdf5") as file:
        np.testing.assert_array_equal(file["value"][:], rba(class_scores[None])[0].numpy().astype(np.float16))
    doctor(["submission", str(out), "--datasets", str(downloads)])
    told = capsys.readouterr().out
    assert "AnomalyTrack-all: 2 images, known are 110" in told
    assert told.endswith("no problem found\n")
    with h5py.File(out / "anomaly_p/rba_run/AnomalyTrack-all/zebra0000.hdf5", "w") as file:
        file["value"] = np.zeros((40, 64), np.float16)
    (out / "anomaly_p/rba_run/AnomalyTrack-all/validation0000.hdf5").unlink()
    with refused(r"out: 1 of 2 images missing, such as .*0000 \(and 1 more\)"):
        doctor(["submission", str(out)])
    assert "  problem: anomaly_p/rba_run/AnomalyTrack-all/zebra0000.hdf5: the same" in capsys.readouterr().out


OPTION_FAULTS = [
    ("--to bravo", "--datasets: --to bravo predicts images; name the folder that holds them"),
    ("--to onnx --method x", "--method: is for smiyc, fishyscapes, bravo; --to is onnx"),
    ("--to smiyc --datasets D --model_file x.py", "one of --checkpoint and .*; got both"),
    ("--to smiyc --datasets D --windows_at_once 0", "--windows_at_once: got 0; at least 1"),
    ("--to smiyc --datasets D --method a/b", "--method: got 'a/b'; a method's name"),
    ("--to smiyc --datasets D --score UNO", "has no outlier class, which UNO reads"),
    ("--to smiyc --datasets D --device tpu", "--device: got 'tpu'; allowed are auto"),
]


@pytest.mark.parametrize(("options", "text"), OPTION_FAULTS)
def test_an_option_that_does_not_fit_is_refused(run, downloads, tmp_path, options, text):
    given = options.replace(" D", f" {downloads}").split()
    with refused(text):
        export(["--checkpoint", str(run), "--out", str(tmp_path / "out"), *given])
    assert not (tmp_path / "out").exists()


def test_a_users_own_model_is_exported_too(downloads, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def build():\n    return lambda image: {'Red': image[..., 0].astype('float32') / 100}\n"
    )
    given = ["--model_file", str(tmp_path / "mine.py"), "--datasets", str(downloads)]
    export([*given, "--to", "smiyc", "--score", "Red", "--out", str(tmp_path / "out")])
    image = cv2.imread(str(downloads / "dataset_AnomalyTrack/images/zebra0000.jpg"))[..., ::-1]
    with h5py.File(tmp_path / "out/anomaly_p/mine/AnomalyTrack-all/zebra0000.hdf5") as file:
        expected = (image[..., 0].astype(np.float32) / 100).astype(np.float16)
        np.testing.assert_array_equal(file["value"][:], expected)
    with refused("--score: got 'MSP'; what .*mine.py answers gives Red"):
        export([*given, "--to", "smiyc", "--out", str(tmp_path / "other")])
    (downloads / "bravo_ACDC").mkdir()
    cv2.imwrite(str(downloads / "bravo_ACDC/0.png"), image)
    with refused("wants the 19 classes of Cityscapes too; .* answers logits of 0"):
        export([*given, "--to", "bravo", "--score", "Red", "--out", str(tmp_path / "other")])
    with refused("one of --checkpoint and --model_file is needed; got none of them"):
        export(["--to", "smiyc", "--datasets", str(downloads), "--out", str(tmp_path / "other")])
