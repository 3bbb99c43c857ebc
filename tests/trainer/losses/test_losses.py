"""The losses as a whole: against transformers and slow loops, for every awkward batch, cut in any way."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch
import torch.nn.functional as F
from transformers import EomtConfig
from transformers.models.eomt.modeling_eomt import EomtLoss

from models.eomt import Prediction
from shards.batch import Batch
from shards.schema import OUTLIER_ID, VOID_ID
from shards.settings import parse_options
from trainer.losses.classification import LogitNorm
from trainer.losses.loss import (
    CLASS_TERMS,
    OUTLIER_TERMS,
    build_loss,
    choose_points,
    draw_points,
    weighted_sum,
)
from trainer.losses.matcher import MatchCosts, Matching, match_depths
from trainer.losses.options import LossConfig, LossOptions, MaskOptions
from trainer.losses.outlier import Rba
from trainer.losses.targets import Segments, StepTotals, count_totals, find_segments, sample_membership
from trainer.optim import sample_generators

Q, C = 6, 19
COSTS = MatchCosts(mask=5.0, dice=5.0, class_=2.0)


def make_batch(kind: str = "mixed", size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(5)
    label = torch.randint(0, 4, (size, 8, 8), generator=generator).to(torch.uint8)
    label = label.repeat_interleave(4, 1).repeat_interleave(4, 2)
    label[:, :3] = VOID_ID
    label[: size // 2, 20:26, 5:20] = OUTLIER_ID
    if kind != "mixed":
        label[:] = {"void": VOID_ID, "outlier": OUTLIER_ID, "inlier": 2}[kind]
    image = torch.zeros(size, 3, 32, 32, dtype=torch.uint8)
    return Batch(image, label, tuple(f"scene{i}" for i in range(size)))


def make_prediction(
    size: int = 4, scale: float = 3.0, dtype: torch.dtype = torch.float32, columns: int = C + 1
) -> Prediction:
    generator = torch.Generator().manual_seed(6)
    masks = tuple((torch.randn(size, Q, 8, 8, generator=generator) * scale).to(dtype) for _ in range(2))
    classes = tuple((torch.randn(size, Q, columns, generator=generator) * scale).to(dtype) for _ in range(2))
    for tensor in (*masks, *classes):
        tensor.requires_grad_()
    return Prediction(masks, classes)


def columns_for(config: LossConfig) -> int:
    """Count the class logits: classes, the outlier class if outliers are one, "no object"."""
    return C + 1 + ("uno" in config.outlier)


def make_config(*outlier: str, classification: str = "cross_entropy", **mask: float) -> LossConfig:
    options = LossOptions(mask=MaskOptions(**{"num_points": 64, **mask}))
    return LossConfig(classification=classification, outlier=outlier, options=options).completed()


MIXTURES = {
    f"{classification}+{'+'.join(outlier) or 'nothing'}": make_config(*outlier, classification=classification)
    for classification in CLASS_TERMS
    for outlier in ((), *((name,) for name in (*OUTLIER_TERMS, "uno")), (*OUTLIER_TERMS, "uno"))
}
"""Every classification loss with no outlier term, with each of them, and with all at once."""


def run_loss(config: LossConfig, prediction: Prediction, batch: Batch) -> dict:
    totals = StepTotals(*count_totals([batch.label]).tolist())
    return build_loss(config)(prediction, batch, totals, sample_generators(0, 0, batch.keys, "cpu"))


def replay_points(matching: Matching, segments: Segments, keys: tuple[str, ...], num_points: int) -> list:
    """The random numbers that our loss draws at one depth, in the order in which transformers asks for them.

    Per image the matcher's points; then candidates and free points of all matched masks. Ours are ordered by
    segment, theirs by query.
    """
    generators = sample_generators(0, 0, keys, "cpu")
    answers = [torch.rand(1, num_points, 2, generator=generator) for generator in generators]
    image = segments.image_index[matching.segment[0]]
    candidates, free = [], []
    for i, generator in enumerate(generators):
        order = matching.query[0][image == i].argsort()
        candidates.append(torch.rand(len(order), 3 * num_points, 2, generator=generator)[order])
        free.append(torch.rand(len(order), num_points // 4, 2, generator=generator)[order])
    return [*answers, torch.cat(candidates), torch.cat(free)]


def test_the_whole_base_loss_equals_that_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """EoMT's own loss over there, matcher and sampling included, fed with the same random points."""
    batch, num_points = make_batch("mixed", 3), 64
    prediction = make_prediction(3)
    masks, classes = prediction.mask_logits[0].detach(), prediction.class_logits[0].detach()
    terms = run_loss(make_config(), Prediction((masks,), (classes,)), batch)

    segments = find_segments(batch.label)
    drawn = draw_points(1, [0] * 3, num_points, sample_generators(0, 0, batch.keys, "cpu"), masks.device)
    matching = match_depths([(masks, classes)], segments, COSTS, drawn.matching)
    answers = replay_points(matching, segments, batch.keys, num_points)
    settings = {"class_weight": 2.0, "dice_weight": 5.0, "mask_weight": 5.0, "no_object_weight": 0.1}
    config = EomtConfig(train_num_points=num_points, num_labels=C, **settings)
    theirs = EomtLoss(config, weight_dict={})
    class_labels = [segments.class_id[segments.image_index == i] for i in range(3)]
    mask_labels = [
        torch.stack([batch.label[i] == c for c in labels]).float() for i, labels in enumerate(class_labels)
    ]
    monkeypatch.setattr(torch, "rand", lambda *size, device=None: answers.pop(0))
    expected = theirs(masks, classes, mask_labels, class_labels)
    assert answers == []
    torch.testing.assert_close(terms["mask"], expected["loss_mask"])
    torch.testing.assert_close(terms["dice"], expected["loss_dice"])
    torch.testing.assert_close(terms["class"], expected["loss_cross_entropy"])


def test_unmatched_queries_are_weighted_as_no_object() -> None:
    batch = make_batch("void", size=1)
    prediction = make_prediction(1)
    terms = run_loss(make_config(), prediction, batch)
    expected = sum(
        F.cross_entropy(c[0], torch.full((Q,), C), reduction="sum") * 0.1 / max(1.0, 0.1 * Q)
        for c in prediction.class_logits
    )
    torch.testing.assert_close(terms["class"], expected)
    assert terms["mask"].item() == terms["dice"].item() == 0.0


def test_points_are_mostly_where_the_mask_is_uncertain() -> None:
    logits = torch.linspace(10, -10, 16).expand(1, 16, 16)  # least certain along the middle
    drawn = draw_points(1, [1], 400, sample_generators(0, 0, ("a",), "cpu"), torch.device("cpu"))
    points = choose_points(logits, drawn)
    important, anywhere = points[0, :300, 0], points[0, 300:, 0]
    assert points.shape == (1, 400, 2)
    assert (important - 0.5).abs().median() < (anywhere - 0.5).abs().median() / 2


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [0.0, 3.0, 1e4], ids=lambda s: f"logits{s:g}")
def test_terms_and_gradients_are_finite_and_connected(name: str, scale: float, dtype: torch.dtype) -> None:
    """Of batches that are mixed, all void, all outlier, or without any; in float32 and inside autocast."""
    config = MIXTURES[name]
    for kind in ("mixed", "void", "outlier", "inlier"):
        prediction = make_prediction(2, scale, dtype, columns_for(config))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            terms = run_loss(config, prediction, make_batch(kind, 2))
        weighted_sum(terms, config.weights).backward()
        assert all(value.dtype == torch.float32 and torch.isfinite(value) for value in terms.values()), kind
        for tensor in (*prediction.mask_logits, *prediction.class_logits):
            assert tensor.grad is not None, kind
            assert torch.isfinite(tensor.grad).all(), kind


def test_outliers_are_segments_of_one_more_class() -> None:
    """UNO equals the base objective over 20 classes: the same batch, its outliers relabelled, says so."""
    batch, prediction = make_batch(), make_prediction(columns=C + 2)
    terms = run_loss(make_config("uno"), prediction, batch)
    segments = find_segments(batch.label, outlier_class=True)
    assert segments.per_image[:2] == tuple(n + 1 for n in find_segments(batch.label).per_image[:2])
    assert (segments.class_id == C).sum() == 2
    masks = torch.stack([batch.label[i] == OUTLIER_ID for i in range(2)])
    which = (segments.class_id == C).nonzero()[:, 0]
    points = torch.rand(2, 100, 2)
    sampled = F.grid_sample(masks[:, None].float(), (2 * points - 1)[:, None], align_corners=False)
    torch.testing.assert_close(
        sample_membership(segments, which, points), sampled[:, 0, 0], atol=1e-5, rtol=0
    )
    assert set(terms) == {"mask", "dice", "class"}


def test_uno_counts_the_masks_of_outliers() -> None:
    """One image, all outlier: one query answers "outlier" with weight 1, the others "no object" with 0.1."""
    batch, prediction = make_batch("outlier", size=1), make_prediction(1, columns=C + 2)
    masks, classes = prediction.mask_logits[0], prediction.class_logits[0]
    terms = run_loss(make_config("uno"), Prediction((masks,), (classes,)), batch)
    drawn = draw_points(1, [0], 64, sample_generators(0, 0, batch.keys, "cpu"), masks.device)
    segments = find_segments(batch.label, outlier_class=True)
    query = int(match_depths([(masks, classes)], segments, COSTS, drawn.matching).query)
    target = torch.full((Q,), C + 1)
    target[query] = C
    weight = torch.ones(C + 2)
    weight[-1] = 0.1
    torch.testing.assert_close(terms["class"], F.cross_entropy(classes[0], target, weight))


def test_a_term_is_offered_on_the_command_line_by_its_place_in_the_table_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse_options(LossConfig, ["--help"], program="jobs.finetune")
    text = capsys.readouterr().out
    assert f"any number of: {', '.join(OUTLIER_TERMS)};" in re.sub(r"[\s│]+", " ", text)
    for name, term in OUTLIER_TERMS.items():
        for option in dataclasses.fields(term):
            assert f"--options.{name}.{option.name} " in text
    assert "--options.logit_norm.temperature " in text


def test_options_reach_the_loss() -> None:
    parts = {
        "mask": MaskOptions(num_points=7),
        "logit_norm": LogitNorm(temperature=0.5),
        "rba": Rba(layers=1),
    }
    options = LossOptions(**parts)
    loss = build_loss(LossConfig(classification="logit_norm", outlier=("rba",), options=options))
    assert (loss.options, loss.class_term, *loss.outlier_terms) == tuple(parts.values())


def test_nothing_to_match_more_segments_than_queries_and_costs_that_are_not_finite() -> None:
    classes, points = torch.randn(1, 2, 20), torch.rand(1, 1, 10, 2)

    def match(masks: torch.Tensor, label: torch.Tensor) -> Matching:
        return match_depths([(masks, classes)], find_segments(label), COSTS, points)

    masks, void = torch.randn(1, 2, 8, 8), torch.full((1, 8, 8), VOID_ID, dtype=torch.uint8)
    assert match(masks, void).query.shape == (1, 0)
    crowded = torch.arange(16, dtype=torch.uint8).view(1, 4, 4)
    assert sorted(match(masks, crowded).query[0].tolist()) == [0, 1]
    assert match(masks * math.nan, torch.zeros_like(void)).query.shape == (1, 1)


def test_depths_are_matched_each_for_itself_after_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second image is void, so matrices and images are not one to one."""
    label = torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    label[1] = VOID_ID
    depths = [(3 * torch.randn(2, 5, 8, 8), torch.randn(2, 5, 20)) for _ in range(3)]
    points = torch.rand(3, 2, 30, 2)
    segments = find_segments(label)
    transfers = []
    to_cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: transfers.append(tensor) or to_cpu(tensor))
    together = match_depths(depths, segments, COSTS, points)
    assert [tuple(tensor.shape) for tensor in transfers] == [(3, 2, 5, 3)]
    assert together.query.shape == (3, 3)
    for i, (depth, where) in enumerate(zip(depths, points, strict=True)):
        alone = match_depths([depth], segments, COSTS, where[None])
        assert torch.equal(alone.segment[0], together.segment[i])
        assert torch.equal(alone.query[0], together.query[i])


@pytest.mark.parametrize("name", MIXTURES)
def test_terms_and_gradients_of_a_step_are_the_sums_of_its_images(name: str) -> None:
    """Two with outliers, one without, one void; float32 sums in another order, of gradients up to 1."""
    config = MIXTURES[name]
    loss, batch = build_loss(config), make_batch()
    batch.label[3] = VOID_ID
    prediction = make_prediction(columns=columns_for(config))
    leaves = [*prediction.mask_logits, *prediction.class_logits]
    totals = StepTotals(*count_totals([batch.label[:1], batch.label[1:]]).tolist())

    def take(parts: list[slice]) -> list[torch.Tensor]:
        sums = torch.zeros(len(config.weights))
        for part in parts:
            cut = Prediction(*(tuple(depth[part] for depth in depths) for depths in prediction[:2]))
            micro = Batch(batch.image[part], batch.label[part], batch.keys[part])
            terms = loss(cut, micro, totals, sample_generators(0, 0, micro.keys, "cpu"))
            weighted_sum(terms, config.weights).backward()
            sums += torch.stack([terms[term].detach() for term in config.weights])
        gradients = [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]
        for leaf in leaves:
            leaf.grad = None
        return [sums, *gradients]

    whole, added = take([slice(None)]), take([slice(i, i + 1) for i in range(4)])
    assert all(bool(value.any()) for value in whole)
    torch.testing.assert_close(added, whole, atol=2e-6, rtol=1e-5)
