"""A process: what Accelerate may not be asked to decide beside a run; time limits, and leaving in time."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from shards.errors import InputError
from tests.support.refused import refused
from trainer.runtime import Deadline, find_end, require_launch
from trainer.sections import LoopConfig, parse_limit

DECIDED: list[tuple[str, str, Mapping[str, object]]] = [
    ("GRADIENT_ACCUMULATION_STEPS=4", "loop.grad_accum decides, which is 2", {"grad_accum": 2}),
    ("GRADIENT_CLIPPING=1.0", "loop.max_grad_norm decides, which is 0.01", {}),
    ("MIXED_PRECISION=bf16", "loop.precision decides, which is float32", {}),
    ("MIXED_PRECISION=fp8", "loop.precision decides", {"precision": "bf16"}),
    ("DYNAMO_BACKEND=inductor", "loop.compile decides, which is True", {"compile": True}),
    ("USE_FSDP=1", "loop.sharding decides, which is fsdp2", {"sharding": "fsdp2"}),
    ("USE_DEEPSPEED=true", "loop.sharding decides", {}),
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


class Clock:
    """A clock that goes when it is told to."""

    time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.mark.parametrize(
    ("setting", "seconds"),
    [("", 0), ("90", 5400), ("0.5", 30), ("1:30:00", 5400), ("2-01:00:01", 2 * 86400 + 3601), ("0:00:05", 5)],
)
def test_a_limit_is_minutes_or_hours_as_slurm_writes_them(setting: str, seconds: float) -> None:
    assert parse_limit(setting) == seconds
    assert find_end(setting, 1000.0) == (1000.0 + seconds if seconds else None)


@pytest.mark.parametrize("setting", ["0", "-5", "1:5:00", "1:60:00", "an hour", "0:00:00", "1e3", "12:30"])
def test_another_text_is_refused(setting: str) -> None:
    with pytest.raises(InputError, match=f"loop.time_limit: got '{setting}'; minutes above 0, H:MM:SS"):
        parse_limit(setting)


def test_slurm_says_when_its_job_ends() -> None:
    assert find_end("slurm", 5.0, {"SLURM_JOB_END_TIME": "1700000000"}) == 1700000000.0
    message = "loop.time_limit: slurm was given, but SLURM_JOB_END_TIME is not set; give minutes"
    with pytest.raises(InputError, match=message):
        find_end("slurm", 5.0, {})


def test_a_run_stops_while_one_more_step_and_two_saves_of_the_measured_length_fit() -> None:
    clock = Clock()
    deadline = Deadline(2000.0, clock)
    for _ in range(10):
        clock.time += 7
        assert not deadline.is_near()
    with deadline.saving():
        clock.time += 30
    clock.time += 7
    assert not deadline.is_near()  # the longest round now has the save in it: 37 s
    assert deadline.margin() == 37 + 2 * 30
    clock.time = 2000.0 - 97.5
    deadline._asked = clock.time - 7
    assert not deadline.is_near()
    clock.time += 1
    assert deadline.is_near()


def test_before_the_first_save_its_length_is_assumed_and_without_a_limit_no_time_is_near() -> None:
    clock = Clock()
    assert not Deadline(None, lambda: 1e12).is_near()
    assert Deadline(clock.time + 86400, clock).margin() == 120
    assert Deadline(clock.time + 600, clock).margin() == 60  # a tenth of what there is
