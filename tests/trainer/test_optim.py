"""Groups and rates of AdamW, and schedules by step."""

from __future__ import annotations

import pytest
import torch

from models.eomt import EoMT
from shards.errors import InputError
from tests.trainer.small_run import make_model
from trainer.optim import (
    build_lr_schedule,
    build_optimizer,
    draw_for_validation,
    draw_unmasked,
    explain_rates,
    group_parameters,
    lr_factor,
    mask_probability,
    sample_generators,
    unmasking_phase,
)
from trainer.sections import OptimConfig, ScheduleConfig


def rates_of(model: EoMT) -> dict[object, object]:
    return {g["name"]: g["lr"] for g in group_parameters(model, OptimConfig(lr=1.0, layer_decay=0.5))}


def test_rates_decay_from_the_last_block_to_the_first() -> None:
    assert rates_of(make_model()) == {
        "heads": 1.0,
        "backbone.norm": 1.0,
        **{f"backbone.blocks.{i:02d}": 0.5 ** (5 - i) for i in range(6)},
        "backbone.embed": 0.5**5,
    }


def test_over_dinov3_the_blocks_before_the_joint_ones_get_a_tenth_of_the_rate() -> None:
    config = OptimConfig().resolved("eomt-dinov3")
    rates = {g["name"]: g["lr"] for g in group_parameters(make_model(), config)}
    trunk = {"backbone.embed", *(f"backbone.blocks.{i:02d}" for i in range(4))}
    assert rates == {name: pytest.approx(2e-5 if name in trunk else 2e-4) for name in rates}
    assert len(rates) == 9
    assert OptimConfig(lr=1e-3).resolved("eomt-dinov3") == OptimConfig(
        lr=1e-3, layer_decay=1.0, trunk_factor=0.1
    )
    assert OptimConfig().resolved("eomt") == OptimConfig()


def test_every_trainable_parameter_is_in_one_group() -> None:
    model = make_model("last-1")
    optimizer = build_optimizer(model, OptimConfig())
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}


def test_adapters_have_a_group_of_their_own() -> None:
    assert rates_of(make_model("lora")) == {"lora": 1.0, "heads": 1.0}


def test_a_model_that_is_frozen_whole_is_refused() -> None:
    with pytest.raises(InputError, match="adapt.mode: nothing trains"):
        build_optimizer(make_model().requires_grad_(False), OptimConfig())


@pytest.mark.parametrize(
    ("rule", "batch", "expected"),
    [("none", 64, 1e-4), ("linear", 64, 4e-4), ("sqrt", 64, 2e-4), ("linear", 8, 5e-5), ("sqrt", 16, 1e-4)],
)
def test_the_rate_follows_the_global_batch_by_its_rule(rule: str, batch: int, expected: float) -> None:
    scaled = OptimConfig(lr_scaling=rule).scaled(batch)  # type: ignore[arg-type]
    assert scaled.lr == pytest.approx(expected)
    assert scaled.scaled(1).lr == scaled.lr  # not twice


def test_a_rate_that_no_weight_survives_is_refused() -> None:
    with pytest.raises(InputError, match=r"optim.lr must be .* at most 100, got 1000.0"):
        OptimConfig(lr=1.0, lr_scaling="linear", lr_batch=1).scaled(1000)


def test_the_log_says_which_rates_hold() -> None:
    config = OptimConfig(lr_scaling="linear", layer_decay=0.5)
    model = make_model()
    assert explain_rates(build_optimizer(model, config.scaled(32)), config, 32) == (
        "peak learning rates: heads 0.0002, backbone.norm 0.0002, backbone.blocks.00 6.25e-06; global batch "
        "32, scaling linear from 16"
    )


def schedule_of(
    config: ScheduleConfig, steps: int, *others: str, unfreeze_steps: tuple[int, ...] = ()
) -> dict[str, list[float]]:
    """Return the rate of each group, with a peak of 1, at each step of a run."""
    names = ("heads", "backbone.norm", *others)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "name": name} for name in names]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    schedule = build_lr_schedule(optimizer, config, steps, unfreeze_steps)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(steps):
        for group in optimizer.param_groups:
            rates[group["name"]].append(group["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_learning_rates_follow_the_two_stages() -> None:
    rates = schedule_of(ScheduleConfig(head_warmup=0.1, backbone_warmup=0.2, poly_power=0.9), 100)
    heads, backbone = rates["heads"], rates["backbone.norm"]
    assert heads[:11] == pytest.approx([i / 10 for i in range(11)])
    assert backbone[:11] == [0.0] * 11
    assert backbone[20] == pytest.approx(0.5)  # half of its warm-up
    assert backbone[30] == pytest.approx(1.0)
    assert heads[55] == pytest.approx((1 - 45 / 90) ** 0.9)
    assert backbone[65] == pytest.approx((1 - 35 / 70) ** 0.9)
    assert lr_factor(100, 100, 10, 30, 0.9) == 0.0


def test_a_block_that_is_unfrozen_late_warms_up_late() -> None:
    config = ScheduleConfig(head_warmup=0.0, backbone_warmup=0.1)
    blocks = ("backbone.blocks.00", "backbone.blocks.01")
    rates = schedule_of(config, 100, "backbone.embed", *blocks, "lora", unfreeze_steps=(60, 20))
    assert rates["lora"] == rates["heads"]
    assert rates["backbone.norm"][5] == pytest.approx(0.5)
    assert rates["backbone.blocks.01"][:21] == [0.0] * 21
    assert rates["backbone.blocks.01"][25] == pytest.approx(0.5)
    assert rates["backbone.blocks.00"][:61] == [0.0] * 61
    assert rates["backbone.embed"] == rates["backbone.blocks.00"]
    assert rates["backbone.blocks.00"][70] == pytest.approx(1.0)


def test_unmasked_queries_follow_the_probability_and_the_mode() -> None:
    generators = sample_generators(0, 0, [f"scene{i}" for i in range(8)], "cpu")
    total, middle = 400, 150  # block 0 of 2 is half unmasked, block 1 not yet
    unmasked = draw_unmasked(ScheduleConfig(), middle, total, 2, 500, generators)
    assert unmasked is not None
    assert unmasked.shape == (2, 8, 500)
    assert float(unmasked[0].float().mean()) == pytest.approx(1 - 0.5**0.9, abs=0.03)
    assert not unmasked[1].any()
    assert draw_unmasked(ScheduleConfig(masked_attention="never"), 0, total, 2, 5, generators) is None
    last = draw_unmasked(ScheduleConfig(), 399, total, 2, 500, generators)
    assert last is not None
    assert last.all()


def test_validation_sees_the_masks_of_its_step() -> None:
    """Block 0 of 2 is half unmasked, the same queries in every image; nothing is masked after the phases."""
    drawn = draw_for_validation(ScheduleConfig(), 150, 400, 2, 500)
    assert drawn is not None
    assert drawn.shape == (2, 1, 500)
    assert float(drawn[0].float().mean()) == pytest.approx(1 - 0.5**0.9, abs=0.08)
    assert not drawn[1].any()
    assert torch.equal(drawn, draw_for_validation(ScheduleConfig(), 150, 400, 2, 500))  # type: ignore[arg-type]
    assert draw_for_validation(ScheduleConfig(), 300, 400, 2, 500) is None
    assert draw_for_validation(ScheduleConfig(masked_attention="never"), 0, 400, 2, 500) is None


def test_a_draw_belongs_to_the_sample_whatever_its_batch() -> None:
    keys = ["a", "b", "c"]
    together = draw_unmasked(ScheduleConfig(), 150, 400, 2, 50, sample_generators(7, 150, keys, "cpu"))
    alone = draw_unmasked(ScheduleConfig(), 150, 400, 2, 50, sample_generators(7, 150, ["b"], "cpu"))
    assert together is not None
    assert alone is not None
    assert torch.equal(together[:, 1], alone[:, 0])
    assert not torch.equal(together[:, 0], together[:, 1])


UPSTREAM = {
    "Cityscapes, EoMT-L": (19902, [3317, 6634, 9951, 13268], [6634, 9951, 13268, 16585]),
    "ADE20K, EoMT-L": (39120, [6520, 13040, 19560, 26080], [13040, 19560, 26080, 32600]),
    "COCO, EoMT-S and B": (88692, [14782, 36955, 59128], [29564, 51737, 73910]),
    "COCO, EoMT-g": (88692, [14782, 25869, 36955, 48042, 59128], [29564, 40651, 51737, 62824, 73910]),
}
"""Numbers read off upstream's configurations over DINOv2; a run is 6 / 5 of the last of them."""


@pytest.mark.parametrize("name", UPSTREAM)
def test_the_rule_of_eomt_gives_the_published_steps(name: str) -> None:
    """To a step: upstream rounded halves up. For four blocks both rules are one."""
    total, starts, ends = UPSTREAM[name]
    count = len(starts)
    assert total == 6 / 5 * ends[-1]
    for rule in ("eomt", "equal") if count == 4 else ("eomt",):
        for block, (start, end) in enumerate(zip(starts, ends, strict=True)):
            assert unmasking_phase(total, block, count, rule) == pytest.approx((start, end), abs=0.51)
            steps = (start - 1, (start + end) // 2, start + 10, end - 10, end + 1)
            before, middle, early, late, after = (
                mask_probability(step, total, block, count, rule=rule) for step in steps
            )
            assert before == 1.0 > early > middle > late > after == 0.0
            assert middle == pytest.approx(0.5**0.9, abs=1e-3)


UPSTREAM_DINOV3 = {
    "ADE20K, EoMT-L": (19560, [0, 6520, 9780, 13040], [3000, 9780, 13040, 16300]),
    "COCO, EoMT-S and B": (177384, [0, 73910, 118256], [3000, 103474, 147820]),
    "COCO, EoMT-L": (88692, [0, 29564, 44346, 59128], [3000, 44346, 59128, 73910]),
}
"""Over DINOv3."""


@pytest.mark.parametrize("name", UPSTREAM_DINOV3)
def test_the_preset_over_dinov3_gives_the_published_steps_and_rates(name: str) -> None:
    total, starts, ends = UPSTREAM_DINOV3[name]
    config = ScheduleConfig(preset="eomt-dinov3").resolved(total, 16)
    assert (config.head_warmup * total, config.backbone_warmup * total) == pytest.approx((2000, 3000))
    for block, edges in enumerate(zip(starts, ends, strict=True)):
        release = config.backbone_warmup * total
        phase = unmasking_phase(total, block, len(starts), config.annealing, release)
        assert phase == pytest.approx(edges, abs=0.51)
    generators = sample_generators(0, 0, ["a"], "cpu")
    drawn = draw_unmasked(config, 1500, total, len(starts), 2000, generators)
    assert drawn is not None
    assert float(drawn[0].float().mean()) == pytest.approx(1 - 0.5**0.9, abs=0.04)
    assert not drawn[1].any()


@pytest.mark.parametrize(("batch", "head_end", "end"), [(16, 500, 1500), (8, 1000, 3000), (64, 125, 375)])
def test_the_preset_has_upstreams_warm_ups_whatever_the_length(batch: int, head_end: int, end: int) -> None:
    """As upstream's TwoStageWarmupPolySchedule, (1 - (step - end) / (total - end)) ** 0.9 after a warm-up."""
    for steps in (4000, 5000):
        config = ScheduleConfig(preset="eomt").resolved(steps, batch)
        assert config.annealing == "eomt"
        heads, backbone = schedule_of(config, steps).values()
        assert heads[head_end // 2] == pytest.approx((head_end // 2) / head_end)
        assert heads[head_end] == 1.0
        assert backbone[head_end] == 0.0
        assert backbone[(head_end + end) // 2] == pytest.approx(0.5, abs=2e-3)
        assert backbone[end] == 1.0
        middle = (end + steps) // 2
        assert backbone[middle] == pytest.approx((1 - (middle - end) / (steps - end)) ** 0.9)


def test_a_preset_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="eomt takes 1500 steps of 16 images to warm up, loop.steps is 1000"):
        ScheduleConfig(preset="eomt").resolved(1000, 16)
