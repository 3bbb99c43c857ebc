"""Calibration of a threshold: a case by hand, what reads it, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from eval.calibration import Calibration, missed_objects, missed_pixels, read_calibration
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


@pytest.fixture(scope="module", name="world")
def _world(tmp_path_factory) -> CalibrateOptions:
    """Options of a set of 20 frames of one object each, of blueness 200/255, 201/255, ...

    Every fourth frame has a spot of normal pixels of blueness 1, and one of void.
    """
    root = tmp_path_factory.mktemp("drives")
    (root / "own.py").write_text(MODEL)
    rng, frames = np.random.default_rng(0), []
    for i in range(FRAMES):
        picture = rng.integers(0, 60, (40, 64, 3), dtype=np.uint8)
        mask = np.zeros((40, 64), np.uint8)
        picture[10:18, 8:20, 0], mask[10:18, 8:20] = 200 + i, 1
        if i % 4 == 0:
            picture[30:36, 30:40, 0] = 255
            picture[30:36, 50:60, 0], mask[29:37, 49:61] = 255, 255
        frames.append((picture, mask))
    write_set(root / "sets" / "my_drives", frames)
    (root / "sets.yaml").write_text("my_drives:\n  use: validation\n")
    return CalibrateOptions(
        model_file=str(root / "own.py"),
        datasets=root / "sets",
        sets=root / "sets.yaml",
        out=root / "calibration",
        score="Blueness",
        miss_rate=0.25,
    )


@pytest.fixture(scope="module", name="found")
def _found(world) -> Calibration:
    """What the options give, which lies in their folder."""
    return calibrate(world)


@pytest.fixture(name="options")
def _options(world, tmp_path) -> CalibrateOptions:
    return dataclasses.replace(world, out=tmp_path / "calibration")


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
    names = ["calibration.json", "calibration.md", "cells"]
    assert sorted(path.name for path in options.out.iterdir()) == names


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


def test_it_is_the_same_by_tasks_and_kept(options, found, capsys):
    assert calibrate(dataclasses.replace(options, task="1/2")) is None
    assert calibrate(dataclasses.replace(options, task="0/2")) == found
    with refused("--out .*calibration.json: is another calibration; choose another folder, or empty it"):
        calibrate(dataclasses.replace(options, miss_rate=0.3))
    given = {name: value for name, value in dataclasses.asdict(options).items() if value}
    main(" ".join(f"--{name} {value}" for name, value in given.items()).split())
    assert capsys.readouterr().out == (options.out / "calibration.md").read_text()


def test_a_killed_one_goes_on(options, found):
    stop = Path(options.model_file + ".stop")
    stop.touch()
    with pytest.raises(KeyboardInterrupt):
        calibrate(options)
    assert sorted(path.name for path in (options.out / "cells/images").iterdir()) == ["0.npz", "1.npz"]
    stop.unlink()
    assert calibrate(options) == found


def predict_with(world: CalibrateOptions, out: Path, **changes: object) -> str:
    images = (str(world.datasets / "my_drives" / "images"),)
    values = {"model_file": world.model_file, "calibration": world.out / "calibration.json"}
    return predict(PredictOptions(**{**values, "out": out, "images": images, **changes}))  # type: ignore[arg-type]


def test_predictions_take_it_and_say_what_it_promises(world, found, tmp_path):
    told = predict_with(world, tmp_path / "predicted")
    alarms = 16 + 5 * 2  # objects above it, and the spots, void or not
    assert f"20 frames, {alarms} alarms in" in told
    assert told.endswith(f"Blueness above {found.threshold:.4g}; {found.describe()}")


NEEDED = "; a calibration of jobs.calibrate is needed"


@pytest.mark.parametrize(
    ("changes", "forged", "message"),
    [
        ({"score": "Redness"}, {}, r"--calibration .*calibration.json: is of score Blueness; got Redness"),
        ({"protocol": "native+flip"}, {}, r"calibration.json: is of protocol native; got native\+flip"),
        ({"smallest": 7}, {}, "--smallest: --calibration says it; give one of them"),
        (
            {"calibration": Path("no.json")},
            {},
            f"^--calibration no.json: cannot be read: No such file or directory{NEEDED}",
        ),
        (
            {"model_file": "other.py"},
            {},
            r"calibration.json: is of another model than .*other.py, .*own.py; run",
        ),
        (
            {},
            {"threshold": float("nan")},
            f"calibration.json: .*holds numbers that no calibration has.*{NEEDED}",
        ),
        ({}, {"threshold": "high"}, f"calibration.json: threshold is 'high'; float is needed{NEEDED}"),
        ({}, {"protocol": "none"}, f"calibration.json: protocol: no protocol 'none'; available.*{NEEDED}"),
        (
            {},
            {"risk": "frames"},
            f"calibration.json: risk is 'frames'; one of pixels, objects is needed{NEEDED}",
        ),
    ],
)
def test_another_model_score_or_file_is_refused(
    world, found, tmp_path, monkeypatch, changes, forged, message
):
    monkeypatch.chdir(tmp_path)
    Path("other.py").write_text(MODEL.replace("/ 255", "/ 256"))
    if forged:
        content = json.loads((world.out / "calibration.json").read_text())
        Path("calibration.json").write_text(json.dumps(content | forged))
        changes = {"calibration": tmp_path / "calibration.json"}
    with refused(message):
        predict_with(world, tmp_path / "predicted", **changes)


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
    declared = dataclasses.replace(options, sets=tmp_path / "sets.yaml")
    with refused("no validation sets; name one; there are my_drives"):
        calibrate(declared)
    with refused("--validation my_drives: is a benchmark, on which nothing may be chosen"):
        calibrate(dataclasses.replace(declared, validation="my_drives"))
    (tmp_path / "sets").mkdir()
    for name in ("my_drives", "RoadAnomaly21"):
        (tmp_path / "sets" / name).symlink_to(options.datasets / "my_drives")
    with refused("0.png: shows what .* shows, which is a benchmark, on which nothing may be chosen"):
        calibrate(dataclasses.replace(options, datasets=tmp_path / "sets"))
