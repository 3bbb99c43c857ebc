"""Two data-parallel ranks in every mode of adaptation: the weights of one, frozen parts untouched.

DistributedDataParallel waits for a gradient of every parameter that trains; none is told to be unused.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.scenes import MODES

pytestmark = pytest.mark.slow

FROZEN = {
    "heads": ("backbone.", "queries.", "upscale."),
    "queries": ("backbone.", "class_head.", "mask_head.", "upscale."),
    "queries+heads": ("backbone.", "upscale."),
    "last-2": ("backbone.blocks.0.", "backbone.blocks.3.", "backbone.pos_embed"),
    "lora": ("backbone.pos_embed", "backbone.blocks.0.attn.qkv.base_layer.", "upscale."),
    "gradual": ("backbone.pos_embed", "backbone.blocks.0."),  # block 0 trains from step 3 of 4 on
}


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:07d}" / "model.safetensors")


def test_no_parameter_is_unused(played: Path) -> None:
    for rank in range(2):
        assert json.loads((played / f"outcomes-{rank}.json").read_text())["adapted"] == [0, ""]


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_train_the_weights_of_one_and_leave_what_is_frozen(played: Path, mode: str) -> None:
    """Tolerance 1e-5 after four steps of rate 1e-3: sums in another order, enlarged by Adam's division."""
    first, third = weights(played / f"two-{mode}", 1), weights(played / f"two-{mode}", 3)
    for name, value in first.items():
        if name.startswith(FROZEN.get(mode, ("nothing",))):
            assert torch.equal(value, third[name]), name
    assert any(not torch.equal(value, third[name]) for name, value in first.items())
    expected, actual = weights(played / f"one-{mode}", 4), weights(played / f"two-{mode}", 4)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=0, msg=name)
