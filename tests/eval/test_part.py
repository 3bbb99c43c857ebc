"""Parts of an evaluation with a network that is a function of the pixels: everything is known beforehand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from eval.metrics.closed_set import measure_closed_set
from eval.part import ClosedSetPart, TestSetPart, evaluate_closed_set, evaluate_test_set
from eval.predict.score_names import DEFAULT_SCORES
from eval.predict.scores import SCORES
from eval.predict.windows import SlidingPredictor
from eval.protocol import get_protocol, get_protocols
from eval.report.record import Record
from eval.report.slices import BANDS
from eval.result import SetResults
from eval.sets.registry import TestSet, find_test_sets, read_image, read_target
from eval.store import ImageStore
from shards.reader import ShardReader
from tests.support.evaluation import write_scenes, write_set
from tests.support.refused import refused

WINDOW = (16, 16)
NATIVE = get_protocol("native")


def predict_windows(windows: torch.Tensor) -> torch.Tensor:
    return windows.float() / 255  # the class scores of class c is channel c


PREDICTOR = SlidingPredictor(predict_windows, WINDOW)


@pytest.fixture
def test_set(tmp_path: Path) -> TestSet:
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(3):
        mask = rng.choice(np.array([0, 1, 255], np.uint8), (16, 24), p=[0.6, 0.3, 0.1])
        frames.append((rng.integers(0, 256, (16, 24, 3), dtype=np.uint8), mask))
    write_set(tmp_path / "fs_static", frames)
    return find_test_sets(tmp_path)[0]


def evaluated(
    test_set: TestSet, predictor=PREDICTOR, protocols=(NATIVE,), scratch=None, **settings
) -> SetResults:
    part = TestSetPart(test_set=test_set, protocols=protocols, **settings)
    return evaluate_test_set(part, predictor, scratch)


def records(*given, **settings) -> list[Record]:
    return [result.record for result in evaluated(*given, **settings).results]


def test_records_match_sklearn_over_all_pixels(test_set):
    targets = np.stack([read_target(f, test_set.convention) for f in test_set.frames])
    class_scores = np.stack([read_image(f) for f in test_set.frames]).astype(np.float32) / np.float32(255)
    counted = targets != 255
    found = records(test_set, components=False)
    assert [record.score for record in found] == list(DEFAULT_SCORES)
    for record in found:
        scores = SCORES[record.score](torch.from_numpy(class_scores.transpose(0, 3, 1, 2))).numpy()
        # To 1e-5: pixels of the same classes in another order tie but for a last bit.
        expected = average_precision_score(targets[counted], scores[counted])
        assert record.ap == pytest.approx(expected, abs=1e-5)
        assert record.auroc == pytest.approx(roc_auc_score(targets[counted], scores[counted]), abs=1e-5)
        assert (record.num_images, record.num_pixels) == (3, counted.sum())
        assert (record.dataset, record.protocol, record.miou) == ("FS Static", "native", None)


def refuse(*_: object) -> None:
    raise AssertionError("images were resampled")


def test_images_are_resampled_where_intervals_are_asked_for(test_set, monkeypatch):
    """In every float type, component metrics included; the numbers are the same."""
    protocols = get_protocols(("native", "smiyc"))
    whole = records(test_set, protocols=protocols, scores=("MSP",))
    assert all(record.ap_ci and record.fpr95_ci for record in whole)
    monkeypatch.setattr("eval.metrics.bootstrap.draw_weights", refuse)
    none = {f.name: None for f in dataclasses.fields(Record) if f.name.endswith("_ci")}
    expected = [dataclasses.replace(record, **none) for record in whole]
    assert records(test_set, protocols=protocols, scores=("MSP",), intervals=False) == expected
    with pytest.raises(AssertionError, match="images were resampled"):
        records(test_set)


def test_each_image_is_predicted_once_whatever_the_number_of_scores(test_set):
    seen = []
    counting = SlidingPredictor(
        lambda windows: seen.append(len(windows)) or predict_windows(windows), WINDOW, 8
    )
    protocols = get_protocols(["smiyc", "native", "rba"])
    found = records(test_set, counting, protocols, scores=("MSP", "RbA"), components=False)
    assert [(r.protocol, r.score) for r in found] == [(p.name, s) for p in protocols for s in ("MSP", "RbA")]
    assert seen == [2, 2, 2]


def test_images_without_anomaly_are_kept_or_skipped_as_the_protocol_says(test_set):
    cv2.imwrite(str(test_set.frames[1].mask), np.zeros((16, 24), np.uint8))
    skipping = dataclasses.replace(NATIVE, images_without_anomaly="skipped")
    settings = {"scores": ("MSP",), "components": False}
    kept, skipped = (records(test_set, protocols=(p,), **settings)[0] for p in (NATIVE, skipping))
    assert (kept.num_images, skipped.num_images) == (3, 2)
    assert kept.num_pixels - skipped.num_pixels == 16 * 24


def test_slices_are_counted_for_every_protocol_at_its_own_threshold(test_set):
    names = ["native", "smiyc"]
    results = evaluated(test_set, protocols=get_protocols(names), scores=("MSP",)).results
    assert [result.record.protocol for result in results] == names
    for result in results:
        slices = result.gallery.slices
        found = [slices[each] for each in slices if each.kind == "found" and each.name in BANDS]
        share = sum(share * number for share, number in found) / sum(number for _, number in found)
        assert 0.95 <= share < 0.97


def test_the_chosen_frames_are_kept_for_the_picture_and_nothing_in_the_folder(test_set, tmp_path):
    (tmp_path / "scratch").mkdir()
    examples = evaluated(test_set, scratch=tmp_path / "scratch", num_examples=2, scores=("RbA",)).examples
    assert [example.title for example in examples] == ["0", "2"]
    assert list(examples[0].scores) == ["RbA"]
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_network_that_answers_nan_is_reported(test_set):
    with refused("scores of anomalous pixels are NaN"):
        evaluated(test_set, SlidingPredictor(lambda windows: predict_windows(windows) * torch.nan, WINDOW))


def test_an_image_of_another_size_than_its_mask_is_named(test_set):
    cv2.imwrite(str(test_set.frames[0].mask), np.zeros((8, 24), np.uint8))
    with refused(r"images/0.png: image is 24 x 16, its mask 24 x 8"):
        evaluated(test_set)


def test_miou_of_known_predictions(tmp_path):
    image = np.zeros((16, 32, 3), dtype=np.uint8)
    image[..., 2], image[:, 16:, 1] = 100, 200  # class 0 on the left, class 1 on the right; B G R
    label = np.zeros((16, 32), dtype=np.uint8)
    label[:, 24:], label[:4] = 1, 255
    shards = write_scenes(tmp_path / "val", dict.fromkeys("ab", (image, label)))
    part = ClosedSetPart(ShardReader([shards / "val.tar"]), 2)
    result = evaluate_closed_set(part, PREDICTOR)
    assert result.num_images == 2
    assert (result.iou["road"], result.iou["sidewalk"]) == (16 / 24, 8 / 16)
    assert result.iou["bicycle"] is None
    assert result.miou == pytest.approx((16 / 24 + 8 / 16) / 2)
    store = ImageStore(tmp_path / "store", [{}] * 2)
    store.fill(lambda i: part.predict(PREDICTOR, i)[1])
    whole = measure_closed_set(part.measure(store))
    assert whole != result == whole._replace(miou_ci=None, ece_ci=None)
