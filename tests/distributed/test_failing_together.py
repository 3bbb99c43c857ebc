"""What goes wrong on one of two ranks: both leave, one of them says why, and no checkpoint is harmed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.weights.checkpoint import list_checkpoints

pytestmark = pytest.mark.slow

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
    silent, (code, told) = ended["full"]
    assert (silent, code) == ((74, ""), 74)
    assert f"{played}/full/checkpoints/step-0000003: cannot be saved; older checkpoints stay, " in told
    assert checkpoints(played, "full") == ["step-0000001", "step-0000002"]
    assert [path.name for path in (played / "full" / "checkpoints").glob(".*")] == []
    saved = load_file(played / "full" / "checkpoints" / "step-0000002" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in saved.values())


def test_the_time_of_one_rank_is_the_time_of_all(played: Path, ended: Outcomes) -> None:
    assert ended["late"] == [(0, ""), (0, "")]
    assert checkpoints(played, "late") == ["step-0000001"]
    assert "time limit: saved at step 1; --resume continues" in (played / "late" / "log.txt").read_text()
