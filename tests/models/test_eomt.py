"""EoMT against the independent implementation in Hugging Face transformers, and its own promises."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
)

from models.config import ModelConfig
from models.eomt import EoMT, UpscaleBlock, _apply_block, _double_by_product
from models.trunk import SIZES
from models.weights.huggingface import to_huggingface
from shards.errors import InputError
from tests.models.tiny import over_both_trunks

CONFIG = ModelConfig(size="tiny", image_size=(64, 64), num_queries=7)


IMAGE = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
NOWHERE = torch.zeros(2, 2, 7, dtype=torch.bool)
"""No query is unmasked."""


def make_confident_model(config: ModelConfig = CONFIG) -> EoMT:
    """Build a model whose masks cover about half of the image; otherwise masked attention masks nothing."""
    torch.manual_seed(0)
    model = EoMT(config)
    with torch.no_grad():
        model.mask_head[4].weight.mul_(20 if model.config.trunk.width == 128 else 2)  # to logits of about 10
        for name, parameter in model.backbone.named_parameters():  # off 0, where biases would not show
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif "gamma" in name:
                parameter.normal_(mean=0.3, std=0.1)
    return model


def make_reference(model: EoMT) -> nn.Module:
    """Build transformers' EoMT with the weights of ours."""
    network, config_type, config_class = EomtForUniversalSegmentation, EomtConfig, {"image_size": 64}
    if model.config.trunk.rotary:
        network, config_type = EomtDinov3ForUniversalSegmentation, EomtDinov3Config
        config_class = {"layer_norm_eps": 1e-5, "pos_embed_rescale": None, "image_size": 64}
        config_class |= {"intermediate_size": model.config.trunk.hidden}
    trunk = model.config.trunk
    config = config_type(
        hidden_size=trunk.width, num_hidden_layers=trunk.depth, num_attention_heads=trunk.num_heads,
        patch_size=16, num_blocks=model.num_blocks, num_queries=7, num_upscale_blocks=2,
        num_register_tokens=4, num_labels=19, **config_class,
    )  # fmt: skip
    reference = network(config)
    missing, unexpected = reference.load_state_dict(to_huggingface(model.state_dict()), strict=False)
    assert not unexpected
    assert set(missing) == {"attn_mask_probs", "criterion.empty_weight"}
    return reference


TRUNKS = {name: SIZES[name] for name in ("tiny", "dinov3-tiny", "dinov3-small")}
TRUNKS |= {name: replace(SIZES[name], depth=2) for name in ("dinov3-base", "dinov3-large")}


@pytest.mark.parametrize("size", TRUNKS)
def test_prediction_equals_transformers(size: str) -> None:
    model = make_confident_model(ModelConfig(trunk=TRUNKS[size], image_size=(64, 64), num_queries=7))
    reference = make_reference(model)
    assert largest_difference(model, reference) <= 1e-4
    if model.config.trunk.rotary:  # of the two, only this one of transformers masks in float64
        sine, cosine = model.double()._embed(IMAGE)[1].chunk(2, dim=-1)
        reference.double().rope_embeddings.forward = lambda _: (cosine, sine)  # theirs are in float32 always
        assert largest_difference(model, reference) <= 1e-12  # what differed above was rounding


def largest_difference(model: EoMT, reference: nn.Module) -> float:
    """Compare the logits of masks and classes of every depth, in inference and with masked attention."""
    return max(_largest_difference(model, reference, masked) for masked in (False, True))


def _largest_difference(model: EoMT, reference: nn.Module, masked: bool) -> float:
    reference.train(masked).attn_mask_probs.fill_(float(masked))
    depths = {"mask": [], "class": []}
    predict, reference.predict = reference.predict, record_depths(reference.predict, depths)
    nowhere = torch.zeros(model.num_blocks, 2, 7, dtype=torch.bool)
    with torch.no_grad():
        expected = reference((IMAGE / 255 - model.pixel_mean) / model.pixel_std)
        ours = model(IMAGE, nowhere if masked else None)
    reference.predict = predict
    assert torch.equal(depths["mask"][-1], expected.masks_queries_logits)
    assert len(ours.mask_logits) == len(depths["mask"]) == (model.num_blocks + 1 if masked else 1)
    pairs = zip((*ours.mask_logits, *ours.class_logits), (*depths["mask"], *depths["class"]), strict=True)
    return max(float((mine - theirs).abs().max()) for mine, theirs in pairs)


def record_depths(predict: Callable, depths: dict[str, list[torch.Tensor]]) -> Callable:
    """Keep what transformers' EoMT predicts at each depth."""

    def recorded(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        answers = predict(tokens)
        for found, answer in zip(depths.values(), answers, strict=True):
            found.append(answer)
        return answers

    return recorded


@over_both_trunks
def test_split_attention_equals_a_dense_mask(size: str) -> None:
    """Queries with a mask and all others without, against one call whose mask has a row for every token."""
    model = make_confident_model(ModelConfig(size=size, image_size=(64, 64), num_queries=7)).double()
    block, rope = model.backbone.blocks[-1], model._embed(IMAGE)[1]
    tokens = torch.randn(2, 28, 128, dtype=torch.float64)  # 7 queries, 5 prefix tokens, 16 patches
    may_look = torch.rand(2, 1, 7, 28) > 0.5
    may_look[..., :12] = True
    dense = torch.cat((may_look, may_look.new_ones(2, 1, 21, 28)), dim=2)
    known = {} if rope is None else {"rope": rope}
    expected = block(tokens, attn_mask=dense, **known)
    torch.testing.assert_close(_apply_block(block, tokens, rope, may_look), expected, atol=1e-12, rtol=0)


@over_both_trunks
def test_one_prediction_per_joint_block_and_a_final_one_and_every_parameter_gets_a_gradient(
    size: str,
) -> None:
    model = EoMT(ModelConfig(size=size, image_size=(64, 64), num_queries=7))
    supervised = model(IMAGE, NOWHERE)
    assert [tuple(m.shape) for m in supervised.mask_logits] == [(2, 7, 16, 16)] * 3
    assert [tuple(c.shape) for c in supervised.class_logits] == [(2, 7, 20)] * 3
    assert len(model(IMAGE).mask_logits) == 1
    sum(t.square().mean() for t in (*supervised.mask_logits, *supervised.class_logits)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_mask_logits_have_a_quarter_of_the_resolution_for_every_patch_size() -> None:
    for patch_size in (8, 16):
        config = ModelConfig(size="tiny", image_size=(32, 64), patch_size=patch_size, num_queries=3)
        masks = EoMT(config)(torch.zeros(1, 3, 32, 64, dtype=torch.uint8)).mask_logits[0]
        assert masks.shape == (1, 3, 8, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "huge"}, "model.size: unknown size 'huge'; known sizes: tiny, small, base, large"),
        ({"image_size": (60, 64)}, "model.image_size: 60x64 is not divisible by model.patch_size 16"),
        ({"num_queries": -1}, "model.num_queries must be 1 to 10000, or 0 to follow the weights, got -1"),
        ({"patch_size": 2}, "model.patch_size must be at least 4, got 2"),
        ({"entropic_scale": -1.0}, "model.entropic_scale must be above 0, or 0 to follow the weights"),
        ({"num_blocks": 7}, "model.num_blocks must be in 1..6 for size tiny, got 7"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_impossible_models_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        EoMT(ModelConfig(**{"size": "tiny", "image_size": (64, 64), **settings}))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_doubling_by_a_product_equals_the_transposed_convolution(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    block = UpscaleBlock(8)
    image = torch.randn(2, 8, 3, 5).to(memory_format=layout).requires_grad_()
    inputs = [image, block.conv1.weight, block.conv1.bias]
    expected, actual = block.conv1(image), _double_by_product(block.conv1, image)
    torch.testing.assert_close(actual, expected)
    weights = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad(output, inputs, weights) for output in (actual, expected))
    torch.testing.assert_close(ours, theirs)


def test_a_frozen_or_answering_model_convolves_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr("models.eomt._double_by_product", lambda conv, x: called.append(conv) or conv(x))
    block = UpscaleBlock(8)
    image = torch.randn(1, 8, 2, 2)
    with torch.no_grad():
        block(image)
    block.requires_grad_(False)(image.requires_grad_())
    assert not called
    block.requires_grad_(True)(image)
    assert called == [block.conv1]
