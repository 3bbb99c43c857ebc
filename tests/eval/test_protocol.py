"""Each protocol against what its convention does, computed with other people's functions."""

from __future__ import annotations

import dataclasses
import itertools
import re

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_curve

from eval.metrics.curve import FPR_RULES, ImageScores
from eval.metrics.measure import measure_score
from eval.part import TestSetPart, evaluate_test_set
from eval.predict.windows import SlidingPredictor
from eval.protocol import MAX_IMAGES_RBA, PROTOCOLS, get_protocol, get_protocols
from eval.sets.registry import find_test_sets, resize_target
from tests.support.evaluation import write_set
from tests.support.refused import refused


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_footnote_states_every_choice(name):
    protocol = get_protocol(name)
    for field in dataclasses.fields(protocol):
        if isinstance(value := getattr(protocol, field.name), str):
            assert value in protocol.describe()
    assert ("its mirror image at scale 1" in protocol.describe()) == protocol.flip
    assert ("smoothed by a Gaussian" in protocol.describe()) == protocol.smooth
    assert protocol.name == name
    assert protocol.fpr_rule in FPR_RULES


def test_a_protocol_that_is_not_there_is_refused_with_the_available_ones():
    available = "native, course-512, smiyc, fishyscapes, pebal, rpl, mask2anomaly, rba, each with .flip, "
    with refused(f"--protocol: no protocol 'Native'; available: {available}"):
        get_protocol("Native")
    with refused("--protocol: got rba, rba; at least one, each once"):
        get_protocols(["rba", "rba"])
    with refused("--protocol: got nothing"):
        get_protocols([])


def test_what_is_done_with_scores_stands_in_the_name_and_in_the_footnote():
    protocol = get_protocol("smiyc+smooth+scales-50-100+flip")
    assert protocol.name == "smiyc+flip+scales-50-100+smooth"
    assert protocol.ap_rule == PROTOCOLS["smiyc"].ap_rule
    told = "scores of the image and its mirror image at scale 0.5, 1, smoothed by a Gaussian of 7 x 7 pixels"
    assert told in protocol.describe()
    assert get_protocol("native+scales-100") == get_protocol("native")


@pytest.mark.parametrize("addition", ["flip+flip", "scales", "scales-10", "scales-x", "blur", "", "smooth-7"])
def test_an_addition_that_is_not_there_is_refused(addition):
    text = re.escape(addition.rpartition("+")[2])
    with refused(rf"'native\+{re.escape(addition)}': got \+{text}; native may have"):
        get_protocol(f"native+{addition}")
    with refused(r"'pebal\+smooth': got \+smooth; pebal may have .* each once"):
        get_protocol("pebal+smooth")


def sort_image(score: np.ndarray, target: np.ndarray) -> ImageScores:
    return ImageScores(np.sort(score[target == 1]), np.sort(score[target == 0]))


def drawn_images(
    num_images: int = 5, digits: int = 2
) -> tuple[list[ImageScores], list[np.ndarray], list[np.ndarray]]:
    """Images of which the third has no anomaly; rounded, so that thresholds hold many pixels."""
    rng = np.random.default_rng(8)
    maps, targets = [], []
    for i in range(num_images):
        target = rng.choice(np.array([0, 1, 255], np.uint8), (20, 30), p=[0.7, 0.2, 0.1])
        target[target == 1] = 0 if i == 2 else 1
        maps.append(np.round(rng.normal(size=(20, 30)) + (target == 1), digits).astype(np.float32))
        targets.append(target)
    return [sort_image(*pair) for pair in zip(maps, targets, strict=True)], maps, targets


def pooled(maps: list[np.ndarray], targets: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Truth and scores of all pixels that count, and scikit-learn's FPR and TPR of every threshold."""
    truth, scores = (np.concatenate([part.ravel() for part in parts]) for parts in (targets, maps))
    truth, scores = truth[truth != 255], scores[truth != 255]
    return truth, scores, *roc_curve(truth, scores, drop_intermediate=False)[:2]


RULES = {
    "fishyscapes": lambda fpr, tpr: fpr[np.searchsorted(tpr, 0.95)],
    "rba": lambda fpr, tpr: fpr[np.flatnonzero(tpr > 0.95)[0]],
    "course-512": lambda fpr, tpr: np.interp(0.95, tpr, fpr),
}
"""The first threshold that reaches 95 %, the first above, and between two."""


@pytest.mark.parametrize("name", RULES)
def test_ap_is_sklearns_and_fpr95_is_read_by_the_rule(name):
    images, maps, targets = drawn_images()
    kept = [0, 1, 3, 4] if name == "course-512" else range(5)  # it skips images without anomaly
    truth, scores, fpr, tpr = pooled([maps[i] for i in kept], [targets[i] for i in kept])
    measured = measure_score(images, get_protocol(name))
    assert measured.metrics.fpr95 == pytest.approx(RULES[name](fpr, tpr), abs=1e-12)
    assert measured.metrics.ap == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    assert measured.num_images == len(kept)


def test_rba_takes_no_image_from_1300_on():
    images, maps, targets = drawn_images()
    empty = ImageScores(np.zeros(0, np.float32), np.zeros(0, np.float32))
    more = images + [empty] * (MAX_IMAGES_RBA - len(images)) + [sort_image(-maps[0], targets[0])]
    rba, native = get_protocol("rba"), get_protocol("native")
    few, all_of_them = (measure_score(each, rba, intervals=False) for each in (images, more))
    assert (all_of_them.metrics, all_of_them.num_images) == (few.metrics, MAX_IMAGES_RBA)
    assert measure_score(more, native, intervals=False).num_images == MAX_IMAGES_RBA + 1


def test_pebal_takes_the_threshold_nearest_to_95_percent():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scores, truth = rng.integers(0, 12, 60).astype(np.float32), rng.random(60) < 0.4
        image = ImageScores(np.sort(scores[truth]), np.sort(scores[~truth]))
        points = [((scores[truth] >= t).mean(), (scores[~truth] >= t).mean()) for t in np.unique(scores)]
        # from full recall, reached as early as possible, downwards; of equally near ones the first
        full = max(t for t in np.unique(scores) if (scores[truth] >= t).all())
        points = points[int(np.flatnonzero(np.unique(scores) == full)[0]) :]
        nearest = min(points, key=lambda point: abs(point[0] - 0.95))
        found = measure_score([image], get_protocol("pebal"), intervals=False).metrics.fpr95
        assert found == pytest.approx(nearest[1], abs=1e-12), seed


def test_course_512_squashes_image_and_mask_as_the_courses_script_does(tmp_path):
    rng = np.random.default_rng(3)
    frames = []
    for _ in range(2):
        mask = cv2.resize(rng.integers(0, 2, (9, 13), dtype=np.uint8) * 2, (130, 90), interpolation=0)
        frames.append((cv2.resize(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8), (130, 90)), mask))
    write_set(tmp_path / "RoadAnomaly", frames)
    (test_set,) = find_test_sets(tmp_path)
    truth, scores = [], []
    for frame in test_set.frames:
        image = Image.open(frame.image).resize((1024, 512), Image.Resampling.BILINEAR)
        truth.append(np.asarray(Image.open(frame.mask).resize((1024, 512), Image.Resampling.NEAREST)) == 2)
        scores.append(-(np.asarray(image).astype(np.float32) / 255).max(axis=2))
    expected = average_precision_score(np.stack(truth).ravel(), np.stack(scores).ravel())
    protocols = [get_protocol("course-512")]
    part = TestSetPart(test_set=test_set, protocols=protocols, scores=("MaxLogit",), components=False)
    predictor = SlidingPredictor(lambda windows: windows.float() / 255, (512, 1024))
    (result,) = evaluate_test_set(part, predictor).results
    assert result.record.num_pixels == 2 * 512 * 1024
    assert result.record.ap == pytest.approx(
        expected, abs=1e-3
    )  # Pillow rounds between its passes, we do not


@pytest.mark.parametrize("shape", [(7, 5), (90, 130), (512, 1024), (1080, 1920)])
def test_targets_are_resized_as_pillow_does(shape):
    target = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = Image.fromarray(target).resize((64, 48), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(resize_target(target, (48, 64)), np.asarray(expected))


def slow_percentile_metrics(maps, targets):
    """Follow `PixBinaryClass`: bins per image, thresholds joined, the curve read off point by point."""
    points: dict[float, list[int]] = {}
    for score, target in zip(maps, targets, strict=True):
        half = score.astype(np.float16)
        true, false = half[target == 1], half[target == 0]
        everything = np.concatenate([true, false])
        eps = max(float(everything.max() - everything.min()) * 0.01, 0.01)
        edges = {float(everything.min()) - eps, float(everything.max()) + eps}
        for part in (true, false):
            if part.size:
                edges |= {float(q) for q in np.quantile(part, np.linspace(0, 1, min(384, part.size)))}
        ordered = sorted(edges)
        for low, high in itertools.pairwise(ordered):
            point = points.setdefault(low, [0, 0])
            point[0] += sum(low <= float(v) < high for v in true)
            point[1] += sum(low <= float(v) < high for v in false)
    num_true, num_false = (sum(p[i] for p in points.values()) for i in (0, 1))
    tp = fp = 0
    ap, fpr95, f1 = 0.0, None, 0.0
    for threshold in sorted(points, reverse=True):
        tp, fp = tp + points[threshold][0], fp + points[threshold][1]
        if tp + fp:
            ap += points[threshold][0] / num_true * tp / (tp + fp)
        if fpr95 is None and tp / num_true >= 0.95:
            fpr95 = fp / num_false
        f1 = max(f1, 2 * tp / (tp + fp + num_true))
    return ap, fpr95, f1


@pytest.mark.parametrize("digits", [2, 6], ids=["rounded", "distinct"])
def test_smiyc_reads_thresholds_off_percentiles_of_half_precision(digits):
    images, maps, targets = drawn_images(digits=digits)
    metrics = measure_score(images, get_protocol("smiyc")).metrics
    ap, fpr95, f1 = slow_percentile_metrics(maps, targets)
    assert (metrics.ap, metrics.fpr95, metrics.best_f1) == pytest.approx((ap, fpr95, f1), abs=1e-12)


def test_smiyc_refuses_scores_that_half_precision_cannot_hold():
    images = [ImageScores(np.array([1e5], np.float32), np.array([0], np.float32))]
    with refused("a score is NaN or beyond 65504"):
        measure_score(images, get_protocol("smiyc"))
