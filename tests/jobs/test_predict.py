"""Predictions of pictures and videos: what is written, that it is what is evaluated, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.part import TestSetPart
from eval.predict.score_maps import read_map
from eval.protocol import get_protocol
from eval.sets.registry import find_test_sets
from jobs.predict import PredictOptions, main
from jobs.work.alarms import predict
from jobs.work.evaluate import evaluate
from shards.errors import StorageError
from tests.support.evaluation import options_for, write_run, write_test_sets
from tests.support.files import contents
from tests.support.refused import refused
from tests.support.tars import encode

MODEL = """
import os, tracemalloc
from pathlib import Path
import numpy as np

def build():
    def segment(image):
        with open(__file__ + ".log", "a") as log:
            print(tracemalloc.get_traced_memory()[0], file=log)
        if os.environ.get("FAILS_AT") == str(len(Path(__file__ + ".log").read_text().split())):
            raise KeyboardInterrupt
        red, green, blue = np.moveaxis(image.astype(np.float32) / 255, 2, 0)
        return {"logits": np.stack([red, green]), "Blueness": blue}
    return segment
"""


@pytest.fixture
def model(tmp_path) -> str:
    (tmp_path / "own.py").write_text(MODEL)
    return str(tmp_path / "own.py")


def calls(model: str) -> list[int]:
    """Return the memory in use at each call of the model, and forget them."""
    log = Path(model + ".log")
    found = [int(line) for line in log.read_text().splitlines()] if log.is_file() else []
    log.unlink(missing_ok=True)
    return found


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (40, 64)) -> Path:
    """Write dark pictures, each with one blue rectangle of 6 x 8 pixels at another place."""
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(encode(picture_of(i, size)))
    return folder


def picture_of(number: int, size: tuple[int, int] = (40, 64)) -> np.ndarray:
    picture = np.full((*size, 3), 30, np.uint8)
    left = 3 + number % 40
    picture[10:16, left : left + 8, 0] = 200 + number % 40  # B, G, R
    return picture


def write_film(path: Path, count: int, code: str = "MJPG") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), 10, (64, 48))
    for i in range(count):
        writer.write(picture_of(2 * i, (48, 64)))
    writer.release()
    return path


def options(root: Path, model: str, **changes: object) -> PredictOptions:
    values = {"model_file": model, "score": "Blueness", "threshold": 0.5, "smallest": 1, "out": root / "out"}
    return PredictOptions(**{**values, "images": (str(root / "pictures"),), **changes})  # type: ignore[arg-type]


def read_alarms(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "alarms.jsonl").read_text().splitlines()]


def test_alarms_are_the_regions_above_the_threshold(tmp_path, model):
    write_pictures(tmp_path / "pictures", 3)
    told = predict(options(tmp_path, model))
    assert told == f"{tmp_path / 'out'}: 3 frames, 3 alarms in 3 of them, Blueness above 0.5"
    first, *_ = alarms = read_alarms(tmp_path / "out")
    assert [alarm["name"] for alarm in alarms] == ["0", "1", "2"]
    assert (first["box"], first["area"], first["frame"]) == ([3, 10, 8, 6], 48, None)
    assert first["peak"] == pytest.approx(200 / 255)
    assert first["mean"] == pytest.approx(200 / 255)
    assert first["file"] == str(tmp_path / "pictures" / "0.png")
    names = ["alarms.jsonl", "cells", "maps", "overlays", "sheet.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert cv2.imread(str(tmp_path / "out/overlays/0.jpg")).shape == (40, 128, 3)
    assert cv2.imread(str(tmp_path / "out/sheet.png")) is not None


def test_small_regions_raise_no_alarm_and_no_threshold_raises_none(tmp_path, model):
    write_pictures(tmp_path / "pictures", 1)
    assert "0 alarms in 0 of them" in predict(options(tmp_path, model, smallest=49))
    for changes in ({"threshold": None}, {"threshold": 1.0}):
        out = tmp_path / str(changes)
        assert predict(options(tmp_path, model, out=out, **changes)).startswith(f"{out}: 1 frames")
        assert read_alarms(out) == []


@pytest.mark.parametrize("protocol", ["native", "native+flip+smooth"])
def test_maps_are_those_that_are_evaluated(tmp_path, protocol):
    sets, run = write_test_sets(tmp_path / "sets"), write_run(tmp_path)
    images = sets / "RoadAnomaly21" / "images"
    chosen = PredictOptions(
        checkpoint=run, images=(str(images),), out=tmp_path / "out", score="RbA", device="cpu",
        protocol=protocol,
    )  # fmt: skip
    predict(chosen)
    source = chosen.find_source(("RbA",), "--score")
    predictor = chosen.open_model(source, "RbA").load()
    part = TestSetPart(
        test_set=find_test_sets(sets)[0], protocols=[get_protocol(protocol)], scores=("MSP", "RbA")
    )
    for image in range(2):
        expected = part.predict(predictor, image)[1]["score.RbA"]
        assert np.array_equal(read_map(tmp_path / f"out/maps/{image}.npy"), expected)
    (tmp_path / "maps").mkdir()
    (tmp_path / "out" / "maps").rename(tmp_path / "maps" / "RoadAnomaly21")
    if protocol == "native":
        of_model = options_for(tmp_path, scores=("RbA",), components=False)
        (sets / "RoadAnomaly").rename(tmp_path / "other")
        changes = {"checkpoint": None, "score_maps": tmp_path / "maps", "scores": ("Mine",)}
        of_maps = dataclasses.replace(of_model, out=tmp_path / "again", **changes)
        assert evaluate(of_maps)[0].ap == evaluate(of_model)[0].ap


def test_what_is_finished_is_kept_and_the_end_is_that_of_one_go(tmp_path, model, monkeypatch):
    write_pictures(tmp_path / "pictures", 5)
    whole = options(tmp_path, model, out=tmp_path / "whole")
    told = predict(whole)
    assert len(calls(model)) == 1 + 5  # the picture that tells models apart
    monkeypatch.setenv("FAILS_AT", "4")
    with pytest.raises(KeyboardInterrupt):
        predict(options(tmp_path, model))
    monkeypatch.delenv("FAILS_AT")
    assert len(calls(model)) == 4
    assert not (tmp_path / "out" / "alarms.jsonl").exists()
    (tmp_path / "out/cells/frames/1.npz").write_bytes(b"damaged")
    (tmp_path / "out/maps/.0.npy.partial-x").write_bytes(b"of a killed process")
    predict(options(tmp_path, model))
    assert len(calls(model)) == 1 + 1 + 4  # colours are of the first frame
    left = {name: content for name, content in contents(tmp_path / "out").items() if "cells" not in name}
    assert left == {n: c for n, c in contents(tmp_path / "whole").items() if "cells" not in n}
    assert predict(whole) == told
    assert len(calls(model)) == 1  # nothing was predicted again
    with refused(r"--out .*whole: holds predictions with other threshold and images; choose another folder"):
        predict(dataclasses.replace(whole, threshold=0.6))


def test_tasks_leave_what_one_process_does(tmp_path, model):
    write_pictures(tmp_path / "pictures", 5)
    predict(options(tmp_path, model, out=tmp_path / "whole"))
    assert predict(options(tmp_path, model, task="1/2")) == ""
    assert "5 frames, 5 alarms in 5 of them" in predict(options(tmp_path, model, task="0/2"))
    assert contents(tmp_path / "out", "predictions.npz").keys() >= contents(tmp_path / "whole", ".npz").keys()
    for name in ("alarms.jsonl", "sheet.png", "overlays/3.jpg"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_frames_of_another_call_are_gone_at_the_end(tmp_path, model, monkeypatch):
    write_pictures(tmp_path / "pictures", 3)
    monkeypatch.setenv("FAILS_AT", "4")
    with pytest.raises(KeyboardInterrupt):
        predict(options(tmp_path, model))
    (tmp_path / "pictures" / "0.png").unlink()
    monkeypatch.delenv("FAILS_AT")
    predict(options(tmp_path, model, maps=False))
    assert sorted(path.name for path in (tmp_path / "out/overlays").iterdir()) == ["1.jpg", "2.jpg"]
    assert not (tmp_path / "out/maps").exists()


@pytest.mark.parametrize(("code", "suffix"), [("MJPG", ".avi"), ("mp4v", ".mp4")])
def test_a_video_becomes_a_video(tmp_path, model, code, suffix):
    film = write_film(tmp_path / f"drive{suffix}", 9, code)
    predict(options(tmp_path, model, images=(str(film),), every=2))
    alarms = read_alarms(tmp_path / "out")
    assert [(alarm["name"], alarm["frame"]) for alarm in alarms][:2] == [
        ("drive-000000", 0),
        ("drive-000002", 2),
    ]
    assert [round(alarm["box"][0] / 4) for alarm in alarms] == [1, 2, 3, 4, 5]  # the right frames
    made = cv2.VideoCapture(str(tmp_path / "out/videos/drive.mp4"))
    assert (made.get(cv2.CAP_PROP_FRAME_COUNT), made.get(cv2.CAP_PROP_FPS)) == (5, 5)


def test_memory_does_not_grow_with_the_frames(tmp_path, model):
    write_pictures(tmp_path / "pictures", 100)
    tracemalloc.start()
    try:
        predict(options(tmp_path, model, pictures=2))
    finally:
        tracemalloc.stop()
    in_use = calls(model)
    assert max(in_use[-20:]) - max(in_use[20:40]) < 2 * 40 * 64 * 4 + 100_000


def test_places_are_folders_patterns_and_files(tmp_path, model, monkeypatch):
    write_pictures(tmp_path / "drives" / "a", 11)
    write_pictures(tmp_path / "drives" / "b" / "deep", 1)
    (tmp_path / "drives/b/deep/0.png").rename(tmp_path / "drives/b/deep/x.webp")
    (tmp_path / "drives/a/notes.txt").write_text("no picture")
    monkeypatch.setenv("DRIVES", str(tmp_path / "drives"))
    main([
        "--model_file", model, "--score", "Blueness", "--threshold", "0.5", "--out", str(tmp_path / "out"),
        "--images", "$DRIVES/**/*", "$DRIVES/a/3.png", "--pictures", "0", "--smallest", "1",
    ])  # fmt: skip
    names = [alarm["name"] for alarm in read_alarms(tmp_path / "out")]
    assert names == [*map(str, range(11)), "x"]
    assert not (tmp_path / "out/sheet.png").exists()


def write_bomb(path: Path) -> None:
    content = bytearray(encode(np.zeros((1, 1), np.uint8)))
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    path.write_bytes(content)


def write_bad_places(root: Path) -> None:
    for name in ("empty", "texts", "twice", "bad", "nan"):
        (root / name).mkdir()
    (root / "texts" / "a.txt").write_text("text")
    (root / "twice" / "1.jpg").write_bytes(encode(picture_of(0)))
    (root / "bad" / "text.png").write_text("text")
    write_bomb(root / "bad" / "bomb.png")
    (root / "bad" / "cut.png").write_bytes(encode(picture_of(0))[:-40])
    (root / "bad" / "text.mp4").write_text("#EXTM3U\nfile:///etc/passwd\n")
    (root / "bad" / "cut.mp4").write_bytes(write_film(root / "film.mp4", 5, "mp4v").read_bytes()[:200])
    (root / "bad" / "new\nline.png").write_bytes(encode(picture_of(0)))
    os.mkfifo(root / "pipe.png")
    os.mkfifo(root / "pipe.mp4")
    with (root / "bad" / "long.png").open("wb") as file:
        file.truncate(2**31 + 1)


BAD_PLACES = [
    (["empty"], "--images .*empty: no picture and no video in it; suffixes are .png, .jpg"),
    (["texts"], "--images .*texts: no picture and no video in it"),
    (["nowhere"], "--images .*nowhere: no such file or folder"),
    (["pictures/*.jpg"], r"--images .*pictures/\*.jpg: no picture and no video in it"),
    ([], "--images: got nothing; no picture and no video"),
    (["texts/a.txt"], r"a.txt: cannot be decoded as a picture \(4 bytes\); PNG, JPEG and WebP are read"),
    (["pictures", "twice"], r"1.jpg: has the name of .*pictures/1.png; outputs are named by it; predict"),
    (["bad/text.png"], "text.png: cannot be decoded as a picture"),
    (["bad/bomb.png"], "bomb.png: says that it has 100000 x 100000 pixels; at most 67,108,864 are"),
    (["bad/cut.png"], "cut.png: cannot be decoded as a picture"),
    (["bad/long.png"], "long.png: cannot be read: has over 2,147,483,648 bytes"),
    (["bad/new\nline.png"], r"bad: 'new\\nline' holds control characters"),
    (["pipe.png"], "pipe.png: cannot be read: not a plain file"),
    (["pipe.mp4"], "pipe.mp4: is no plain file, as a video has to be"),
    (["bad/text.mp4"], r"text.mp4: cannot be opened as a video \(.mp4, .m4v, .mov, .mkv, .webm, .avi\); it"),
    (["bad/cut.mp4"], "cut.mp4: cannot be opened as a video .*; it is damaged, or of another kind"),
]


@pytest.mark.parametrize(("places", "message"), BAD_PLACES)
def test_a_place_without_frames_is_named(tmp_path, model, capfd, places, message):
    write_pictures(tmp_path / "pictures", 3)
    write_bad_places(tmp_path)
    with refused(message):
        predict(options(tmp_path, model, images=tuple(str(tmp_path / place) for place in places)))
    assert not (tmp_path / "out/alarms.jsonl").exists()
    assert capfd.readouterr() == ("", "")


SETTING_FAULTS = [
    ({"score": "blueness"}, "--score: got 'blueness'; what .*own.py answers gives MSP, .*, Blueness"),
    ({"protocol": "course-512"}, "--protocol course-512: resizes pictures whatever their shape"),
    ({"heat": (1.0, 0.0)}, r"--heat: got \(1.0, 0.0\); the first must be smaller"),
    ({"every": 0}, "--every: got 0; at least 1"),
    ({"smallest": 0}, "--smallest: got 0; at least 1"),
    ({"checkpoint": Path("x")}, "one of --checkpoint and --model_file is needed; got --checkpoint, --model"),
    ({"compile": True}, "--compile: is for --checkpoint; got --model_file"),
    ({"task": "2/2"}, "--task: got '2/2'; I/N with I in 0..N-1 is needed"),
    ({"calibration": Path("nowhere")}, "--threshold: --calibration says it; give one of them"),
]


@pytest.mark.parametrize(("changes", "message"), SETTING_FAULTS)
def test_a_wrong_setting_is_named(tmp_path, model, changes, message):
    write_pictures(tmp_path / "pictures", 1)
    with refused(message):
        predict(options(tmp_path, model, **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("word", ["high", "nan", "inf"])
def test_a_threshold_is_a_number(tmp_path, word):
    with refused(r"--threshold"):
        main(["--images", "x", "--out", str(tmp_path / "out"), "--checkpoint", "x", "--threshold", word])


def test_folders_that_hold_something_else_are_left_alone(tmp_path, model):
    write_pictures(tmp_path / "pictures", 1)
    with refused("--out .*pictures: the folder already holds files"):
        predict(options(tmp_path, model, out=tmp_path / "pictures"))
    evaluate(options_for(tmp_path, out=tmp_path / "evaluation", components=False, pictures=0, limit=1))
    with refused("--out .*evaluation: the folder already holds files"):
        predict(options(tmp_path, model, out=tmp_path / "evaluation"))
    (tmp_path / "sealed").mkdir(mode=0o555)
    if os.geteuid():  # root may write everywhere
        with pytest.raises(StorageError, match="sealed"):
            predict(options(tmp_path, model, out=tmp_path / "sealed" / "out"))


def test_numbers_that_are_none_end_it_in_one_line(tmp_path, model):
    write_pictures(tmp_path / "pictures", 1)
    Path(model).write_text(MODEL.replace('"Blueness": blue', '"Blueness": blue + np.float32("nan")'))
    with refused(r"0.png: the model answers (NaN|infinity) as Blueness"):
        predict(options(tmp_path, model))
