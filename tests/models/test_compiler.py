"""torch.compile and the model. In a process of its own: the shape checks that run in tests break graphs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.tiny import over_both_trunks

ROOT = Path(__file__).parents[2]
MODEL = """
import torch
from models.config import LoraSettings, ModelConfig
from models.eomt import EoMT
from models.adapt import add_adapters

torch.manual_seed(0)
image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
unmasked = torch.rand(2, 2, 7) > 0.5

def make_model(class_head, adapted, size="tiny"):
    model = EoMT(ModelConfig(size=size, image_size=(32, 32), num_queries=7, class_head=class_head))
    if adapted:
        add_adapters(model, LoraSettings(dropout=0.1))
    return model
"""
GRAPHS = """
from dataclasses import replace
from models.backbone import SIZES

for name in ("tiny", "dinov3-tiny"):
    SIZES[name] = replace(SIZES[name], depth=3)  # a plain block, two with queries: more make no other graph
cases = (("tiny", "linear"), ("tiny", "isomax"), ("dinov3-tiny", "linear"))
for size, class_head in cases:
    for adapted in (False, True):
        model = make_model(class_head, adapted, size)
        for arguments in ((image,), (image, unmasked), (image, unmasked, 1)):
            torch._dynamo.reset()
            found = torch._dynamo.explain(model)(*arguments)
            print(found.graph_count, len(found.break_reasons))
"""
STEP = """
model = make_model("linear", False, "SIZE")
names, results = list(model.state_dict()), []
for _ in range(2):
    prediction = model(image, unmasked)
    sum(t.square().mean() for t in (*prediction.mask_logits, *prediction.class_logits)).backward()
    results.append([*prediction.mask_logits, *prediction.class_logits, *(p.grad for p in model.parameters())])
    model.zero_grad()
    model.compile(backend="aot_eager", fullgraph=True)
for eager, compiled in zip(*results, strict=True):
    torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=1e-4)
assert list(model.state_dict()) == names
print(len(results[0]))
"""


def run(script: str) -> list[str]:
    command = [sys.executable, "-c", MODEL + script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_the_compiler_finds_one_graph_without_breaks() -> None:
    assert run(GRAPHS) == ["1 0"] * 18


@pytest.mark.slow
@over_both_trunks
def test_a_compiled_model_answers_and_learns_the_same(size: str) -> None:
    """Forward and backward as traced; what the default backend makes of the graph is not our code."""
    assert int(run(STEP.replace("SIZE", size))[0]) > 90
