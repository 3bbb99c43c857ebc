"""The best checkpoint and the early end: chosen on one declared metric, through kills and resumes."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from jobs.finetune import main
from models.weights.checkpoint import find_checkpoint, load_model
from shards.errors import InputError
from tests.trainer.small_run import assert_equal, copy_killed, make_model, train, weights
from trainer.checkpoint import Best, TrainState, save_best


def judge_all(best: Best, values: list[float]) -> list[bool]:
    return [best.judge({f"Validation/{best.metric}": v}, step) for step, v in enumerate(values, start=1)]


def test_higher_is_better_but_for_false_positives() -> None:
    assert judge_all(Best("ap/RbA"), [0.2, 0.2, 0.3, 0.1]) == [True, False, True, False]
    assert judge_all(Best("fpr95/RbA"), [0.2, 0.2, 0.3, 0.1]) == [True, False, False, True]
    assert judge_all(Best("miou"), [math.nan, 0.1, math.nan]) == [False, True, False]
    assert judge_all(Best(""), [0.1]) == [False]


def test_patience_counts_validations_without_a_better_one() -> None:
    best = Best("miou", patience=2)
    over = []
    for step, value in enumerate([0.5, 0.4, 0.6, 0.6, 0.1], start=1):
        best.judge({"Validation/miou": value}, step)
        over.append(best.is_over)
    assert over == [False, False, False, False, True]
    assert (best.value, best.step, best.waited) == (0.6, 3, 2)
    assert best.explain() == "best miou 60.00 % at step 3, 2 validations before now"
    assert not dataclasses.replace(best, patience=3).is_over


@pytest.fixture(name="fixed")
def _fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A validation with known values."""

    def measure(model: torch.nn.Module, step: int, unmasked: torch.Tensor | None) -> dict[str, float]:
        assert not model.training
        return {"Validation/miou": {2: 0.5, 4: 0.9, 6: 0.4, 8: 0.3, 10: 0.2, 12: 0.1}[step]}

    monkeypatch.setattr("trainer.run.build_validation", lambda *_: measure)


def train_long(out: Path, scenes: str, *extra: str, resume: bool = False) -> TrainState:
    own = ["--validation.shards", scenes, "--validation.select", "miou", "--validation.patience", "2"]
    own += ["--loop.eval_every", "2", "--loop.steps", "12", "--loop.save_every", "3"]
    own += ["--schedule.masked_attention", "never"]
    return train(out, scenes, *own, "--loop.keep_checkpoints", "1", *extra, resume=resume)


@pytest.mark.usefixtures("fixed")
def test_nothing_is_judged_before_the_last_mask_is_released(tmp_path: Path, scene_shards: str) -> None:
    """Of 12 steps masks go until the 9th; the best of the validations before, at step 4, is no choice."""
    state = train_long(tmp_path, scene_shards, "--schedule.masked_attention", "annealed")
    assert state.step == 12
    assert [p.name for p in (tmp_path / "run" / "best").iterdir()] == ["step-0000010"]


@pytest.mark.usefixtures("fixed")
def test_a_run_ends_early_keeps_its_best_and_goes_on_with_more_patience(
    tmp_path: Path, scene_shards: str
) -> None:
    state = train_long(tmp_path, scene_shards)
    run = tmp_path / "run"
    assert state.step == 8
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-0000008"]
    assert [p.name for p in (run / "best").iterdir()] == ["step-0000004"]
    assert sorted(p.name for p in (run / "best" / "step-0000004").iterdir()) == [
        *("best.json", "model.json", "model.safetensors")
    ]
    record = json.loads((run / "best" / "step-0000004" / "best.json").read_text())
    assert (record["metric"], record["value"], record["step"]) == ("miou", 0.9, 4)
    assert json.loads((run / "finished.json").read_text())["early"] is True
    message = "ended early at step 8: best miou 90.00 % at step 4, 2 validations before now"
    assert message in (run / "log.txt").read_text()
    assert find_checkpoint(run / "best") == run / "best" / "step-0000004"
    best = load_model(run / "best").state_dict()
    before = weights(tmp_path, 8)
    assert not torch.equal(best["queries.weight"], before["queries.weight"])

    main([str(tmp_path / "run" / "config.yaml"), "--resume"])  # exit code 0: it has come to its end
    assert_equal(weights(tmp_path, 8), before)
    message = "--resume: validation.limit is 3 but .* a resumed run keeps its sett"
    with pytest.raises(InputError, match=message):  # what the best was measured on may not change
        train_long(tmp_path, scene_shards, "--validation.limit", "3", resume=True)
    state = train_long(tmp_path, scene_shards, "--validation.patience", "3", resume=True)
    assert (state.step, state.best.waited) == (10, 3)


@pytest.mark.usefixtures("fixed")
def test_a_killed_run_resumes_to_the_same_best_and_never_lost_it(tmp_path: Path, scene_shards: str) -> None:
    train_long(tmp_path / "a", scene_shards, "--loop.keep_checkpoints", "0")
    copy_killed(tmp_path / "a", tmp_path / "b", 3)  # after the best of step 4 was saved
    state = train_long(tmp_path / "b", scene_shards, "--loop.keep_checkpoints", "0", resume=True)
    assert (state.step, state.best) == (8, Best("miou", 2, 0.9, 4, 2))
    first, second = (tmp_path / name / "run" / "best" / "step-0000004" for name in "ab")
    for name in ("best.json", "model.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert_equal(load_file(second / "model.safetensors"), load_file(first / "model.safetensors"))
    assert_equal(weights(tmp_path / "b", 8), weights(tmp_path / "a", 8))


def test_the_same_best_saved_again_is_never_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    final, accelerator = tmp_path / "best" / "step-0000004", Accelerator(cpu=True)
    save_best(accelerator, model, model, tmp_path, Best("miou", value=0.5, step=4))
    torch.nn.init.ones_(model.queries.weight)
    replace = Path.replace
    moves = []

    def watched(path: Path, target: Path) -> Path:
        if path.suffix == ".safetensors":
            moves.append(load_model(final).state_dict()["queries.weight"][0, 0].item())
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    save_best(accelerator, model, model, tmp_path, Best("miou", value=0.6, step=4))
    assert len(moves) == 1
    assert moves[0] != 1.0  # until then the first one
    assert load_model(final).state_dict()["queries.weight"].unique().tolist() == [1.0]
    assert json.loads((final / "best.json").read_text())["value"] == 0.6
    assert [path.name for path in final.parent.iterdir()] == ["step-0000004"]
