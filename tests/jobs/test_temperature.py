"""From a cached evaluation to the table over temperatures."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.report.record import Record, parse_json
from jobs.temperature import TemperatureOptions, main
from jobs.work.evaluate import evaluate
from jobs.work.temperature import sweep
from models.config import OutlierHeadConfig
from tests.support.evaluation import options_for, write_run, write_val_shards
from tests.support.refused import refused
from tests.support.tars import encode


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Predictions of an untrained model on two benchmarks, a validation split and Cityscapes val."""
    root = tmp_path_factory.mktemp("cached")
    evaluate_with_cache(root, cityscapes=write_val_shards(root / "val"))
    return root / "cache"


def evaluate_with_cache(root: Path, **changes: object) -> list[Record]:
    options = options_for(root, cache=root / "cache", sets=root / "o", components=False, **changes)
    (root / "o").write_text("mine: {use: validation, name: Mine}\n")
    rng = np.random.default_rng(4)
    for name in ("images", "labels_masks"):
        (options.datasets / "mine" / name).mkdir(parents=True)
    mask = (rng.random((40, 64)) < 0.2).astype(np.uint8)
    (options.datasets / "mine/images/a.png").write_bytes(encode(rng.integers(0, 256, (40, 64, 3), np.uint8)))
    (options.datasets / "mine/labels_masks/a.png").write_bytes(encode(mask))
    return evaluate(options)


def test_a_ratio_keeps_its_order_and_is_calibrated_on_the_validation_set(cache, tmp_path):
    head = OutlierHeadConfig(width=8)
    measured = evaluate_with_cache(tmp_path, checkpoint=write_run(tmp_path / "head", outlier_head=head))
    options = {"scores": ("LikelihoodRatio", "MSP"), "grid": (2.0,), "validation": "mine"}
    sweep(TemperatureOptions(cache=tmp_path / "cache", out=tmp_path / "swept", **options))
    records = parse_json((tmp_path / "swept" / "results.json").read_text(), "results.json")
    found = [record for record in records if record.score == "LikelihoodRatio"]
    assert {(r.temperature_from, r.temperature == 1) for r in found} == {(None, True), ("Mine by NLL", False)}
    expected = {r.dataset: r.ap for r in measured if r.score == "LikelihoodRatio"}
    assert {r.dataset for r in found} == expected.keys()
    assert all(r.ap == pytest.approx(expected[r.dataset], abs=1e-5) for r in found)
    with refused("--scores: LikelihoodRatio is of an outlier head; the cache's model"):
        sweep(TemperatureOptions(cache=cache, out=tmp_path / "no", scores=("LikelihoodRatio",)))


def test_the_table_has_the_seeds_rows_and_the_oracle_its_own_column(cache, tmp_path, capsys):
    main([
        "--cache", str(cache), "--out", str(tmp_path / "out"), "--validation", "mine", "--oracle", "True",
        "--scores", "MSP", "RbA", "--grid", "0.5", "2",
    ])  # fmt: skip
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "out" / "temperature.md").read_text()
    for method in ("MSP", "MSP (T = 0.5)", "MSP (T = 0.75)", "MSP (T = 1.1)", "RbA (query T) (T = 0.5)"):
        assert f"| {method} |" in printed
    assert "from Mine)" in printed
    assert "oracle T | oracle AuPRC" in printed
    assert "Calibration temperature" in printed
    records = parse_json((tmp_path / "out" / "results.json").read_text(), "results.json")
    sources = {record.temperature_from for record in records}  # an oracle is no result
    assert sources == {None, "Mine", "Cityscapes val by NLL"}
    calibrated = [record for record in records if record.temperature_from == "Cityscapes val by NLL"]
    assert {record.score for record in calibrated} == {"MSP", "RbA"}  # of pixels, as the calibration is
    assert len({record.temperature for record in calibrated}) == 1
    with (tmp_path / "out" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    for dataset in ("SMIYC RA-21", "Road Anomaly"):
        of_set = [r for r in rows if (r["dataset"], r["score"], r["level"]) == (dataset, "MSP", "pixel")]
        (marked,) = [row for row in of_set if row["oracle"]]
        assert float(marked["ap"]) == max(float(r["ap"]) for r in of_set if r["precision"] == "float32")
        assert {row["temperature"] for row in of_set if row["precision"] == "float16"}  # tried, not reported
    assert not [row for row in rows if row["use"] == "validation" and row["oracle"]]
    assert cv2.imread(str(tmp_path / "out" / "temperature.png")) is not None


def test_without_validation_nothing_is_chosen(cache, tmp_path):
    table = sweep(TemperatureOptions(cache=cache, out=tmp_path / "out", scores=("MSP",), grid=(2.0,)))
    assert "oracle" not in table
    records = parse_json((tmp_path / "out" / "results.json").read_text(), "results.json")
    assert {record.temperature for record in records if not record.temperature_from} == {1.0, 0.5, 0.75, 1.1}
    assert not any(record.temperature_from == "Mine" for record in records)


def test_temperature_one_is_the_evaluation_to_half_precision(cache, tmp_path):
    sweep(TemperatureOptions(cache=cache, out=tmp_path / "out", grid=(1.0,)))
    ours = parse_json((tmp_path / "out" / "results.json").read_text(), "")
    theirs = parse_json((cache.parent / "out" / "results.json").read_text(), "")
    evaluated = {(r.score, r.dataset): r.ap for r in theirs}
    (miou,) = {r.miou for r in theirs}
    assert all(r.miou == pytest.approx(miou, abs=0.02) for r in ours if "query" not in r.score)
    assert all(r.miou is not None and r.sees == theirs[0].sees for r in ours)
    plain = [r for r in ours if r.temperature == 1 and (r.score, r.dataset) in evaluated]
    assert len(plain) == 3 * 3
    for record in plain:
        assert record.ap == pytest.approx(evaluated[record.score, record.dataset], abs=2e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"validation": "RoadAnomaly"},
            "--validation RoadAnomaly: is a benchmark; what is chosen on it must",
        ),
        ({"validation": "no"}, "--validation no: not in the cache, which holds RoadAnomaly, RoadAnomaly21"),
        ({"cache": Path("nowhere")}, "--cache nowhere: no cache"),
        ({"grid": (0.0,)}, r"--grid: got 0.0; temperatures are above 0"),
        ({"scores": ("UNO",)}, "--scores: got UNO; allowed are MSP"),
        ({"scores": ()}, "--scores: got nothing; allowed are MSP"),
    ],
    ids=["benchmark", "absent", "no cache", "cold", "unknown", "no score"],
)
def test_a_wrong_setting_is_named(cache, tmp_path, changes, message):
    with refused(message):
        sweep(TemperatureOptions(**{"cache": cache, "out": tmp_path / "out", **changes}))
    assert not (tmp_path / "out").exists()
