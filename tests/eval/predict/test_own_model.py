"""A user's model and score maps give the numbers that the same answers give from a network of ours."""

from __future__ import annotations

from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from eval.evaluate import evaluate_test_set
from eval.predict.own_model import OwnPredictor
from eval.predict.score_maps import MapFolder, read_map
from eval.predict.scores import DEFAULT_SCORES, SCORES
from eval.predict.strips import answer_pixels
from eval.protocol import PROTOCOLS
from eval.sets.registry import TestSet, find_test_sets, read_image, read_target
from shards.errors import InputError

SIZE = (12, 20)


def write_set(root: Path, folder: str = "RoadAnomaly21", count: int = 2) -> None:
    rng = np.random.default_rng(3)
    for name in ("images", "labels_masks"):
        (root / folder / name).mkdir(parents=True)
    for i in range(count):
        mask = np.zeros(SIZE, np.uint8)
        mask[2:6, 3 : 8 + i] = 1
        cv2.imwrite(str(root / folder / f"images/{i}.png"), rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        cv2.imwrite(str(root / folder / f"labels_masks/{i}.png"), mask)


@pytest.fixture
def sets(tmp_path: Path) -> tuple[TestSet, ...]:
    write_set(tmp_path / "sets")
    return find_test_sets(tmp_path / "sets")


def logits_of(image: np.ndarray) -> np.ndarray:
    weights = np.random.default_rng(0).normal(size=(19, 3))
    return np.einsum("ck,hwk->chw", weights, image / 255.0)


def score_of(image: np.ndarray) -> np.ndarray:
    return (image[..., 0].astype(np.float32) - image[..., 2]) / 100


def pooled_ap(test_set: TestSet, score: object) -> float:
    pairs = [(read_target(f, test_set.convention), score(read_image(f))) for f in test_set.frames]  # type: ignore[operator]
    targets, scores = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    return float(average_precision_score(targets, scores))


def evaluate(predictor: object, test_set: TestSet, scores: tuple[str, ...]) -> dict[str, float | None]:
    found = evaluate_test_set(
        predictor,  # type: ignore[arg-type]
        test_set,
        [PROTOCOLS["native"]],
        scores=scores,
        components=False,
        num_examples=0,
    )
    return {record.score: record.ap for record in found.records}


def test_logits_and_own_scores_are_measured_together(sets: tuple[TestSet, ...]) -> None:
    predictor = OwnPredictor(
        lambda image: {"logits": logits_of(image), "Redness": score_of(image)}, "mine.py"
    )
    offer = predictor.probe(read_image(sets[0].frames[0]))
    assert offer[:2] == (19, ("Redness",))
    other = OwnPredictor(lambda image: {"logits": logits_of(image), "Redness": -score_of(image)}, "mine.py")
    assert other.probe(read_image(sets[0].frames[0])).fingerprint != offer.fingerprint
    scores = predictor.choose_scores(offer, DEFAULT_SCORES)
    assert scores == (*DEFAULT_SCORES, "Redness")
    found = evaluate(predictor, sets[0], scores)
    assert found["Redness"] == pytest.approx(pooled_ap(sets[0], score_of), abs=1e-9)
    for name in DEFAULT_SCORES:

        def computed(image: np.ndarray, name: str = name) -> np.ndarray:
            return SCORES[name](torch.from_numpy(logits_of(image)).float()[None])[0].numpy()

        assert found[name] == pytest.approx(pooled_ap(sets[0], computed), abs=1e-9)


def test_logits_alone_and_scores_alone_may_be_arrays_or_tensors(sets: tuple[TestSet, ...]) -> None:
    image = read_image(sets[0].frames[0])
    for answer in (logits_of, lambda x: torch.from_numpy(logits_of(x)).half().requires_grad_()):
        predictor = OwnPredictor(answer, "mine.py")
        predictor.choose_scores(predictor.probe(image), ("RbA",))
        evidence = predictor(image)
        answers = answer_pixels(evidence, ("RbA",))
        np.testing.assert_allclose(evidence.numpy(), logits_of(image), atol=2e-3)  # of half precision
        np.testing.assert_array_equal(answers.prediction, evidence.argmax(dim=0))
    predictor = OwnPredictor(lambda x: {"Redness": score_of(x)}, "mine.py")
    assert predictor.choose_scores(predictor.probe(image), DEFAULT_SCORES) == ("Redness",)
    answers = answer_pixels(predictor(image), ("Redness",))
    np.testing.assert_array_equal(answers.scores["Redness"], score_of(image))
    assert (answers.prediction == 255).all()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (None, r"logits is NoneType; expected an array or tensor"),
        ({}, r"answers an empty mapping; expected maps by name"),
        (
            np.zeros((19, 6, 10)),
            r"logits is float64 of shape \(19, 6, 10\); expected .* \(C, 12, 20\) for an",
        ),
        (np.zeros((19, 12, 20), int), r"logits is int64 of shape"),
        (np.zeros((1, 12, 20)), r"logits are of one class; scores compare two or more"),
        ({"X": torch.zeros(1, 12, 20)}, r"X is torch.float32 of shape \(1, 12, 20\); expected .* \(12, 20\)"),
        ({"MSP": np.zeros((12, 20))}, r"answers a score MSP, which is computed here from logits"),
    ],
)
def test_an_answer_of_another_kind_is_named(answer: object, text: str) -> None:
    with pytest.raises(InputError, match=f"mine.py: {text}"):
        OwnPredictor(lambda _: answer, "mine.py").probe(np.zeros((*SIZE, 3), np.uint8))  # type: ignore[arg-type, return-value]


def test_scores_that_the_answers_do_not_suffice_for_are_refused(sets: tuple[TestSet, ...]) -> None:
    predictor = OwnPredictor(lambda image: {"Redness": score_of(image)}, "mine.py")
    offer = predictor.probe(read_image(sets[0].frames[0]))
    with pytest.raises(InputError, match="--scores: got 'MSP'; what mine.py answers gives Redness"):
        predictor.choose_scores(offer, ("MSP",))


def test_a_model_must_go_on_as_it_began() -> None:
    answers = iter(
        [{"A": np.zeros(SIZE)}, {"B": np.zeros(SIZE)}, logits_of(np.zeros((*SIZE, 3))), {"A": np.zeros(SIZE)}]
    )
    predictor = OwnPredictor(lambda _: next(answers), "mine.py")  # type: ignore[arg-type, return-value]
    image = np.zeros((*SIZE, 3), np.uint8)
    predictor.choose_scores(predictor.probe(image), DEFAULT_SCORES)
    with pytest.raises(InputError, match=r"mine.py: answers no A for one image, but did for the first"):
        predictor(image)
    predictor.choose_scores(predictor.probe(image), ("MSP",))
    with pytest.raises(InputError, match=r"mine.py: answers no logits for one image, but did for the first"):
        predictor(image)


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


def save(path: Path, values: np.ndarray) -> None:
    np.save(path, values)


MAP_FAULTS = {
    "missing": (lambda p: p.unlink(), "RoadAnomaly21: no map for image 1; expected suffix .npy, .hdf5, .h5"),
    "left over": (
        lambda p: save(p.with_name("7.npy"), np.zeros(SIZE)),
        "7.npy: map without image in RoadAnomaly21, 1 in all",
    ),
    "twice": (lambda p: p.with_suffix(".h5").touch(), "1.npy: two maps for one image; the other is 1.h5"),
    "size": (lambda p: save(p, np.zeros((6, 10))), "1.npy: is 10 x 6, its image 20 x 12"),
    "type": (
        lambda p: save(p, np.zeros(SIZE, int)),
        r"1.npy: int64 of shape \(12, 20\); expected floating-point",
    ),
    "axes": (lambda p: save(p, np.zeros((1, *SIZE))), r"1.npy: float64 of shape \(1, 12, 20\); expected"),
    "NaN": (lambda p: save(p, np.full(SIZE, np.nan)), "1.npy: holds NaN"),
    "infinity": (lambda p: save(p, np.full(SIZE, -np.inf)), "1.npy: holds infinity"),
    "no array": (lambda p: p.write_bytes(b"no"), "1.npy: cannot be read as an array"),
}


@pytest.mark.parametrize("fault", MAP_FAULTS)
def test_what_is_wrong_with_maps_is_named_before_anything_is_measured(
    sets: tuple[TestSet, ...], tmp_path: Path, fault: str
) -> None:
    for stem in "01":
        write_map(tmp_path / f"maps/RoadAnomaly21/{stem}.npy", np.ones(SIZE, np.float32))
    spoil, text = MAP_FAULTS[fault]
    spoil(tmp_path / "maps/RoadAnomaly21/1.npy")
    with pytest.raises(InputError, match=text):
        MapFolder(tmp_path / "maps", sets)


def test_files_of_other_kinds_than_their_names_say_are_named(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros(SIZE, np.uint8))
    with pytest.raises(InputError, match=r"a.png: uint8; a PNG map has 16 bits, since 256 levels tie"):
        read_map(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no")
    with pytest.raises(InputError, match=r"b.png: cannot be read as a picture"):
        read_map(tmp_path / "b.png")
    (tmp_path / "c.h5").write_bytes(b"no")
    with pytest.raises(InputError, match=r"c.h5: cannot be read as HDF5"):
        read_map(tmp_path / "c.h5")
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["a"], file["b"] = 1.0, 2.0
    with pytest.raises(InputError, match=r"d.h5: holds a, b; expected the dataset value"):
        read_map(tmp_path / "d.h5")


def test_maps_without_the_sets_folder_and_of_resized_images_are_refused(
    sets: tuple[TestSet, ...], tmp_path: Path
) -> None:
    (tmp_path / "maps").mkdir()
    with pytest.raises(
        InputError, match=r"--score_maps .*maps: no folder RoadAnomaly21 in it, which --datasets"
    ):
        MapFolder(tmp_path / "maps", sets)
    for stem in "01":
        write_map(tmp_path / f"maps/RoadAnomaly21/{stem}.npy", np.ones(SIZE, np.float32))
    maps = MapFolder(tmp_path / "maps", sets)
    with pytest.raises(InputError, match="an image that no map belongs to; maps are of native size"):
        maps(np.zeros((*SIZE, 3), np.uint8))


def test_one_image_of_two_sets_may_not_have_two_maps(tmp_path: Path) -> None:
    for folder in ("RoadAnomaly21", "fs_static"):
        write_set(tmp_path / "sets", folder, count=1)
        write_map(tmp_path / f"maps/{folder}/0.npy", np.ones(SIZE, np.float32))
    both = find_test_sets(tmp_path / "sets")
    MapFolder(tmp_path / "maps", both)
    write_map(tmp_path / "maps/fs_static/0.npy", np.zeros(SIZE, np.float32))
    with pytest.raises(
        InputError, match=r"fs_static/0.npy: another map than .*RoadAnomaly21/0.npy of the same"
    ):
        MapFolder(tmp_path / "maps", both)
