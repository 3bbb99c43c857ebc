"""What comes of the scenes of two ranks.

What goes wrong on one ends both, one of them says why, and no checkpoint is harmed. Every mode of adaptation
trains the weights of one process and leaves frozen parts untouched.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.weights.run_files import list_checkpoints
from tests.distributed.scenes import MODES
from tests.trainer.small_run import assert_close, weights

pytestmark = pytest.mark.slow

FROZEN = {
    "heads": ("backbone.", "queries.", "upscale."),
    "queries": ("backbone.", "class_head.", "mask_head.", "upscale."),
    "queries+heads": ("backbone.", "upscale."),
    "last-2": ("backbone.blocks.0.", "backbone.blocks.3.", "backbone.pos_embed"),
    "lora": ("backbone.pos_embed", "backbone.blocks.0.attn.qkv.base_layer.", "upscale."),
    "outlier_head": ("backbone.", "queries.", "class_head.", "mask_head.", "upscale."),
    "gradual": ("backbone.pos_embed", "backbone.blocks.0."),  # block 0 trains from step 3 of 4 on
}
Outcomes = dict[str, list[tuple[int, str]]]


@pytest.fixture(name="ended")
def _ended(played: Path) -> Outcomes:
    ranks = [json.loads((played / f"outcomes-{rank}.json").read_text()) for rank in range(2)]
    return {scene: [tuple(rank[scene]) for rank in ranks] for scene in ranks[0]}


def checkpoints(folder: Path, name: str) -> list[str]:
    return [path.name for path in list_checkpoints(folder / name / "checkpoints")]


def test_a_locked_folder_is_refused_by_all_and_said_by_one(played: Path, ended: Outcomes) -> None:
    (code, told), other = ended["locked"]
    assert (code, other) == (2, (2, ""))
    assert f"{played}/locked: another run is writing there: " in told
    assert "lock is held by process 7 on node3; wait for its end, or --name starts another" in told


def test_a_term_that_is_nan_on_one_rank_is_named_with_the_samples_of_both(
    played: Path, ended: Outcomes
) -> None:
    (code, told), other = ended["diverged"]
    assert (code, other) == (70, (70, ""))
    assert told.startswith("step 2: gradient norm is nan; loss terms not finite: dice; mask ")
    assert told.endswith("samples scene0, scene7")
    assert checkpoints(played, "diverged") == ["step-0000001", "step-0000002"]


def test_both_ranks_skip_a_step_that_is_bad_on_one(played: Path, ended: Outcomes) -> None:
    assert ended["skipped"] == [(0, ""), (0, "")]
    assert checkpoints(played, "skipped")[-1] == "step-0000004"


def test_ranks_whose_weights_differ_in_one_number_save_nothing(played: Path, ended: Outcomes) -> None:
    """Changed after step 3, before its save: what differs is named by the first parameter."""
    (code, told), other = ended["apart"]
    assert (code, other) == (70, (70, ""))
    assert told == "step 3: mask_head.2.weight is not the same on all 2 processes; not saved"
    assert checkpoints(played, "apart") == ["step-0000001", "step-0000002"]


def test_a_disk_that_is_full_for_one_rank_ends_both(played: Path, ended: Outcomes) -> None:
    (code, told), silent = ended["full"]
    assert (silent, code) == ((74, ""), 74)
    assert f"{played}/full/checkpoints/step-0000003: cannot be saved; older checkpoints stay, " in told
    assert checkpoints(played, "full") == ["step-0000001", "step-0000002"]
    assert [path.name for path in (played / "full" / "checkpoints").glob(".*")] == []
    assert all(torch.isfinite(value).all() for value in weights(played, 2, "full").values())


def test_the_time_of_one_rank_is_the_time_of_all(played: Path, ended: Outcomes) -> None:
    assert ended["late"] == [(0, ""), (0, "")]
    assert checkpoints(played, "late") == ["step-0000001"]
    assert "time limit: saved at step 1; --resume continues" in (played / "late" / "log.txt").read_text()


def test_no_parameter_is_unused(ended: Outcomes) -> None:
    """DistributedDataParallel waits for a gradient of every parameter that trains."""
    assert ended["adapted"] == [(0, ""), (0, "")]


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_train_the_weights_of_one_and_leave_what_is_frozen(played: Path, mode: str) -> None:
    first, third = (weights(played, step, f"two-{mode}") for step in (1, 3))
    for name, value in first.items():
        if name.startswith(FROZEN.get(mode, ("nothing",))):
            assert torch.equal(value, third[name]), name
    assert any(not torch.equal(value, third[name]) for name, value in first.items())
    assert_close(weights(played, name=f"two-{mode}"), weights(played, name=f"one-{mode}"))
