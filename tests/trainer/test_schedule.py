from __future__ import annotations

import pytest
import torch

from models.adapt import Thaw
from shards.errors import InputError
from trainer.randomness import sample_generators
from trainer.schedule import ScheduleConfig, build_lr_schedule, draw_released, lr_factor, obey_probability


def test_learning_rates_follow_the_two_stages() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [
            {"params": [parameters[0]], "lr": 1.0, "name": "heads"},
            {"params": [parameters[1]], "lr": 0.5, "name": "backbone.blocks.00"},
        ]
    )
    config = ScheduleConfig(head_warmup=0.1, backbone_warmup=0.2, poly_power=0.9)
    schedule = build_lr_schedule(optimizer, config, total_steps=100)
    heads, backbone = [], []
    for _ in range(100):
        heads.append(optimizer.param_groups[0]["lr"])
        backbone.append(optimizer.param_groups[1]["lr"])
        optimizer.step()
        schedule.step()
    assert heads[:11] == pytest.approx([i / 10 for i in range(11)])
    assert backbone[:11] == [0.0] * 11
    assert backbone[20] == pytest.approx(0.25)  # half of its warm-up
    assert backbone[30] == pytest.approx(0.5)
    assert heads[55] == pytest.approx((1 - 45 / 90) ** 0.9)
    assert backbone[65] == pytest.approx(0.5 * (1 - 35 / 70) ** 0.9)
    assert lr_factor(100, 100, 10, 30, 0.9) == 0.0


def test_a_block_that_thaws_late_warms_up_late() -> None:
    names = ("heads", "backbone.norm", "backbone.embed", "backbone.blocks.00", "backbone.blocks.01", "lora")
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "name": name} for name in names]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    config = ScheduleConfig(head_warmup=0.0, backbone_warmup=0.1)
    schedule = build_lr_schedule(optimizer, config, total_steps=100, thaw=Thaw((60, 20)))
    rates: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(100):
        for group in optimizer.param_groups:
            rates[group["name"]].append(group["lr"])
        optimizer.step()
        schedule.step()
    assert rates["lora"] == rates["heads"]
    assert rates["backbone.norm"][5] == pytest.approx(0.5)
    assert rates["backbone.blocks.01"][:21] == [0.0] * 21
    assert rates["backbone.blocks.01"][25] == pytest.approx(0.5)
    assert rates["backbone.blocks.00"][:61] == [0.0] * 61
    assert rates["backbone.embed"] == rates["backbone.blocks.00"]
    assert rates["backbone.blocks.00"][70] == pytest.approx(1.0)


def test_annealing_has_the_published_steps_for_eomt_large() -> None:
    total, starts, ends = 19902, [3317, 6634, 9951, 13268], [6634, 9951, 13268, 16585]
    # 19902 = 6 x 3317: upstream rounded its 107 epochs to phases of 3317 steps
    for block, (start, end) in enumerate(zip(starts, ends, strict=True)):
        assert obey_probability(start - 1, total, block, 4) == 1.0
        assert obey_probability(start + 10, total, block, 4) < 1.0
        assert obey_probability(end - 10, total, block, 4) > 0.0
        assert obey_probability(end, total, block, 4) == 0.0
        middle = (start + end) // 2
        assert obey_probability(middle, total, block, 4) == pytest.approx(0.5**0.9, abs=1e-3)


def test_released_queries_follow_the_probability_and_the_mode() -> None:
    generators = sample_generators(0, 0, [f"scene{i}" for i in range(8)], "cpu")
    total, middle = 400, 150  # block 0 of 2 is half released, block 1 not yet
    released = draw_released(ScheduleConfig(), middle, total, 2, 500, generators)
    assert released is not None
    assert released.shape == (2, 8, 500)
    assert float(released[0].float().mean()) == pytest.approx(1 - 0.5**0.9, abs=0.03)
    assert not released[1].any()
    always = draw_released(ScheduleConfig(masked_attention="always"), 399, total, 2, 5, generators)
    assert always is not None
    assert not always.any()
    assert draw_released(ScheduleConfig(masked_attention="never"), 0, total, 2, 5, generators) is None
    last = draw_released(ScheduleConfig(), 399, total, 2, 500, generators)
    assert last is not None
    assert last.all()


def test_a_draw_belongs_to_the_sample_whatever_its_batch() -> None:
    keys = ["a", "b", "c"]
    together = draw_released(ScheduleConfig(), 150, 400, 2, 50, sample_generators(7, 150, keys, "cpu"))
    alone = draw_released(ScheduleConfig(), 150, 400, 2, 50, sample_generators(7, 150, ["b"], "cpu"))
    assert together is not None
    assert alone is not None
    assert torch.equal(together[:, 1], alone[:, 0])
    assert not torch.equal(together[:, 0], together[:, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_warmup": 1.0}, "schedule.head_warmup must be in .*, got 1.0"),
        ({"backbone_warmup": -0.1}, "schedule.backbone_warmup must be in .*, got -0.1"),
        ({"head_warmup": 0.6, "backbone_warmup": 0.6}, "must be at most 1, got 0.6 \\+ 0.6"),
        ({"poly_power": 0.0}, "schedule.poly_power must be above 0, got 0.0"),
    ],
)
def test_impossible_schedules_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ScheduleConfig(**settings)
