from __future__ import annotations

import pytest

from models.eomt import EoMT
from shards.errors import InputError
from tests.trainer.small_run import make_model
from trainer.optim import build_optimizer, explain_rates, group_parameters
from trainer.sections import OptimConfig


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
