"""Stopping changes nothing, and nothing resumes with other settings, data or files."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from models.trunk import SIZES
from models.weights.run_files import list_checkpoints
from shards.errors import InputError
from shards.manifest import Manifest, ShardEntry, write_manifest
from shards.schema import LABEL_ENCODING
from tests.models.tiny import make_model, over_both_trunks, save
from tests.trainer.small_run import (
    HEAD_OPTIONS,
    assert_close,
    assert_equal,
    copy_killed,
    forget_after,
    train,
    weights,
    with_paste,
)
from tests.trainer.test_validation import write_pasted
from trainer.checkpoint import _remove

TWO = ("--loop.steps", "2")


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("full", "tiny"),
        ("lora", "tiny"),
        ("gradual", "tiny"),
        ("lora", "dinov3-tiny"),
        ("gradual", "dinov3-tiny"),
        ("outlier_head", "tiny"),
    ],
)
def test_a_resumed_run_has_the_weights_of_one_never_stopped(
    tmp_path: Path, scene_shards: str, cutout_shard: str, mode: str, size: str
) -> None:
    options = [*with_paste(cutout_shard), "--adapt.mode", mode, "--adapt.lora.dropout", "0.2"]
    options += ["--model.size", size, *(HEAD_OPTIONS if mode == "outlier_head" else ())]
    train(tmp_path / "a", scene_shards, *options)
    copy_killed(tmp_path / "a", tmp_path / "b", 2)
    torch.manual_seed(99)  # nothing may depend on what was drawn before
    train(tmp_path / "b", scene_shards, *options, resume=True)
    assert_equal(weights(tmp_path / "b"), weights(tmp_path / "a"))
    moving = "outlier_head.pixels.weight" if mode == "outlier_head" else "queries.weight"
    early, late = (weights(tmp_path / "a", step)[moving] for step in (2, 4))
    assert not torch.equal(early, late)


def test_a_run_goes_on_over_a_trunk_that_its_size_names_by_width_and_depth(
    tmp_path: Path, scene_shards: str
) -> None:
    """Such as DINOv2 without registers, which `model.size` small starts from as well."""
    trunk = dataclasses.replace(SIZES["tiny"], registers=0)
    save(make_model(trunk=trunk, size=""), tmp_path / "plain")
    options = ["--model.weights", str(tmp_path / "plain"), "--model.num_queries", "0"]
    train(tmp_path / "a", scene_shards, *options)
    copy_killed(tmp_path / "a", tmp_path / "b", 2)
    train(tmp_path / "b", scene_shards, *options, resume=True)
    assert_equal(weights(tmp_path / "b"), weights(tmp_path / "a"))


@over_both_trunks
def test_a_resumed_run_with_everything_on_is_one_never_stopped(
    tmp_path: Path, scene_shards: str, size: str
) -> None:
    """Averages, best checkpoint, early end, recomputed activations and a fitted micro-batch together."""
    pasted = write_pasted(tmp_path / "pasted", count=2)
    options = ["--ema.decay", "0.5", "--loop.activation_checkpointing", "True", "--loop.fit_memory", "True"]
    options += ["--validation.pasted", str(pasted), "--validation.scores", "RbA"]
    options += ["--validation.select", "fpr95/RbA", "--validation.patience", "2", "--loop.eval_every", "1"]
    options += ["--adapt.mode", "lora", "--adapt.lora.dropout", "0.2", "--loop.steps", "6"]
    options += ["--model.size", size, "--tracking.probes", "0"]
    state = train(tmp_path / "a", scene_shards, *options)
    assert 2 < state.step <= 6
    copy_killed(tmp_path / "a", tmp_path / "b", 2)
    copy_killed(tmp_path / "a", tmp_path / "c", state.step)  # at the very end
    shutil.rmtree(tmp_path / "b" / "run" / "best")
    for name in ("b", "c"):
        torch.manual_seed(99)
        assert train(tmp_path / name, scene_shards, *options, resume=True) == state
        for file in ("model.safetensors", "ema.safetensors"):
            expected, actual = (weights(tmp_path / of, state.step, file=file) for of in ("a", name))
            assert_equal(actual, expected)
    if state.best.step > 2:  # else it was saved before the kill, and this test removed it
        best = Path("run", "best", f"step-{state.best.step:07d}")
        for file in ("model.safetensors", "best.json"):
            assert (tmp_path / "a" / best / file).read_bytes() == (tmp_path / "b" / best / file).read_bytes()


def test_a_run_of_before_these_options_resumes_or_is_refused_in_a_line(
    tmp_path: Path, scene_shards: str, finished: Path
) -> None:
    copy_killed(finished, tmp_path, 2)
    path = tmp_path / "run" / "config.yaml"
    saved = yaml.safe_load(path.read_text())
    del saved["ema"]
    for section, names in {
        "loop": ("activation_checkpointing", "fit_memory", "profile"),
        "validation": ("pasted", "scores", "select", "patience"),
        "schedule": ("preset", "annealing"),
        "optim": ("lr_scaling", "lr_batch"),
        "tracking": ("groups", "probes", "curves"),
    }.items():
        for name in names:
            del saved[section][name]
    path.write_text(yaml.safe_dump(saved))
    message = "--resume: ema.decay is 0.9 but .*config.yaml has 0.0; a resumed run"
    with pytest.raises(InputError, match=message):
        train(tmp_path, scene_shards, "--ema.decay", "0.9", resume=True)
    train(tmp_path, scene_shards, resume=True)
    assert_equal(weights(tmp_path), weights(finished))


def test_a_resumed_run_may_cut_the_same_global_batch_differently(
    tmp_path: Path, scene_shards: str, cutout_shard: str
) -> None:
    paste = with_paste(cutout_shard)
    train(tmp_path / "a", scene_shards, *paste)
    copy_killed(tmp_path / "a", tmp_path / "b", 2)
    cut = ("--data.batch_size", "1", "--loop.grad_accum", "2")
    train(tmp_path / "b", scene_shards, *paste, *cut, resume=True)
    assert_close(weights(tmp_path / "b"), weights(tmp_path / "a"))


def test_a_removal_that_was_killed_leaves_no_half_checkpoint(
    tmp_path: Path, scene_shards: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_killed(finished, tmp_path, 2)
    folder = tmp_path / "run" / "checkpoints"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as if the process ended before it
        _remove(folder / "step-0000002")
    assert list_checkpoints(folder) == []
    assert [p.name for p in folder.iterdir()] == [".step-0000002.removed"]
    train(tmp_path, scene_shards, resume=True)
    assert sorted(p.name for p in folder.iterdir()) == ["step-0000002", "step-0000004"]


def test_a_run_is_neither_overwritten_nor_bent(tmp_path: Path, scene_shards: str, finished: Path) -> None:
    def written() -> dict[Path, int]:  # the lock names who took it last
        run = tmp_path / "run"
        return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != "lock"}

    copy_killed(finished, tmp_path, 4)
    before = written()
    for extra, resume, message in (
        ((), False, "a run has finished; --name NEW --model.weights .*/run trains on from its weights"),
        (("--optim.lr", "1e-2"), True, r"--resume: optim.lr is 0.01 but .*config.yaml has 0.001"),
        (("--loop.steps", "8"), True, "keeps its settings; --name NEW --model.weights .*/run trains on"),
        (("--data.batch_size", "1"), True, "--resume: the run took 2 samples per step, this start would tak"),
    ):
        with pytest.raises(InputError, match=message):
            train(tmp_path, scene_shards, *extra, resume=resume)
        assert before == written()


def test_resuming_a_finished_run_says_so_and_writes_nothing(
    tmp_path: Path, scene_shards: str, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy_killed(finished, tmp_path, 4)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json")}
    caplog.clear()
    assert train(tmp_path, scene_shards, resume=True).step == 4
    assert "run: finished at step 4; --name NEW --model.weights" in caplog.text
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json")} == before
    forget_after(0, tmp_path / "run")
    with pytest.raises(InputError, match="a run has finished"):
        train(tmp_path, scene_shards)


def test_resuming_does_not_write_into_a_foreign_folder(tmp_path: Path, scene_shards: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="run: the folder already holds files"):
        train(tmp_path, scene_shards, resume=True)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_damaged_record_is_named(tmp_path: Path, scene_shards: str, finished: Path) -> None:
    copy_killed(finished, tmp_path, 4)
    (tmp_path / "run" / "provenance.json").write_text("[1]")
    with pytest.raises(InputError, match="provenance.json: is no provenance record"):
        train(tmp_path, scene_shards, resume=True)


@pytest.fixture(name="shards")
def _shards(tmp_path: Path, scene_shards: str) -> Path:
    return shutil.copytree(Path(scene_shards).parent, tmp_path / "shards")


def test_a_run_does_not_resume_on_other_data(tmp_path: Path, shards: Path) -> None:
    entries = tuple(
        ShardEntry(p.name, "train", 1, p.stat().st_size, "0" * 64, (f"scene{i}",))
        for i, p in enumerate(sorted(shards.glob("*.tar")))
    )
    manifest = Manifest(1, "cityscapes", LABEL_ENCODING, "png", len(entries), {}, entries)
    write_manifest(manifest, shards)
    train(tmp_path, str(shards), *TWO)
    write_manifest(dataclasses.replace(manifest, options={"other": True}), shards)
    with pytest.raises(InputError, match=r"shards/manifest.json has changed since the run was started"):
        train(tmp_path, str(shards), *TWO, resume=True)


def test_a_run_is_not_resumed_on_other_samples(tmp_path: Path, shards: Path) -> None:
    """No manifest speaks of these shards; one that is missing would shift the whole sequence."""
    train(tmp_path, f"{shards}/*.tar")
    forget_after(2, tmp_path / "run")
    hidden = shards / "scenes-000003.tar"
    hidden.rename(tmp_path / "hidden.tar")
    message = "--resume: data.shards hold 7 samples, but not those that the run was"
    with pytest.raises(InputError, match=message):
        train(tmp_path, f"{shards}/*.tar", resume=True)
    (tmp_path / "hidden.tar").rename(hidden)
    assert train(tmp_path, f"{shards}/*.tar", resume=True).step == 4
