"""Settings of Accelerate that would decide what a run's own settings decide."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.support.refused import refused
from trainer.accelerator import require_launch
from trainer.sections import LoopConfig

DECIDED: list[tuple[str, str, Mapping[str, object]]] = [
    ("GRADIENT_ACCUMULATION_STEPS=4", "loop.grad_accum decides, which is 1", {}),
    ("GRADIENT_ACCUMULATION_STEPS=4", "loop.grad_accum decides, which is 2", {"grad_accum": 2}),
    ("GRADIENT_CLIPPING=1.0", "loop.max_grad_norm decides, which is 0.01", {}),
    ("MIXED_PRECISION=bf16", "loop.precision decides, which is float32", {}),
    ("MIXED_PRECISION=FP16", "loop.precision decides, which is bf16", {"precision": "bf16"}),
    ("MIXED_PRECISION=fp8", "loop.precision decides", {"precision": "bf16"}),
    ("DYNAMO_BACKEND=INDUCTOR", "loop.compile decides, which is False", {}),
    ("DYNAMO_BACKEND=inductor", "loop.compile decides, which is True", {"compile": True}),
    ("USE_FSDP=true", "loop.sharding decides, which is none", {}),
    ("USE_FSDP=1", "loop.sharding decides, which is fsdp2", {"sharding": "fsdp2"}),
    ("USE_DEEPSPEED=true", "loop.sharding decides", {}),
    ("USE_MEGATRON_LM=true", "loop.sharding decides", {}),
    ("USE_PARALLELISM_CONFIG=true", "loop.sharding decides", {}),
    ("USE_SAGEMAKER=true", "loop.sharding decides", {}),
    ("TORCH_DEVICE=cuda:0", "CUDA_VISIBLE_DEVICES decides; unset it", {}),
]


@pytest.mark.parametrize(("setting", "text", "loop"), DECIDED)
def test_another_wish_of_accelerate_is_refused(setting: str, text: str, loop: Mapping[str, object]) -> None:
    name, _, value = setting.partition("=")
    with refused(f"ACCELERATE_{name} is '{value}', but {text}"):
        require_launch(LoopConfig(**loop), {f"ACCELERATE_{name}": value})


@pytest.mark.parametrize(
    ("settings", "loop"),
    [
        ("MIXED_PRECISION=no DYNAMO_BACKEND=no DYNAMO_MODE=default USE_FSDP=false", {}),
        ("MIXED_PRECISION=no USE_CPU=true CPU_AFFINITY=1", {"precision": "bf16"}),
        ("MIXED_PRECISION=bf16", {"precision": "bf16"}),
        ("GRADIENT_ACCUMULATION_STEPS=1", {"grad_accum": 3}),
        ("GRADIENT_ACCUMULATION_STEPS=3 GRADIENT_CLIPPING=none", {"grad_accum": 3}),
    ],
)
def test_what_accelerate_launch_sets_by_itself_and_an_equal_wish_pass(
    settings: str, loop: Mapping[str, object]
) -> None:
    words = (word.partition("=") for word in settings.split())
    require_launch(LoopConfig(**loop), {f"ACCELERATE_{name}": value for name, _, value in words})
