from __future__ import annotations

import pytest
import torch

from models.adapt import AdaptConfig, apply_adaptation
from models.eomt import EoMT, ModelConfig
from shards.errors import InputError


def make_model() -> EoMT:
    return EoMT(ModelConfig(size="tiny", image_size=(32, 32), num_queries=3))


@pytest.mark.parametrize(
    ("mode", "trains", "frozen"),
    [
        ("full", ["backbone.pos_embed", "queries.weight", "class_head.bias"], []),
        ("heads", ["class_head.weight", "mask_head.0.weight"], ["queries.weight", "upscale.0.conv1.weight"]),
        ("queries", ["queries.weight"], ["class_head.weight", "backbone.norm.weight"]),
        ("queries+heads", ["queries.weight", "mask_head.4.bias"], ["backbone.blocks.5.norm1.weight"]),
        (
            "last-2",
            ["backbone.blocks.4.attn.qkv.weight", "backbone.norm.bias"],
            ["backbone.blocks.3.norm1.weight"],
        ),
    ],
)
def test_a_mode_frees_what_it_names(mode: str, trains: list[str], frozen: list[str]) -> None:
    model = make_model()
    apply_adaptation(model, AdaptConfig(mode=mode))
    free = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert free.issuperset(trains)
    assert free.isdisjoint(frozen)


def test_parameters_are_counted() -> None:
    model = make_model()
    count = apply_adaptation(model, AdaptConfig(mode="queries"))
    assert (count.trainable, count.total) == (3 * 128, sum(p.numel() for p in model.parameters()))
    assert str(count).startswith("384 of ")


def test_a_frozen_trunk_keeps_no_activations() -> None:
    model = make_model()
    apply_adaptation(model, AdaptConfig(mode="last-2"))
    seen = []
    model.backbone.blocks[3].register_forward_hook(
        lambda _module, _inputs, out: seen.append(out.requires_grad)
    )
    model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert seen == [False]


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(InputError, match="adapt.mode: unknown mode 'last-0'; known modes: full, heads"):
        AdaptConfig(mode="last-0")
    with pytest.raises(InputError, match="adapt.mode: last-7 asks for 7 blocks, the model has 6"):
        apply_adaptation(make_model(), AdaptConfig(mode="last-7"))
