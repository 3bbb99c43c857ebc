"""A few of the trials that `benchmarks.faults` takes many of."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults import FAULTS, _differ, _find_damage, _find_wrong_codes, _read_end, run_trials

pytestmark = pytest.mark.slow


def test_interrupted_runs_end_in_the_bits_of_one_never_stopped(tmp_path: Path, scene_shards: str) -> None:
    kinds = ("kill -9 in a save", "SIGTERM", "SIGUSR1, SIGTERM in a save")
    tallies = run_trials(tmp_path, scene_shards, trials=3, seed=1, kinds=kinds)
    assert [failure for tally in tallies.values() for failure in tally.failures] == []
    assert tallies["kill -9 in a save"].codes == {-9}
    assert sum(tally.trials for tally in tallies.values()) == 3

    whole = _read_end(tmp_path / "whole-1")
    assert _differ(whole, whole) == ""
    name = next(iter(whole))
    assert _differ(whole, {**whole, name: whole[name] + 1e-7}) == f"{name} differs"
    last = sorted((tmp_path / "whole-1/run/checkpoints").iterdir())[-1]
    assert _find_damage([last]) == ""
    (last / "model.safetensors").write_bytes(b"half")
    assert _find_damage([last]).startswith("step-0000024 is damaged: ")
    assert _find_wrong_codes(FAULTS["SIGTERM"], [1], 5, 3) == "did not leave with 75"
    assert _find_wrong_codes(FAULTS["SIGTERM"], [75], 5, 3) == "left with 75 and without its last step"
