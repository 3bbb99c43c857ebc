"""From a cached evaluation to the table over temperatures."""

from __future__ import annotations

import contextlib
import csv
import io
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.report.record import Record, parse_json
from jobs.temperature import TemperatureOptions, main
from jobs.work.evaluate import evaluate
from jobs.work.temperature import sweep
from models.config import OutlierHeadConfig
from tests.support.evaluation import options_for, write_run, write_set, write_val_shards
from tests.support.refused import refused

SCORES = ("MSP", "MaxEntropy", "RbA", "LikelihoodRatio")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Predictions of an untrained model with an outlier head, and its evaluation beside them."""
    root = tmp_path_factory.mktemp("cached")
    options = options_for(
        root,
        checkpoint=write_run(root / "head", outlier_head=OutlierHeadConfig(width=8)),
        cityscapes=write_val_shards(root / "val"),
        cache=root / "cache",
        sets=root / "o",
        scores=SCORES,
        components=False,
        pictures=0,
    )
    shutil.rmtree(options.datasets / "RoadAnomaly21")
    (root / "o").write_text("mine: {use: validation, name: Mine}\n")
    rng = np.random.default_rng(4)
    mask = (rng.random((40, 64)) < 0.2).astype(np.uint8)
    write_set(options.datasets / "mine", [(rng.integers(0, 256, (40, 64, 3), np.uint8), mask)])
    evaluate(options)
    return root / "cache"


def read_records(out: Path) -> list[Record]:
    return parse_json((out / "results.json").read_text(), "results.json")


@pytest.fixture(scope="module")
def swept(cache) -> Path:
    """The files of a sweep with all there is, and `printed`."""
    out, printed = cache.parent / "swept", io.StringIO()
    with contextlib.redirect_stdout(printed):
        main([
            "--cache", str(cache), "--out", str(out), "--validation", "mine", "--oracle", "True",
            "--scores", *SCORES, "--grid", "0.5", "2",
        ])  # fmt: skip
    (out / "printed").write_text(printed.getvalue())
    return out


def test_a_ratio_keeps_its_order_and_is_calibrated_on_the_validation_set(cache, swept):
    found = [record for record in read_records(swept) if record.score == "LikelihoodRatio"]
    assert {(r.temperature_from, r.temperature == 1) for r in found} == {(None, True), ("Mine by NLL", False)}
    measured = read_records(cache.parent / "out")
    expected = {r.dataset: r.ap for r in measured if r.score == "LikelihoodRatio"}
    assert {r.dataset for r in found} == expected.keys()
    assert all(r.ap == pytest.approx(expected[r.dataset], abs=1e-5) for r in found)


def test_the_table_has_the_seeds_rows_and_the_oracle_its_own_column(swept):
    printed = (swept / "printed").read_text()
    assert printed == (swept / "temperature.md").read_text()
    for method in ("MSP", "MSP (T = 0.5)", "MSP (T = 0.75)", "MSP (T = 1.1)", "RbA (query T) (T = 0.5)"):
        assert f"| {method} |" in printed
    assert "from Mine)" in printed
    assert "oracle T | oracle AuPRC" in printed
    assert "Calibration temperature" in printed
    records = read_records(swept)
    sources = {record.temperature_from for record in records}  # an oracle is no result
    assert sources == {None, "Mine", "Mine by NLL", "Cityscapes val by NLL"}
    calibrated = [record for record in records if record.temperature_from == "Cityscapes val by NLL"]
    assert {record.score for record in calibrated} == set(SCORES[:-1])  # of pixels, as the calibration is
    assert len({record.temperature for record in calibrated}) == 1
    with (swept / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    of_set = [r for r in rows if (r["dataset"], r["score"], r["level"]) == ("Road Anomaly", "MSP", "pixel")]
    (marked,) = [row for row in of_set if row["oracle"]]
    assert float(marked["ap"]) == max(float(r["ap"]) for r in of_set if r["precision"] == "float32")
    assert {row["temperature"] for row in of_set if row["precision"] == "float16"}  # tried, not reported
    assert not [row for row in rows if row["use"] == "validation" and row["oracle"]]
    assert cv2.imread(str(swept / "temperature.png")) is not None


def test_without_validation_nothing_is_chosen(cache, tmp_path):
    table = sweep(TemperatureOptions(cache=cache, out=tmp_path / "out", scores=("MSP",), grid=(2.0,)))
    assert "oracle" not in table
    records = read_records(tmp_path / "out")
    assert {record.temperature for record in records if not record.temperature_from} == {1.0, 0.5, 0.75, 1.1}
    assert not any(record.temperature_from == "Mine" for record in records)


def test_temperature_one_is_the_evaluation_to_half_precision(cache, swept):
    ours, theirs = read_records(swept), read_records(cache.parent / "out")
    evaluated = {(r.score, r.dataset): r.ap for r in theirs}
    (miou,) = {r.miou for r in theirs}
    assert all(r.miou == pytest.approx(miou, abs=0.02) for r in ours if "query" not in r.score)
    assert all(r.miou is not None and r.sees == theirs[0].sees for r in ours)
    plain = [r for r in ours if r.temperature == 1 and (r.score, r.dataset) in evaluated]
    assert len(plain) == len(SCORES) * 2
    for record in plain:
        assert record.ap == pytest.approx(evaluated[record.score, record.dataset], abs=2e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"validation": "RoadAnomaly"},
            "--validation RoadAnomaly: is a benchmark; what is chosen on it must",
        ),
        ({"validation": "no"}, "--validation no: not in the cache, which holds RoadAnomaly, mine"),
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
