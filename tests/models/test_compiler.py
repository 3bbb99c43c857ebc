"""torch.compile and the model. In a process of its own: the shape checks that run in tests break graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from models.adapt import add_adapters
from models.adaptation import LoraSettings
from models.config import ModelConfig
from models.eomt import EoMT
from models.trunk import SIZES
from tests.support.forked import run_ranks

IMAGE = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
UNMASKED = torch.rand((1, 2, 7), generator=torch.Generator().manual_seed(1)) > 0.5


def make_model(size: str, class_head: str, *, adapted: bool) -> EoMT:
    """Make a model of a plain block and one with queries: more make no other graph."""
    torch.manual_seed(0)
    trunk = dataclasses.replace(SIZES[size], depth=2)
    settings = {"trunk": trunk, "image_size": (32, 32), "num_queries": 7, "num_blocks": 1, "patch_size": 8}
    model = EoMT(ModelConfig(class_head=class_head, **settings))  # type: ignore[arg-type]
    if adapted:
        add_adapters(model, LoraSettings(dropout=0.1))
    return model


def compare(_: Sequence[str]) -> None:
    """Be a program that finds one graph in models of both trunks and heads, and computes the same with it."""
    for size, class_head in (("tiny", "linear"), ("dinov3-tiny", "isomax")):
        for given in ((IMAGE,), (IMAGE, UNMASKED, 1)):
            torch._dynamo.reset()
            found = torch._dynamo.explain(make_model(size, class_head, adapted=True))(*given)
            assert (found.graph_count, found.break_reasons) == (1, [])
        torch._dynamo.reset()
        model = make_model(size, class_head, adapted=False)
        names, results = list(model.state_dict()), []
        for _ in range(2):
            prediction = model(IMAGE, UNMASKED)
            answers = [*prediction.mask_logits, *prediction.class_logits]
            sum(t.square().mean() for t in answers).backward()
            results.append([*answers, *(p.grad for p in model.parameters())])
            model.zero_grad()
            model.compile(backend="aot_eager", fullgraph=True)  # which ends where a graph breaks
        for eager, compiled in zip(*results, strict=True):
            assert eager is not None
            torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-4)
        assert list(model.state_dict()) == names


@pytest.mark.slow
def test_the_compiler_finds_one_graph_that_answers_and_learns_the_same(tmp_path: Path) -> None:
    """Forward and backward as traced; what the default backend makes of the graph is not our code."""
    run_ranks(compare, [], tmp_path)
