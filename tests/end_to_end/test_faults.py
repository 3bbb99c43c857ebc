"""A few of the trials that `benchmarks.faults` takes many of."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults import FAULTS, differ, find_damage, find_wrong_codes, read_end, run_trials

pytestmark = pytest.mark.slow


def test_interrupted_runs_end_in_the_bits_of_one_never_stopped(tmp_path: Path, scene_shards: str) -> None:
    kinds = ("kill -9 in a save", "SIGTERM", "SIGUSR1, SIGTERM in a save")
    outcomes = run_trials(tmp_path, scene_shards, trials=3, seed=1, kinds=kinds)
    assert [outcome.failure for (outcome,) in outcomes.values()] == ["", "", ""]
    assert outcomes["kill -9 in a save"][0].codes == [-9]

    whole = read_end(tmp_path / "whole-1")
    assert differ(whole, whole) == ""
    name = next(iter(whole))
    assert differ(whole, {**whole, name: whole[name] + 1e-7}) == f"{name} differs"
    last = sorted((tmp_path / "whole-1/run/checkpoints").iterdir())[-1]
    assert find_damage([last]) == ""
    (last / "model.safetensors").write_bytes(b"half")
    assert find_damage([last]).startswith("step-0000024 is damaged: ")
    assert find_wrong_codes(FAULTS["SIGTERM"], [1], 5, 3) == "did not leave with 75"
    assert find_wrong_codes(FAULTS["SIGTERM"], [75], 5, 3) == "left with 75 and without its last step"
