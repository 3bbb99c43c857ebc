"""Calibration of a threshold: a case by hand, what reads it, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from eval.calibration import missed_objects, missed_pixels, read_calibration
from jobs.calibrate import CalibrateOptions, main
from jobs.predict import PredictOptions
from jobs.work.alarms import calibrate, predict
from tests.support.evaluation import write_set
from tests.support.refused import refused

MODEL = """
from pathlib import Path
import numpy as np

def build():
    def segment(image):
        red, green, blue = np.moveaxis(image.astype(np.float32) / 255, 2, 0)
        if Path(__file__ + ".stop").exists() and image[12, 10, 2] == 202 and len(image) == 40:
            raise KeyboardInterrupt
        return {"Blueness": blue, "Redness": red}
    return segment
"""
FRAMES = 20


@pytest.fixture
def options(tmp_path) -> CalibrateOptions:
    """Return options of a set of 20 frames of one object each, of blueness 200/255, 201/255, ...

    Every fourth frame has a spot of normal pixels of blueness 1, and one of void.
    """
    (tmp_path / "own.py").write_text(MODEL)
    rng, frames = np.random.default_rng(0), []
    for i in range(FRAMES):
        picture = rng.integers(0, 60, (40, 64, 3), dtype=np.uint8)
        mask = np.zeros((40, 64), np.uint8)
        picture[10:18, 8:20, 0], mask[10:18, 8:20] = 200 + i, 1
        if i % 4 == 0:
            picture[30:36, 30:40, 0] = 255
            picture[30:36, 50:60, 0], mask[29:37, 49:61] = 255, 255
        frames.append((picture, mask))
    write_set(tmp_path / "sets" / "my_drives", frames)
    (tmp_path / "sets.yaml").write_text("my_drives:\n  use: validation\n")
    return CalibrateOptions(
        model_file=str(tmp_path / "own.py"),
        datasets=tmp_path / "sets",
        sets=tmp_path / "sets.yaml",
        out=tmp_path / "calibration",
        score="Blueness",
        miss_rate=0.25,
    )


@pytest.mark.parametrize("risk", ["pixels", "objects"])
def test_the_threshold_is_that_of_the_hand(options, risk):
    found = calibrate(dataclasses.replace(options, risk=risk))
    assert found.threshold == pytest.approx(204 / 255, abs=1e-5)  # (4 + 1) / 21 <= 0.25: four may be missed
    assert found.threshold < np.float32(204 / 255)
    assert (found.n, found.frames, found.missed, found.false_alarms) == (20, 20, 0.2, 0.25)
    assert read_calibration(options.out / "calibration.json") == found
    table = (options.out / "calibration.md").read_text()
    assert f"| missed {risk}, at most |" in table
    assert (
        f"at most 25 % of anomalous {risk} missed in the mean over draws, on frames like the 20 with" in table
    )
    assert sorted(path.name for path in options.out.iterdir()) == [
        "calibration.json",
        "calibration.md",
        "cells",
    ]


def test_confidence_lowers_the_threshold(options):
    found = calibrate(dataclasses.replace(options, confidence=0.9, miss_rate=0.3))
    assert found.missed < 0.3 * 20 / 21
    assert found.delta == pytest.approx(0.1)
    assert "missed with confidence 0.9" in found.describe()


def test_small_alarms_count_neither_way(options):
    found = calibrate(dataclasses.replace(options, smallest=61))  # spots have 60 pixels, objects 96
    assert (found.missed, found.false_alarms) == (0.2, 0)
    with refused("--smallest: got 2561; frames of fewer than 2561 pixels have no alarm at all"):
        calibrate(dataclasses.replace(options, smallest=2561, out=options.out.with_name("other")))


def test_losses_of_a_frame():
    is_anomaly, mask = np.zeros((6, 10), bool), np.zeros((6, 10), bool)
    is_anomaly[0:2, 0:4] = is_anomaly[4:6, 6:8] = True
    mask[1:3, 0:3] = True
    assert missed_pixels(mask, is_anomaly) == pytest.approx(1 - 3 / 12)
    assert missed_objects(mask, is_anomaly) == 0.5
    assert (missed_pixels(is_anomaly, is_anomaly), missed_objects(is_anomaly, is_anomaly)) == (0, 0)


def test_it_is_the_same_by_tasks_and_kept(options, capsys):
    alone = calibrate(options)
    out = options.out.with_name("shared")
    shared = dataclasses.replace(options, out=out)
    assert calibrate(dataclasses.replace(shared, task="1/2")) is None
    assert calibrate(dataclasses.replace(shared, task="0/2")) == alone
    Path(options.model_file + ".unused").touch()
    assert calibrate(options) == alone
    with refused("--out .*calibration.json: is another calibration; choose another folder, or empty it"):
        calibrate(dataclasses.replace(options, miss_rate=0.3))
    words = [
        f"--{f.name} {getattr(shared, f.name)}" for f in dataclasses.fields(shared) if getattr(shared, f.name)
    ]
    main(" ".join(words).split())
    assert capsys.readouterr().out == (out / "calibration.md").read_text()


def test_a_killed_one_goes_on(options):
    whole = calibrate(dataclasses.replace(options, out=options.out.with_name("whole")))
    stop = Path(options.model_file + ".stop")
    stop.touch()
    with pytest.raises(KeyboardInterrupt):
        calibrate(options)
    assert sorted(path.name for path in (options.out / "cells/images").iterdir()) == ["0.npz", "1.npz"]
    stop.unlink()
    assert calibrate(options) == whole


def predict_with(options: CalibrateOptions, **changes: object) -> str:
    images = (str(options.datasets / "my_drives" / "images"),)
    values = {"model_file": options.model_file, "calibration": options.out / "calibration.json"}
    values |= {"out": options.out.with_name("predicted"), "images": images, **changes}
    return predict(PredictOptions(**values))  # type: ignore[arg-type]


def test_predictions_take_it_and_say_what_it_promises(options):
    found = calibrate(options)
    told = predict_with(options)
    alarms = 16 + 5 * 2  # objects above it, and the spots, void or not
    assert f"20 frames, {alarms} alarms in" in told
    assert told.endswith(f"Blueness above {found.threshold:.4g}; {found.describe()}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": "Redness"}, r"--calibration .*calibration.json: is of score Blueness; got Redness"),
        ({"protocol": "native+flip"}, r"calibration.json: is of protocol native; got native\+flip"),
        ({"smallest": 7}, "--smallest: --calibration says it; give one of them"),
        (
            {"calibration": Path("no.json")},
            "--calibration no.json: is no calibration of jobs.calib",
        ),
    ],
)
def test_another_score_is_refused(options, changes, message):
    calibrate(options)
    with refused(message):
        predict_with(options, **changes)


def test_another_model_is_refused(options):
    calibrate(options)
    Path(options.model_file).write_text(MODEL.replace("/ 255", "/ 256"))
    with refused(r"calibration.json: is of another model than .*own.py, .*own.py; run jobs.calibrate for"):
        predict_with(options)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("threshold", float("nan"), "holds numbers that no calibration has"),
        ("threshold", "high", "threshold is 'high'; float is needed"),
        ("protocol", "none", "protocol: no protocol 'none'; available"),
        ("risk", "frames", "risk is 'frames'; one of pixels, objects is needed"),
    ],
)
def test_a_forged_file_is_one_line(options, field, value, message):
    calibrate(options)
    path = options.out / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with refused(f"--calibration .*calibration.json: is no calibration of jobs.calibrate: .*{message}"):
        predict_with(options)


SETTING_FAULTS = [
    ({"miss_rate": 0.0}, "--miss_rate: got 0.0; a number between 0 and 1 is needed"),
    ({"confidence": 1.0}, "--confidence: got 1.0; a number between 0 and 1 is needed"),
    ({"miss_rate": 0.04}, "--miss_rate 0.04: needs 24 frames with an anomaly at least; my_drives has 20"),
    (
        {"confidence": 0.9, "miss_rate": 0.05},
        "--miss_rate 0.05 --confidence 0.9: needs 45 frames with",
    ),
    ({"validation": "other"}, "no validation set other; there are my_drives; PastedVal is one"),
    ({"protocol": "course-512"}, "--protocol course-512: resizes pictures whatever"),
    ({"smallest": 0}, "--smallest: got 0; at least 1"),
    ({"score": "blueness"}, "--score: got 'blueness'"),
]


@pytest.mark.parametrize(("changes", "message"), SETTING_FAULTS)
def test_a_wrong_setting_is_named(options, changes, message):
    with refused(message):
        calibrate(dataclasses.replace(options, **changes))
    assert not options.out.exists()


def test_nothing_is_calibrated_on_a_benchmark(options, tmp_path):
    (tmp_path / "sets.yaml").write_text("my_drives:\n  use: benchmark\n")
    with refused("no validation sets; name one; there are my_drives"):
        calibrate(options)
    with refused("--validation my_drives: is a benchmark, on which nothing may be chosen"):
        calibrate(dataclasses.replace(options, validation="my_drives"))
    (tmp_path / "sets.yaml").write_text("my_drives:\n  use: validation\n")
    (tmp_path / "sets" / "RoadAnomaly21").symlink_to(tmp_path / "sets" / "my_drives")
    with refused("0.png: shows what .* shows, which is a benchmark, on which nothing may be chosen"):
        calibrate(options)
