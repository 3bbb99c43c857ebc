"""The evaluation with a network that is a function of the pixels: everything is known beforehand."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from eval.evaluate import evaluate_closed_set, evaluate_test_set
from eval.predict.scores import DEFAULT_SCORES, SCORES
from eval.predict.strips import answer_pixels
from eval.predict.windows import slide
from eval.protocol import get_protocol, get_protocols
from eval.report.record import Record
from eval.report.slices import BANDS
from eval.sets.registry import TestSet, find_test_sets, read_image, read_target
from shards.errors import InputError
from shards.prepare.writer import write_shard
from shards.reader import ShardReader

WINDOW = (16, 16)


def write_test_set(root: Path, count: int = 3) -> TestSet:
    rng = np.random.default_rng(0)
    for name in ("images", "labels_masks"):
        (root / "fs_static" / name).mkdir(parents=True)
    for i in range(count):
        mask = rng.choice(np.array([0, 1, 255], np.uint8), (16, 24), p=[0.6, 0.3, 0.1])
        image = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
        cv2.imwrite(str(root / f"fs_static/images/{i}.png"), image)
        cv2.imwrite(str(root / f"fs_static/labels_masks/{i}.png"), mask)
    return find_test_sets(root)[0]


def predict_windows(windows: torch.Tensor) -> torch.Tensor:
    return windows.float() / 255  # the evidence of class c is channel c


PREDICTOR = slide(predict_windows, WINDOW)


def evaluated(test_set: TestSet, **options):
    return evaluate_test_set(PREDICTOR, test_set, [get_protocol("native")], **options)


def test_records_match_sklearn_over_all_pixels(tmp_path):
    test_set = write_test_set(tmp_path)
    targets = np.stack([read_target(f, test_set.convention) for f in test_set.frames])
    evidence = np.stack([read_image(f) for f in test_set.frames]).astype(np.float32) / np.float32(255)
    counted = targets != 255
    result = evaluated(test_set, components=False)
    assert [record.score for record in result.records] == list(DEFAULT_SCORES)
    for record in result.records:
        scores = SCORES[record.score](torch.from_numpy(evidence.transpose(0, 3, 1, 2))).numpy()
        expected = average_precision_score(targets[counted], scores[counted])
        assert record.ap == pytest.approx(
            expected, abs=1e-5
        )  # classes in another order tie but for a last bit
        assert record.auroc == pytest.approx(roc_auc_score(targets[counted], scores[counted]), abs=1e-5)
        assert (record.num_images, record.num_pixels) == (3, counted.sum())
        assert (record.dataset, record.protocol, record.miou) == ("FS Static", "native", None)


def refuse(*_: object) -> None:
    raise AssertionError("images were resampled")


def test_images_are_resampled_where_intervals_are_asked_for(tmp_path, monkeypatch):
    """In every float type, component metrics included; the numbers are the same."""
    test_set = write_test_set(tmp_path)
    ask = functools.partial(evaluate_test_set, PREDICTOR, test_set, get_protocols(("native", "smiyc")))
    whole = ask().records
    assert all(record.ap_ci and record.fpr95_ci for record in whole)
    monkeypatch.setattr("eval.metrics.bootstrap.draw_weights", refuse)
    none = {f.name: None for f in dataclasses.fields(Record) if f.name.endswith("_ci")}
    assert ask(intervals=False).records == [dataclasses.replace(record, **none) for record in whole]
    with pytest.raises(AssertionError, match="images were resampled"):
        ask()


def test_maps_of_query_scores_stand_behind_the_evidence():
    maps = torch.randn(5, 70, 9, generator=torch.Generator().manual_seed(0))
    answers = answer_pixels(maps, ["UNO", "RbA", "EAM"])
    assert list(answers.scores) == ["UNO", "RbA", "EAM"]
    np.testing.assert_array_equal(answers.scores["UNO"], maps[3])
    np.testing.assert_array_equal(answers.scores["EAM"], maps[4])
    np.testing.assert_allclose(answers.scores["RbA"], SCORES["RbA"](maps[None, :3])[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(answers.prediction, maps[:3].argmax(dim=0))


def test_each_image_is_segmented_once_whatever_the_number_of_scores(tmp_path):
    seen = []
    evaluate_test_set(
        slide(lambda windows: seen.append(len(windows)) or predict_windows(windows), WINDOW, 8),
        write_test_set(tmp_path),
        [get_protocol("native")],
        scores=["MSP", "RbA"],
    )
    assert seen == [2, 2, 2]


def test_images_without_anomaly_are_kept_or_skipped_as_the_protocol_says(tmp_path):
    test_set = write_test_set(tmp_path)
    cv2.imwrite(str(test_set.frames[1].mask), np.zeros((16, 24), np.uint8))
    (kept,) = evaluated(test_set, scores=["MSP"]).records
    skipping = dataclasses.replace(get_protocol("native"), images_without_anomaly="skipped")
    (skipped,) = evaluate_test_set(PREDICTOR, test_set, [skipping], scores=["MSP"]).records
    assert (kept.num_images, skipped.num_images) == (3, 2)
    assert kept.num_pixels - skipped.num_pixels == 16 * 24


def test_slices_are_counted_for_every_protocol_at_its_own_threshold(tmp_path):
    names = ["native", "smiyc"]
    results = evaluate_test_set(
        PREDICTOR, write_test_set(tmp_path), get_protocols(names), scores=["MSP"]
    ).results
    assert [result.record.protocol for result in results] == names
    for result in results:
        found = [value for of_slice, value in result.gallery.slices.items() if of_slice.name in BANDS
                 and of_slice.kind == "found"]  # fmt: skip
        share = sum(share * number for share, number in found) / sum(number for _, number in found)
        assert 0.95 <= share < 0.97


def test_the_chosen_frames_are_kept_for_the_picture(tmp_path):
    examples = evaluated(write_test_set(tmp_path), num_examples=2, scores=["RbA"]).examples
    assert [example.title for example in examples] == ["0", "2"]
    assert list(examples[0].scores) == ["RbA"]


def test_a_network_that_answers_nan_is_reported(tmp_path):
    with pytest.raises(InputError, match="scores of anomalous pixels are NaN"):
        evaluate_test_set(
            lambda image: PREDICTOR(image) * torch.nan,
            write_test_set(tmp_path),
            [get_protocol("native")],
        )


def test_an_image_of_another_size_than_its_mask_is_named(tmp_path):
    test_set = write_test_set(tmp_path)
    cv2.imwrite(str(test_set.frames[0].mask), np.zeros((8, 24), np.uint8))
    with pytest.raises(InputError, match=r"images/0.png: image is 24 x 16, its mask 24 x 8"):
        evaluated(test_set)


def test_nothing_is_left_in_the_folder(tmp_path):
    (tmp_path / "scratch").mkdir()
    evaluated(write_test_set(tmp_path), scratch=tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_miou_of_known_predictions(tmp_path):
    image = np.zeros((16, 32, 3), dtype=np.uint8)
    image[..., 2], image[:, 16:, 1] = 100, 200  # class 0 on the left, class 1 on the right; B G R
    label = np.zeros((16, 32), dtype=np.uint8)
    label[:, 24:], label[:4] = 1, 255
    picture, truth = (cv2.imencode(".png", part)[1].tobytes() for part in (image, label))
    members = {"image.png": picture, "label.png": truth}
    write_shard(tmp_path / "v.tar", [(key, members) for key in "ab"])
    reader = ShardReader([tmp_path / "v.tar"])
    result = evaluate_closed_set(PREDICTOR, reader, 2)
    without = evaluate_closed_set(PREDICTOR, reader, 2, intervals=False)
    assert without == result._replace(miou_ci=None, ece_ci=None) != result
    assert result.num_images == 2
    assert (result.iou["road"], result.iou["sidewalk"]) == (16 / 24, 8 / 16)
    assert result.iou["bicycle"] is None
    assert result.miou == pytest.approx((16 / 24 + 8 / 16) / 2)
