"""The evaluation program, with an untrained miniature model: what it writes, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from eval.predict.predictions import read_cache
from eval.predict.queries import QueryOutputs, min_distance, pixel_class_scores, uno
from eval.predict.score_names import NEEDS
from eval.predict.scores import QUERY_SCORES, SCORES
from eval.report.record import parse_json
from eval.sketch import compare_resampled, read_sketch, resample_sketch, sketch_path
from jobs.evaluate import EvaluateOptions, main
from jobs.work.evaluate import evaluate
from models import segmenter
from models.config import OutlierHeadConfig
from models.erfnet import ERFNet
from models.segmenter import choose_device, make_predictor, require_readable
from tests.models.tiny import make_model
from tests.support.evaluation import options_for, write_run, write_val_shards
from tests.support.refused import refused
from tests.support.tars import encode


def test_everything_is_written(tmp_path):
    options = options_for(tmp_path, cityscapes=write_val_shards(tmp_path / "val"), scores=("MSP", "RbA"))
    records = evaluate(options)
    names = "RoadAnomaly.png RoadAnomaly21.png cells cityscapes.csv per_image.csv report.html results.csv "
    names += "results.json results.md results.tex sketches"
    assert sorted(path.name for path in options.out.iterdir()) == names.split()
    assert parse_json((options.out / "results.json").read_text(), "results.json") == records
    assert len(records) == 2 * 2
    first = records[0]
    checkpoint = str(options.checkpoint / "checkpoints" / "step-0000010")
    assert (first.model, first.checkpoint) == ("rba_run", checkpoint)
    assert (first.num_images, first.num_pixels) == (2, 2 * 40 * 64)
    assert first.miou is not None
    assert 0 < first.miou < 0.5
    assert re.fullmatch(r"(jpg|png) frames of \d+ x \d+", first.miou_images)
    assert f"mIoU on {first.miou_images}." in (options.out / "results.md").read_text()
    assert cv2.imread(str(options.out / "RoadAnomaly.png")) is not None
    assert None not in (first.ap_ci, first.f1_star, first.best_f1, first.ece, first.ece_ci, first.miou_ci)
    assert len((options.out / "per_image.csv").read_text().splitlines()) == 1 + 4 * 2
    ap = {record.score: record.ap for record in records if record.dataset == "Road Anomaly"}
    msp, rba = (
        resample_sketch(read_sketch(sketch_path(options.out, "Road Anomaly", "native", name)))
        for name in ("MSP", "RbA")
    )
    assert compare_resampled([[msp]], [[rba]], "ap").difference == pytest.approx(
        ap["MSP"] - ap["RbA"], abs=1e-3
    )


def test_the_command_line_prints_the_table(tmp_path, capsys):
    options = options_for(tmp_path)
    main([
        "--checkpoint", str(options.checkpoint), "--datasets", str(options.datasets),
        "--out", str(options.out), "--scores", "RbA", "MSP", "--limit", "1", "--name", "mine",
        "--precision", "bf16", "--pictures", "0", "--device", "cpu",
    ])  # fmt: skip
    entries = json.loads((options.out / "results.json").read_text())
    found = [(e["score"], e["num_images"], e["miou"]) for e in entries[:2]]
    assert found == [("RbA", 1, None), ("MSP", 1, None)]
    assert capsys.readouterr().out == (options.out / "results.md").read_text()
    assert "| mine (first 1 frames) | RbA |" in (options.out / "results.md").read_text()
    assert not list(options.out.glob("*.png"))


@pytest.fixture
def erfnet(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("models.erfnet.ERFNet.image_size", (32, 64))
    torch.manual_seed(0)
    weights = {f"module.{name}": value for name, value in ERFNet(20).state_dict().items()}
    torch.save(weights, tmp_path / "erfnet.pth")
    return tmp_path / "erfnet.pth"


def test_the_baseline_goes_through_the_same_evaluation_but_has_no_queries(tmp_path, erfnet):
    options = options_for(tmp_path, checkpoint=erfnet, components=False, limit=1, pictures=0)
    with refused(r"--scores: .*erfnet.pth has no queries, which EAM reads"):
        evaluate(dataclasses.replace(options, scores=("EAM",)))
    records = evaluate(options)
    assert {record.score for record in records} == {"MSP", "MaxLogit", "MaxEntropy", "RbA"}
    assert all(record.ap is not None and 0 < record.ap < 1 for record in records)


ALL_SCORES = [name for name in (*SCORES, *QUERY_SCORES) if NEEDS[name] != "a fitted outlier head"]


def test_every_score_comes_from_one_pass_where_the_model_has_what_it_reads(tmp_path):
    parts = {"class_head": "isomax", "outlier_class": "trained", "outlier_head": OutlierHeadConfig(width=8)}
    checkpoint = write_run(tmp_path / "uno", **parts)
    val = write_val_shards(tmp_path / "val")
    settings = {"scores": tuple(ALL_SCORES), "cityscapes": val, "cache": tmp_path / "cache", "pictures": 1}
    options = options_for(tmp_path, checkpoint=checkpoint, components=False, limit=1, **settings)
    shutil.rmtree(options.datasets / "RoadAnomaly21")
    records = evaluate(options)
    assert [record.score for record in records] == ALL_SCORES
    assert all(record.ap is not None and 0 < record.ap < 1 for record in records)
    assert all(record.miou is not None and 0 < record.miou < 0.5 for record in records)
    assert read_cache(tmp_path / "cache")[0].entropic_scale == 10


def test_query_scores_of_a_window_are_those_of_the_model():
    model = make_model(class_head="isomax", outlier_class="trained")
    with torch.no_grad():
        model.class_head.distance_scale.fill_(-1.5)
        window = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
        prediction = model(window)
    maps = make_predictor(model, "cpu", scores=("UNO", "RbA", "MinDistance"))(window)
    assert maps.shape == (2, 19 + 2, 32, 32)
    masks, classes, size = prediction.mask_logits[-1], prediction.class_logits[-1], (32, 32)
    torch.testing.assert_close(maps[:, :19], pixel_class_scores(masks, classes, size)[:, :19])
    queries = QueryOutputs(masks, classes, 19, prediction.class_distances[-1], 3.0)
    torch.testing.assert_close(maps[:, 19], uno(queries.resized(size)))
    torch.testing.assert_close(maps[:, 20], min_distance(queries.resized(size)))
    torch.testing.assert_close(make_predictor(model, "cpu")(window), maps[:, :19])


@pytest.mark.parametrize("score", ["NormalizedMSP", "EAM"])
def test_logits_have_no_share_of_evidence(score):
    text = f"--scores: net.pth has no queries, which {score} reads"
    with refused(text):
        require_readable(ERFNet(20), ("MSP", score), "--scores: net.pth")


def test_the_void_channel_takes_no_part():
    torch.manual_seed(0)
    network = ERFNet(20).eval()
    window = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    class_scores = make_predictor(network, "cpu")(window)
    assert torch.equal(class_scores, network(window)[:, :19])


def test_a_broken_mask_is_found_before_the_model_is_loaded(tmp_path, monkeypatch):
    options = options_for(tmp_path)
    (options.datasets / "RoadAnomaly/labels_masks/1.png").write_bytes(encode(np.full((40, 64), 7, np.uint8)))
    monkeypatch.delattr(segmenter, "load_segmenter")
    with refused(r"1.png: label value 7; allowed in RoadAnomaly: 0, 2"):
        evaluate(options)


SETTING_FAULTS = [
    ({"scores": ("msp",)}, "--scores: unknown score 'msp'"),
    (
        {"scores": ("MSP", "MinDistance")},
        "--scores: .*step-0000010 has no class distances, which MinDist",
    ),
    ({"scores": ("MSP", "UNO")}, "--scores: .*step-0000010 has no outlier class, which UNO reads"),
    ({"protocol": ("SMIYC",)}, "--protocol: no protocol 'SMIYC'; available: native, course-512, smiyc"),
    ({"checkpoint": Path("nowhere")}, "checkpoint nowhere: no such file or folder"),
    ({"datasets": Path("nowhere")}, "--datasets nowhere: no such folder"),
    ({"cityscapes": Path("nowhere")}, "nowhere: no shard found"),
    ({"limit": 0}, "--limit: got 0; at least 1"),
    ({"windows_at_once": 0}, "--windows_at_once: got 0; at least 1"),
    ({"pictures": -1}, "--pictures: got -1; at least 0"),
    ({"device": "tpu"}, "--device: got 'tpu'; allowed are auto, cpu, cuda and cuda:N"),
]


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> EvaluateOptions:
    return options_for(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize(("changes", "message"), SETTING_FAULTS)
def test_a_wrong_setting_is_named(options, changes, message):
    with refused(message):
        evaluate(dataclasses.replace(options, **changes))
    assert not options.out.exists()


def test_a_model_of_other_classes_has_no_miou_on_cityscapes(tmp_path):
    checkpoint = write_run(tmp_path / "seven", num_classes=7)
    options = options_for(tmp_path, checkpoint=checkpoint, cityscapes=write_val_shards(tmp_path / "val"))
    with refused("--cityscapes: .* has 7 classes, Cityscapes 19; leave it out"):
        evaluate(options)
    assert not options.out.exists()


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("cuda:0") == torch.device("cuda:0")
    with refused("--device cuda:1: this machine has 1 CUDA devices"):
        choose_device("cuda:1")


def test_a_predictor_of_a_network_whose_masks_are_not_released_masks_them():
    model = make_model().eval()
    window = torch.randint(0, 256, (3, 3, *model.image_size), dtype=torch.uint8)
    unmasked = torch.zeros(model.num_blocks, 1, model.num_queries, dtype=torch.bool)
    found = make_predictor(model, "cpu", unmasked=unmasked)(window)
    with torch.no_grad():
        prediction = model(window, unmasked.expand(-1, 3, -1))
    masks, classes = prediction.mask_logits[-1], prediction.class_logits[-1]
    torch.testing.assert_close(found, pixel_class_scores(masks, classes, model.image_size))
    assert not torch.allclose(found, make_predictor(model, "cpu")(window), atol=1e-6)
