"""Component metrics against a slow transcription of their definition, on random fields, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from eval.metrics.bootstrap import draw_weights
from eval.metrics.components import TAUS, component_metrics, count_components
from eval.metrics.measure import measure_components
from eval.protocol import PROTOCOLS


def slow_frame(scores, target, threshold, smallest):
    """Follow the toolkit's definition with sets of pixels, one segment after the other."""
    eight = np.ones((3, 3))
    true_map, num_true = ndimage.label(target == 1, eight)
    predicted_map, num_predicted = ndimage.label((scores > threshold) & (target != 255), eight)
    void = {tuple(p) for p in np.argwhere(target == 255)}
    true = [{tuple(p) for p in np.argwhere(true_map == i + 1)} for i in range(num_true)]
    predicted = [{tuple(p) for p in np.argwhere(predicted_map == i + 1)} for i in range(num_predicted)]
    predicted = [segment for segment in predicted if len(segment) >= smallest[0]]
    for segment in true:
        if len(segment) < smallest[1]:
            void |= segment
    true = [segment for segment in true if len(segment) >= smallest[1]]
    predicted = [segment - void for segment in predicted if segment - void]
    every_true = set().union(*true) if true else set()
    siou, ppv = [], []
    for k in true:
        joined = set().union(*[p for p in predicted if p & k])
        siou.append(len(k & joined) / len((k | joined) - (joined & (every_true - k))))
    for p in predicted:
        ppv.append(len(p & every_true) / len(p))
    return siou, ppv


def slow_set(frames):
    siou = [value for frame in frames for value in frame[0]]
    ppv = [value for frame in frames for value in frame[1]]
    f1 = []
    for tau in TAUS:
        tp, fn = sum(v >= tau for v in siou), sum(v < tau for v in siou)
        f1.append(2 * tp / (2 * tp + fn + sum(v < tau for v in ppv)))
    return sum(siou) / len(siou), sum(ppv) / len(ppv), sum(f1) / len(f1)


def random_frame(rng: np.random.Generator):
    field = ndimage.gaussian_filter(rng.standard_normal((60, 80)), 3)
    target = (field > 1.2 * field.std()).astype(np.uint8)
    target[ndimage.gaussian_filter(rng.standard_normal((60, 80)), 4) > 0.1] = 255
    scores = field + ndimage.gaussian_filter(rng.standard_normal((60, 80)), 2) * rng.uniform(0.2, 1)
    return scores.astype(np.float32), target, float(1.1 * field.std())


@pytest.mark.parametrize("smallest", [(1, 1), (30, 12)], ids=["all", "large"])
@pytest.mark.parametrize("seed", range(4))
def test_metrics_of_random_fields_match_the_definition(seed, smallest):
    rng = np.random.default_rng(seed)
    frames = [random_frame(rng) for _ in range(5)]
    counts = np.stack([count_components(*frame, smallest) for frame in frames])
    sets = {(1, 1, 1, 1, 1): range(5), (2, 0, 1, 0, 1): (0, 0, 2, 4)}  # weights repeat frames
    expected = [slow_set([slow_frame(*frames[i], smallest) for i in chosen]) for chosen in sets.values()]
    found = component_metrics(counts, np.array(list(sets), float))
    np.testing.assert_allclose(np.transpose(found), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose([m[0] for m in component_metrics(counts)], expected[0], rtol=0, atol=1e-12)


def count(scores: list, target: list) -> tuple[list[float], np.ndarray]:
    """Segments, true and predicted, and sums of sIoU and PPV; true segments found per τ."""
    counts = count_components(np.array(scores, np.float32), np.array(target, np.uint8), 0.5, (1, 1))
    return counts[:4].tolist(), counts[4:15]


def test_one_find_over_two_objects_costs_neither():
    target = np.ones((4, 9))
    target[:, 4] = 0
    # each object: 16 found; the join of 36 pixels less 16 of the other object leaves 20
    assert count(np.ones((4, 9)), target)[0] == pytest.approx([2, 1, 2 * 16 / 20, 32 / 36])


def test_a_pixel_at_the_threshold_is_not_predicted_and_void_separates():
    assert count([[1, 9, 1, 0.5]], [[1, 255, 1, 0]])[0] == [2, 2, 2.0, 2.0]


def test_a_set_without_segments_has_no_metric():
    nothing = count_components(np.zeros((3, 3), "f4"), np.zeros((3, 3), "u1"), 0.5, (1, 1))
    assert np.isnan([m[0] for m in component_metrics(nothing[None])]).all()


def test_three_pixels_of_five_do_not_reach_the_toolkits_six_tenths():
    found = count([[1, 1, 1, 0, 0]], [[1, 1, 1, 1, 1]])[1]
    steps = np.linspace(0.25, 0.75, 11, endpoint=True)  # the default of the toolkit's segment_metrics
    np.testing.assert_array_equal(found, steps <= 3 / 5)
    assert found.sum() == 7


def test_under_protocol_smiyc_the_threshold_is_rounded_to_half_precision():
    frame = np.array([[0.25, 0.25, 0, 0]], np.float32), np.array([[1, 1, 0, 0]], np.uint8)
    below = 0.25 - 1e-5  # the next float16 below 0.25 is 0.2499, so this one is 0.25 there
    protocols = (PROTOCOLS["native"], PROTOCOLS["smiyc"])
    assert [measure_components([frame], below, p, (1, 1))["siou"] for p in protocols] == [1.0, 0.0]


def test_intervals_are_those_of_sets_with_images_drawn_again():
    rng = np.random.default_rng(4)
    smallest, frames, rows = (5, 5), [], []
    for _ in range(6):
        scores, target, threshold = random_frame(rng)
        frames.append((scores / np.float32(threshold), target))
        below = float(np.nextafter(np.float32(1), np.float32(0)))  # pixels at the threshold count
        rows.append(count_components(*frames[-1], below, smallest))
    found = measure_components(frames, 1.0, PROTOCOLS["native"], smallest)
    drawn = []
    for weights in draw_weights(6).astype(int):
        true, predicted, siou, ppv = np.repeat(rows, weights, axis=0).sum(axis=0)[:4]
        drawn.append((siou / true, ppv / predicted))
    for values, interval in zip(np.array(drawn).T, (found["siou_ci"], found["ppv_ci"]), strict=True):
        np.testing.assert_allclose(interval, np.quantile(values, [0.025, 0.975]), rtol=1e-12)
    for name in ("siou", "ppv"):
        assert found[f"{name}_ci"][0] < found[name] < found[f"{name}_ci"][1]
