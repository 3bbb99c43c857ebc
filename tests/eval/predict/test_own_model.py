"""A user's model and score maps give the numbers that the same answers give from a network of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from eval.part import TestSetPart, evaluate_test_set
from eval.predict.own_model import OwnPredictor
from eval.predict.score_maps import MapFolder
from eval.predict.score_names import DEFAULT_SCORES
from eval.predict.scores import SCORES
from eval.predict.strips import predict_pixels
from eval.predict.windows import Predictor
from eval.protocol import PROTOCOLS
from eval.sets.registry import TestSet, find_test_sets, read_image, read_target
from tests.support.evaluation import write_set
from tests.support.refused import refused

SIZE = (12, 20)
BLANK = np.zeros((*SIZE, 3), np.uint8)


def write_sets(root: Path, *folders: str, count: int = 2) -> tuple[TestSet, ...]:
    for folder in folders:
        rng = np.random.default_rng(3)
        frames = []
        for i in range(count):
            mask = np.zeros(SIZE, np.uint8)
            mask[2:6, 3 : 8 + i] = 1
            frames.append((rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8), mask))
        write_set(root / folder, frames)
    return find_test_sets(root)


@pytest.fixture
def sets(tmp_path: Path) -> tuple[TestSet, ...]:
    return write_sets(tmp_path / "sets", "RoadAnomaly21")


def logits_of(image: np.ndarray) -> np.ndarray:
    weights = np.random.default_rng(0).normal(size=(19, 3))
    return np.einsum("ck,hwk->chw", weights, image / 255.0)


def score_of(image: np.ndarray) -> np.ndarray:
    return (image[..., 0].astype(np.float32) - image[..., 2]) / 100


def pooled_ap(test_set: TestSet, score: Callable[[np.ndarray], np.ndarray]) -> float:
    pairs = [(read_target(f, test_set.convention), score(read_image(f))) for f in test_set.frames]
    targets, scores = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    return float(average_precision_score(targets, scores))


def evaluate(predictor: Predictor, test_set: TestSet, scores: tuple[str, ...]) -> dict[str, float | None]:
    settings = {"test_set": test_set, "scores": scores, "components": False, "num_examples": 0}
    part = TestSetPart(protocols=[PROTOCOLS["native"]], **settings)  # type: ignore[arg-type]
    return {result.record.score: result.record.ap for result in evaluate_test_set(part, predictor).results}


def test_logits_and_own_scores_are_measured_together(sets: tuple[TestSet, ...]) -> None:
    image = read_image(sets[0].frames[0])
    predictor, other = (
        OwnPredictor(lambda x, s=sign: {"logits": logits_of(x), "Redness": s * score_of(x)}, "mine.py")
        for sign in (1, -1)
    )
    answer = predictor.choose_scores(image, DEFAULT_SCORES)
    assert other.choose_scores(image, DEFAULT_SCORES) != answer
    assert (predictor.num_classes, predictor.scores) == (19, (*DEFAULT_SCORES, "Redness"))
    found = evaluate(predictor, sets[0], predictor.scores)
    assert found["Redness"] == pytest.approx(pooled_ap(sets[0], score_of), abs=1e-9)
    for name in DEFAULT_SCORES:

        def computed(image: np.ndarray, name: str = name) -> np.ndarray:
            return SCORES[name](torch.from_numpy(logits_of(image)).float()[None])[0].numpy()

        assert found[name] == pytest.approx(pooled_ap(sets[0], computed), abs=1e-9)


def test_logits_alone_and_scores_alone_may_be_arrays_or_tensors(sets: tuple[TestSet, ...]) -> None:
    image = read_image(sets[0].frames[0])
    for answer in (logits_of, lambda x: torch.from_numpy(logits_of(x)).half().requires_grad_()):
        predictor = OwnPredictor(answer, "mine.py")
        predictor.choose_scores(image, ("RbA",))
        class_scores = predictor(image)
        np.testing.assert_allclose(class_scores.numpy(), logits_of(image), atol=2e-3)  # of half precision
        np.testing.assert_array_equal(
            predict_pixels(class_scores, ("RbA",)).classes, class_scores.argmax(dim=0)
        )
    predictor = OwnPredictor(lambda x: {"Redness": score_of(x)}, "mine.py")
    with refused("--scores: got 'MSP'; what mine.py answers gives Redness"):
        predictor.choose_scores(image, ("MSP",))
    predictor.choose_scores(image, DEFAULT_SCORES)
    assert (predictor.num_classes, predictor.scores) == (0, ("Redness",))
    predicted = predict_pixels(predictor(image), ("Redness",))
    np.testing.assert_array_equal(predicted.scores["Redness"], score_of(image))
    assert (predicted.classes == 255).all()


ANSWER_FAULTS = [
    (None, r"logits is NoneType; expected an array or tensor"),
    ({}, r"answers an empty mapping; expected maps by name"),
    (np.zeros((19, 6, 10)), r"logits is float64 of shape \(19, 6, 10\); expected .* \(C, 12, 20\) for an"),
    (np.zeros((19, 12, 20), int), r"logits is int64 of shape"),
    (np.zeros((1, 12, 20)), r"logits are of one class; scores compare two or more"),
    ({"X": torch.zeros(1, 12, 20)}, r"X is torch.float32 of shape \(1, 12, 20\); expected .* \(12, 20\)"),
    ({"MSP": np.zeros((12, 20))}, r"answers a score MSP, which is computed here from logits"),
]


@pytest.mark.parametrize(("answer", "text"), ANSWER_FAULTS)
def test_an_answer_of_another_kind_is_named(answer: Any, text: str) -> None:
    with refused(f"mine.py: {text}"):
        OwnPredictor(lambda _: answer, "mine.py").choose_scores(BLANK, DEFAULT_SCORES)


def test_a_model_must_go_on_as_it_began() -> None:
    answers: Any = iter(
        [{"A": np.zeros(SIZE)}, {"B": np.zeros(SIZE)}, logits_of(BLANK), {"A": np.zeros(SIZE)}]
    )
    predictor = OwnPredictor(lambda _: next(answers), "mine.py")
    for scores, lost in ((DEFAULT_SCORES, "A"), (("MSP",), "logits")):
        predictor.choose_scores(BLANK, scores)
        with refused(f"mine.py: answers no {lost} for one image, but did for the fi"):
            predictor(BLANK)


def write_map(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".png":
        cv2.imwrite(str(path), np.round((values + 3) / 6 * 65535).astype(np.uint16))
    else:
        with h5py.File(path, "w") as file:
            file["value"] = values


@pytest.mark.parametrize("suffix", [".npy", ".hdf5", ".h5", ".png"])
@pytest.mark.parametrize("folder", ["RoadAnomaly21", "AnomalyTrack-all"])
def test_maps_give_the_numbers_of_the_scores_they_hold(
    sets: tuple[TestSet, ...], tmp_path: Path, suffix: str, folder: str
) -> None:
    for frame in sets[0].frames:
        write_map(tmp_path / "maps" / folder / f"{frame.stem}{suffix}", score_of(read_image(frame)))
    if folder == "AnomalyTrack-all":  # of a hidden image
        write_map(tmp_path / "maps" / folder / f"zebra0000{suffix}", np.zeros(SIZE, np.float32))
    maps = MapFolder(tmp_path / "maps", sets, scale=(-3.0, 3.0))
    found = evaluate(maps, sets[0], ("Redness",))
    assert found["Redness"] == pytest.approx(pooled_ap(sets[0], score_of), abs=1e-9)
    image = read_image(sets[0].frames[1])
    answer = maps(image)[0]
    np.testing.assert_allclose(answer.numpy(), score_of(image), atol=6 / 65535)


def write_ones(root: Path) -> Path:
    for stem in "01":
        write_map(root / f"maps/RoadAnomaly21/{stem}.npy", np.ones(SIZE, np.float32))
    return root / "maps"


MAP_FAULTS = {
    "missing": (Path.unlink, "RoadAnomaly21: no map for image 1; expected suffix .npy, .hdf5, .h5"),
    "left over": (
        lambda p: write_map(p.with_name("7.npy"), np.zeros(SIZE)),
        "7.npy: map without image in RoadAnomaly21, 1 in all",
    ),
    "twice": (lambda p: p.with_suffix(".h5").touch(), "1.npy: two files for one frame; the other is 1.h5"),
    "no array": (lambda p: p.write_bytes(b"no"), "1.npy: cannot be read as an array"),
    "size": (lambda p: write_map(p, np.zeros((6, 10))), "1.npy: is 10 x 6, its image 20 x 12"),
}


@pytest.mark.parametrize(("spoil", "text"), MAP_FAULTS.values(), ids=MAP_FAULTS)
def test_a_faulty_map_is_named_before_anything_is_measured(
    sets: tuple[TestSet, ...], tmp_path: Path, spoil: Callable[[Path], None], text: str
) -> None:
    maps = write_ones(tmp_path)
    spoil(maps / "RoadAnomaly21/1.npy")
    with refused(text):
        MapFolder(maps, sets)


def test_maps_without_the_sets_folder_and_of_resized_images_are_refused(
    sets: tuple[TestSet, ...], tmp_path: Path
) -> None:
    with refused(r"--score_maps .*empty: no folder RoadAnomaly21 in it, which --dat"):
        MapFolder(tmp_path / "empty", sets)
    write_ones(tmp_path)
    with refused("an image that no map belongs to; maps are of native size"):
        MapFolder(tmp_path / "maps", sets)(BLANK)


def test_one_image_of_two_sets_may_not_have_two_maps(tmp_path: Path) -> None:
    both = write_sets(tmp_path / "sets", "RoadAnomaly21", "fs_static", count=1)
    for folder in ("RoadAnomaly21", "fs_static"):
        write_map(tmp_path / f"maps/{folder}/0.npy", np.ones(SIZE, np.float32))
    MapFolder(tmp_path / "maps", both)
    write_map(tmp_path / "maps/fs_static/0.npy", np.zeros(SIZE, np.float32))
    text = r"fs_static/0.npy: another map than .*RoadAnomaly21/0.npy of the same"
    with refused(text):
        MapFolder(tmp_path / "maps", both)
