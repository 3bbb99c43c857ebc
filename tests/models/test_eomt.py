"""EoMT against the independent implementation in Hugging Face transformers, and its own promises."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import EomtConfig, EomtForUniversalSegmentation

from models.config import ModelConfig
from models.eomt import IMAGENET_MEAN, IMAGENET_STD, EoMT, UpscaleBlock, _apply_block, _double_by_product
from models.weights.huggingface import to_huggingface
from shards.errors import InputError

CONFIG = ModelConfig(size="tiny", image_size=(64, 64), num_queries=7)


IMAGE = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
NOWHERE = torch.zeros(2, 2, 7, dtype=torch.bool)
"""No query is unmasked."""


def make_confident_model() -> EoMT:
    """Build a model whose masks cover about half of the image; otherwise masked attention masks nothing."""
    torch.manual_seed(0)
    model = EoMT(CONFIG)
    with torch.no_grad():
        model.mask_head[4].weight.mul_(20)
    return model


def make_reference(model: EoMT) -> EomtForUniversalSegmentation:
    """Build transformers' EoMT with the weights of ours."""
    config = EomtConfig(
        hidden_size=128, num_hidden_layers=6, num_attention_heads=4, image_size=64, patch_size=16,
        num_blocks=2, num_queries=7, num_upscale_blocks=2, num_register_tokens=4, num_labels=19,
    )  # fmt: skip
    reference = EomtForUniversalSegmentation(config)
    missing, unexpected = reference.load_state_dict(to_huggingface(model.state_dict()), strict=False)
    assert not unexpected
    assert set(missing) == {"attn_mask_probs", "criterion.empty_weight"}
    return reference


@pytest.mark.parametrize("masked", [False, True], ids=["inference", "masked attention"])
def test_prediction_equals_transformers(masked: bool) -> None:
    model = make_confident_model()
    reference = make_reference(model).train(masked)
    reference.attn_mask_probs.fill_(float(masked))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = reference((IMAGE / 255 - mean) / std)
        ours = model(IMAGE, NOWHERE if masked else None)
    torch.testing.assert_close(ours.mask_logits[-1], expected.masks_queries_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.class_logits[-1], expected.class_queries_logits, atol=1e-4, rtol=0)


def test_masked_attention_changes_the_prediction_and_unmasking_undoes_it() -> None:
    model = make_confident_model()
    with torch.no_grad():
        free, masked, unmasked = (model(IMAGE, m).mask_logits[-1] for m in (None, NOWHERE, ~NOWHERE))
    assert (free - masked).abs().max() > 1e-3
    torch.testing.assert_close(free, unmasked, atol=1e-5, rtol=1e-5)


def test_split_attention_equals_a_dense_mask() -> None:
    """Queries with a mask and all others without, against one call whose mask has a row for every token."""
    torch.manual_seed(0)
    block = EoMT(CONFIG).backbone.blocks[-1]
    tokens = torch.randn(2, 28, 128, dtype=torch.float64)  # 7 queries, 5 prefix tokens, 16 patches
    block.double()
    may_look = torch.rand(2, 1, 7, 28) > 0.5
    may_look[..., :12] = True
    dense = torch.cat((may_look, may_look.new_ones(2, 1, 21, 28)), dim=2)
    expected = tokens + block.ls1(block.attn(block.norm1(tokens), attn_mask=dense))
    expected = expected + block.ls2(block.mlp(block.norm2(expected)))
    torch.testing.assert_close(_apply_block(block, tokens, may_look), expected, atol=1e-12, rtol=0)


def test_one_prediction_per_joint_block_and_a_final_one_and_every_parameter_gets_a_gradient() -> None:
    model = EoMT(CONFIG)
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
        ({"num_queries": -1}, "model.num_queries must be at least 1, or 0 to follow the weights, got -1"),
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
