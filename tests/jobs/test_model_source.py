"""`jobs.evaluate` takes a user's own model, as documented, and precomputed score maps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.predict.own_model import load_own_model
from eval.report.record import parse_json
from eval.sets.registry import find_test_sets, read_image
from jobs.evaluate import main
from shards.errors import InputError
from tests.support.evaluation import write_scenes, write_set
from tests.support.refused import refused

ROOT = Path(__file__).resolve().parents[2]
BRIEF = ("--components", "False", "--pictures", "0", "--device", "cpu")


@pytest.fixture
def sets(tmp_path) -> Path:
    rng = np.random.default_rng(1)
    frames = []
    for i in range(2):
        mask = np.zeros((12, 20), np.uint8)
        mask[2:6, 4 : 10 + i] = 2
        frames.append((rng.integers(0, 256, (12, 20, 3), dtype=np.uint8), mask))
    write_set(tmp_path / "sets/RoadAnomaly", frames)
    return tmp_path / "sets"


def documented_model() -> str:
    text = (ROOT / "docs/own-models.md").read_text()
    (code,) = re.findall(r"```python\n(\"{3}my_model.py.*?)```", text, re.DOTALL)
    assert isinstance(code, str)
    return code


def evaluate(sets: Path, out: Path, *given: str) -> dict[str, float | None]:
    main(["--datasets", str(sets), "--out", str(out), *BRIEF, *given])
    return {record.score: record.ap for record in parse_json((out / "results.json").read_text(), "")}


def test_the_documented_model_runs_and_its_maps_give_the_same_number(sets, tmp_path, capsys):
    path = tmp_path / "my_model.py"
    path.write_text(documented_model())
    found = evaluate(sets, tmp_path / "own", "--model_file", f"{path}:build")
    assert list(found) == ["MSP", "MaxLogit", "MaxEntropy", "RbA", "Blueness"]
    assert "| my_model | Blueness |" in capsys.readouterr().out
    (test_set,) = find_test_sets(sets)
    (tmp_path / "maps/RoadAnomaly").mkdir(parents=True)
    names: dict[str, Any] = {}
    exec(documented_model(), names)
    segment = names["build"]()
    for frame in test_set.frames:
        blueness = segment(read_image(frame))["Blueness"].cpu().numpy()
        np.save(tmp_path / f"maps/RoadAnomaly/{frame.stem}.npy", blueness)
    maps = evaluate(sets, tmp_path / "of_maps", "--score_maps", str(tmp_path / "maps"), "--scores", "Blue")
    assert maps == {"Blue": found["Blueness"]}


def test_numbers_of_other_weights_or_maps_are_not_kept(sets, tmp_path, caplog):
    (tmp_path / "mine.py").write_text(
        "import numpy as np, pathlib\n"
        "def build():\n"
        "    sign = np.load(pathlib.Path(__file__).with_name('weights.npy'))\n"
        "    return lambda image: {'Red': sign * image[..., 0].astype(float)}\n"
    )
    given = ("--model_file", str(tmp_path / "mine.py"), "--earlier", "replace")
    np.save(tmp_path / "weights.npy", 1.0)
    first = evaluate(sets, tmp_path / "out", *given)
    with caplog.at_level("INFO"):
        assert evaluate(sets, tmp_path / "out", *given) == first
    assert "1 of 1 parts are kept" in caplog.text
    np.save(tmp_path / "weights.npy", -1.0)
    assert evaluate(sets, tmp_path / "out", *given) != first


SOURCE_FAULTS = [
    ("", "one of --checkpoint, --model_file and --score_maps is needed; got none of them"),
    ("--score_maps M --model_file M.py", "got --model_file, --score_maps"),
    ("--score_maps nowhere", "--score_maps nowhere: no such folder"),
    ("--score_maps M --scores MSP", "--scores: got MSP; maps hold one score, of a name of"),
    ("--score_maps M --protocol course-512", "so without protocol course-512"),
    ("--score_maps M --cityscapes C", "--cityscapes: mIoU needs a model"),
    ("--score_maps M --cache C", "--cache: is for --checkpoint; got --score_maps"),
    ("--score_maps M --map_range 1 0", r"--map_range: got \(1.0, 0.0\); the first must be"),
    ("--model_file nowhere.py", "--model_file nowhere.py: no such Python file; expected FILE.py or"),
    ("--model_file M", r"--model_file .*maps: no such Python file"),
]


@pytest.mark.parametrize(("given", "text"), SOURCE_FAULTS)
def test_a_source_that_does_not_fit_is_refused(sets, tmp_path, given, text):
    maps = tmp_path / "maps"
    maps.mkdir()
    with refused(text):
        evaluate(sets, tmp_path / "out", *re.sub(r"\bM(\.py)?(?= |$)", str(maps), given).split())
    assert not (tmp_path / "out").exists()


FILE_FAULTS = [
    ("def make():\n    return print\n", "no function build in it; there are make"),
    ("def build():\n    return 3\n", r"build\(\) returns int; expected a function from an image"),
    ("def build():\n    return lambda image: 'x'\n", "logits is str; expected an array or tensor"),
]


@pytest.mark.parametrize(("code", "text"), FILE_FAULTS)
def test_a_file_that_builds_no_model_is_refused(sets, tmp_path, code, text):
    (tmp_path / "mine.py").write_text(code)
    with refused(text):
        evaluate(sets, tmp_path / "out", "--model_file", str(tmp_path / "mine.py"))


def test_what_the_users_code_does_wrong_keeps_its_traceback(tmp_path):
    (tmp_path / "mine.py").write_text("import json\njson.loads('no')\n")
    with pytest.raises(ValueError, match="Expecting value") as caught:
        load_own_model(str(tmp_path / "mine.py"))
    assert not isinstance(caught.value, InputError)


MODEL = """
import numpy as np

def build():
    return lambda image: np.eye({classes})[np.minimum(image[..., 0], {classes} - 1)].transpose(2, 0, 1)
"""


def test_miou_of_a_model_that_is_right_is_one_and_needs_the_classes_of_cityscapes(sets, tmp_path):
    label = np.random.default_rng(2).integers(0, 19, (12, 20), dtype=np.uint8)  # the red values of the image
    image = np.stack([np.zeros_like(label), np.zeros_like(label), label], axis=2)  # B G R
    val = write_scenes(tmp_path / "val", {"a": (image, label)})
    given = ("--model_file", str(tmp_path / "mine.py"), "--cityscapes", str(val))
    (tmp_path / "mine.py").write_text(MODEL.format(classes=19))
    evaluate(sets, tmp_path / "out", *given)
    assert parse_json((tmp_path / "out/results.json").read_text(), "")[0].miou == 1
    (tmp_path / "mine.py").write_text(MODEL.format(classes=5))
    with refused(r"mine.py answers logits of 5 classes, Cityscapes has 19; leave it"):
        evaluate(sets, tmp_path / "other", *given)
