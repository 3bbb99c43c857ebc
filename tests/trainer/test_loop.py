"""One process: what a run writes, and that stopping changes nothing."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import webdataset
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs.finetune import finetune
from jobs.preview_paste import draw_contact_sheet, paste_scenes
from models.weights.checkpoint import list_checkpoints, load_model
from shards.errors import InputError
from shards.manifest import Manifest, ShardEntry, write_manifest
from shards.schema import LABEL_ENCODING, VOID_ID
from shards.settings import read_config, write_config
from tests.trainer.small_run import _fresh_accelerator, make_config, weights, with_paste  # noqa: F401
from trainer.checkpoint import _remove
from trainer.config import FinetuneConfig
from trainer.loop import is_due

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_a_run_leaves_everything_a_reader_needs(
    tmp_path: Path, scene_shards: str, cutout_shard: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = make_config(tmp_path, scene_shards, *with_paste(cutout_shard))
    state = finetune(config)
    run = tmp_path / "run"
    assert (state.step, state.samples_seen) == (4, 8)
    complete = dataclasses.replace(config, model=config.model.completed(), loss=config.loss.completed())
    assert read_config(FinetuneConfig, run / "config.yaml") == complete
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance[0]["seed"] == 0
    assert provenance[0]["num_processes"] == 1
    assert "step 4/4" in (run / "log.txt").read_text()
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["step-0000002", "step-0000004"]
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "loss/total",
        "loss/mask",
        "loss/dice",
        "loss/class",
        "loss/rba",
        "lr/heads",
        "grad_norm",
    } <= tags
    assert [point.step for point in events.Scalars("loss/total")] == [1, 2, 3, 4]
    (shown,) = events.Images("pasted scenes")
    sheet = cv2.imdecode(np.frombuffer(shown.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(sheet[..., ::-1], draw_contact_sheet(paste_scenes(config, 4), columns=4))
    assert (sheet == 255).all(axis=-1).sum() > 1000  # white on its label maps: every scene has an outlier


def test_no_scenes_are_shown_where_nothing_is_pasted(tmp_path: Path, scene_shards: str) -> None:
    finetune(make_config(tmp_path, scene_shards, "--loop.steps", "1"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == []


def test_the_lower_bound_of_a_loss_is_logged_beside_it(
    tmp_path: Path, scene_shards: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    extra = ("--loss.classification", "logit_norm", "--loss.options.logit_norm.temperature", "1")
    finetune(make_config(tmp_path, scene_shards, *extra))
    bound = 3 * math.log(1 + 19 * math.exp(-math.sqrt(20 / 19)))  # three supervised depths
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = [point.value for point in events.Scalars("lower_bound/class")]
    assert logged == pytest.approx([bound] * 4, rel=1e-5)
    assert all(point.value > bound for point in events.Scalars("loss/class"))
    assert f"lower_bound/class {bound:.4g}" in (tmp_path / "run" / "log.txt").read_text()


def test_isomax_plus_trains_its_head(tmp_path: Path, scene_shards: str) -> None:
    extra = ("--loss.classification", "isomax_plus", "--model.class_head", "isomax")
    finetune(make_config(tmp_path, scene_shards, *extra))
    first, last = weights(tmp_path, 2), weights(tmp_path, 4)
    for name in ("class_head.prototypes", "class_head.distance_scale"):
        assert not torch.equal(first[name], last[name])
    assert read_config(FinetuneConfig, tmp_path / "run" / "config.yaml").loss.weights == {
        "mask": 5.0,
        "dice": 5.0,
        "class": 2.0,
    }


def test_the_class_head_of_the_weights_must_fit_the_loss(tmp_path: Path, scene_shards: str) -> None:
    extra = ("--loss.classification", "isomax_plus", "--model.class_head", "isomax")
    finetune(make_config(tmp_path, scene_shards, *extra))
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(InputError, match="cross_entropy needs model.class_head linear, not isomax"):
        finetune(make_config(tmp_path / "b", scene_shards, "--model.weights", str(tmp_path / "run")))


@pytest.mark.parametrize("mode", ["full", "lora", "gradual"])
def test_a_resumed_run_has_the_weights_of_one_never_stopped(
    tmp_path: Path, scene_shards: str, cutout_shard: str, mode: str
) -> None:
    options = [*with_paste(cutout_shard), "--adapt.mode", mode, "--adapt.lora.dropout", "0.2"]
    finetune(make_config(tmp_path / "a", scene_shards, *options))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "run" / "checkpoints" / "step-0000004")
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(99)  # nothing may depend on what was drawn before
    finetune(make_config(tmp_path / "b", scene_shards, *options), resume=True)
    expected, actual = weights(tmp_path / "a", 4), weights(tmp_path / "b", 4)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert not torch.equal(weights(tmp_path / "a", 2)["queries.weight"], expected["queries.weight"])


def test_accumulated_micro_batches_equal_one_batch(
    tmp_path: Path, scene_shards: str, cutout_shard: str
) -> None:
    """Equal but for the order of float32 sums, which Adam's division enlarges: 1e-5 after four steps."""
    finetune(make_config(tmp_path / "a", scene_shards, *with_paste(cutout_shard)))
    AcceleratorState._reset_state(reset_partial_state=True)
    cut = ("--data.batch_size", "1", "--loop.grad_accum", "2")
    finetune(make_config(tmp_path / "b", scene_shards, *with_paste(cutout_shard), *cut))
    expected, actual = weights(tmp_path / "a", 4), weights(tmp_path / "b", 4)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=0, msg=name)


COMPILED = """
import sys, torch
from jobs.finetune import main
compile_with = torch.compile
torch.compile = lambda function: compile_with(function, backend="aot_eager")
main(sys.argv[1:])
"""
"""The default backend would compile C++ for a minute; this one traces the same graph."""


@pytest.mark.slow
def test_a_compiled_run_learns_what_an_eager_one_does(tmp_path: Path, scene_shards: str) -> None:
    """To rounding. In a process of its own: the shape checks that run in tests do not compile."""
    config = make_config(tmp_path / "a", scene_shards)
    finetune(config)
    config = dataclasses.replace(config, out=str(tmp_path / "b"))
    write_config(
        dataclasses.replace(config, loop=dataclasses.replace(config.loop, compile=True)), tmp_path / "c"
    )
    command = [sys.executable, "-c", COMPILED, str(tmp_path / "c")]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=300)
    expected, actual = weights(tmp_path / "a", 4), weights(tmp_path / "b", 4)
    assert expected.keys() == actual.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=0, msg=name)


def test_a_platform_that_cannot_compile_says_so(
    tmp_path: Path, scene_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_function: object) -> object:
        raise RuntimeError("no C++ compiler\nfound")

    monkeypatch.setattr(torch, "compile", fail)
    message = "loop.compile: torch.compile does not work on this platform: no C.. compiler found"
    with pytest.raises(InputError, match=message):
        finetune(make_config(tmp_path, scene_shards, "--loop.compile", "True"))


def test_only_what_adapts_changes(tmp_path: Path, scene_shards: str) -> None:
    finetune(make_config(tmp_path, scene_shards, "--adapt.mode", "heads", "--tracking.tensorboard", "False"))
    assert not (tmp_path / "run" / "tensorboard").exists()
    before, after = weights(tmp_path, 2), weights(tmp_path, 4)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"class_head", "mask_head"}


def test_blocks_stand_still_until_their_step(tmp_path: Path, scene_shards: str) -> None:
    gradual = ("--adapt.mode", "gradual", "--adapt.thaw", "0.25", "0.75", "--schedule.backbone_warmup", "0")
    finetune(make_config(tmp_path, scene_shards, *gradual, "--loop.save_every", "1"))
    starts = {0: 3, 1: 2, 2: 2, 3: 1}  # 4 steps: evenly from step 1 (block 3) to step 3 (block 0)
    for step in (1, 2, 3):
        before, after = weights(tmp_path, step), weights(tmp_path, step + 1)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        for block, start in starts.items():
            name = f"backbone.blocks.{block}.mlp.fc1.weight"
            assert (name in changed) is (start <= step), (step, block)
        assert ("backbone.pos_embed" in changed) is (starts[0] <= step)
        assert "queries.weight" in changed


def test_a_lora_run_is_evaluated_and_continued_from_as_a_plain_model(
    tmp_path: Path, scene_shards: str
) -> None:
    finetune(make_config(tmp_path, scene_shards, "--adapt.mode", "lora", "--adapt.lora.alpha", "3"))
    plain = load_model(tmp_path / "run").state_dict()
    raw = weights(tmp_path, 4)
    layer = "backbone.blocks.2.attn.proj"
    up, down = raw[f"{layer}.lora_B.default.weight"], raw[f"{layer}.lora_A.default.weight"]
    expected = raw[f"{layer}.base_layer.weight"] + 3 / 8 * up @ down
    torch.testing.assert_close(plain[f"{layer}.weight"], expected, atol=1e-6, rtol=0)
    AcceleratorState._reset_state(reset_partial_state=True)
    further = ("--name", "further", "--model.weights", str(tmp_path / "run"), "--adapt.mode", "heads")
    finetune(make_config(tmp_path, scene_shards, *further))
    again = load_model(tmp_path / "further").state_dict()
    assert torch.equal(again[f"{layer}.weight"], plain[f"{layer}.weight"])


def test_a_run_asked_to_stop_saves_and_leaves(
    tmp_path: Path, scene_shards: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Asks(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("step 1/4"):
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    logger = logging.getLogger("trainer.loop")
    handler = Asks()
    logger.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO):
            state = finetune(make_config(tmp_path, scene_shards, "--loop.save_every", "100"))
    finally:
        logger.removeHandler(handler)
    assert state.step == 1
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000001"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, scene_shards: str) -> None:
    extra = ("--loop.save_every", "1", "--loop.keep_checkpoints", "2")
    finetune(make_config(tmp_path, scene_shards, *extra))
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-0000003", "step-0000004"]


def test_a_removal_that_was_killed_leaves_no_half_checkpoint(
    tmp_path: Path, scene_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(make_config(tmp_path, scene_shards, "--loop.steps", "2"))
    folder = tmp_path / "run" / "checkpoints"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as if the process ended before it
        _remove(folder / "step-0000002")
    assert list_checkpoints(folder) == []
    assert [p.name for p in folder.iterdir()] == [".step-0000002.removed"]
    AcceleratorState._reset_state(reset_partial_state=True)
    finetune(make_config(tmp_path, scene_shards, "--loop.steps", "2"), resume=True)
    assert [p.name for p in folder.iterdir()] == ["step-0000002"]


def test_a_loss_that_explodes_stops_the_run_and_names_the_samples(tmp_path: Path, scene_shards: str) -> None:
    config = make_config(
        tmp_path, scene_shards, "--loss.weights", "mask", "1e38", "dice", "1", "class", "1e38"
    )
    with pytest.raises(
        FloatingPointError, match=r"step \d: gradient norm is (nan|inf); .* mask .* samples scene\d, scene"
    ):
        finetune(config)


def written(run: Path) -> dict[Path, int]:
    """When each file was written; the lock names who took it last."""
    return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != "lock"}


@pytest.mark.parametrize(
    ("extra", "resume", "message"),
    [
        ((), False, "a run is already there; --resume continues it"),
        (("--optim.lr", "1e-2"), True, r"--resume: optim.lr is 0.01 but .*config.yaml has 0.001"),
        (
            ("--data.batch_size", "1"),
            True,
            "--resume: the run took 2 samples per step, this start would take 1",
        ),
    ],
    ids=["taken", "other rate", "other batch"],
)
def test_a_run_is_neither_overwritten_nor_bent(
    tmp_path: Path, scene_shards: str, extra: tuple[str, ...], resume: bool, message: str
) -> None:
    finetune(make_config(tmp_path, scene_shards, "--loop.steps", "2"))
    AcceleratorState._reset_state(reset_partial_state=True)
    before = written(tmp_path / "run")
    with pytest.raises(InputError, match=message):
        finetune(make_config(tmp_path, scene_shards, "--loop.steps", "2", *extra), resume=resume)
    assert before == written(tmp_path / "run")


def test_something_is_due_every_so_often_and_at_the_end() -> None:
    assert [step for step in range(1, 8) if is_due(step, 3, 7)] == [3, 6, 7]
    assert not any(is_due(step, 0, 7) for step in range(1, 8))


def test_a_run_in_bf16_is_finite_and_close_to_float32(
    tmp_path: Path, scene_shards: str, cutout_shard: str
) -> None:
    """Weights of both runs move by lr x steps = 4e-3 at most, so they may differ by twice that."""
    paste = with_paste(cutout_shard)
    finetune(make_config(tmp_path / "a", scene_shards, *paste))
    AcceleratorState._reset_state(reset_partial_state=True)
    finetune(make_config(tmp_path / "b", scene_shards, *paste, "--loop.precision", "bf16"))
    full, half = weights(tmp_path / "a", 4), weights(tmp_path / "b", 4)
    assert all(half[name].dtype == torch.float32 and torch.isfinite(half[name]).all() for name in full)
    difference = max(float((half[name] - full[name]).abs().max()) for name in full)
    assert 0 < difference < 8e-3


def test_a_precision_that_the_machine_lacks_is_refused(tmp_path: Path, scene_shards: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, which does fp16")
    with pytest.raises(InputError, match="loop.precision: fp16 needs a GPU, which this machine lacks"):
        finetune(make_config(tmp_path, scene_shards, "--loop.precision", "fp16"))
    assert not (tmp_path / "run").exists()


def test_scenes_without_any_class_or_outlier_train_without_breaking(
    tmp_path: Path, cutout_shard: str
) -> None:
    void = np.full((48, 48), VOID_ID, np.uint8)
    sample = {
        "__key__": "void",
        "image.png": cv2.imencode(".png", np.zeros((48, 48, 3), np.uint8))[1].tobytes(),
        "label.png": cv2.imencode(".png", void)[1].tobytes(),
    }
    with webdataset.TarWriter(str(tmp_path / "void.tar")) as writer:
        writer.write(sample)
    hardly_ever = (*with_paste(cutout_shard), "--paste.probability", "1e-9")
    finetune(make_config(tmp_path, str(tmp_path / "void.tar"), *hardly_ever))
    assert all(torch.isfinite(value).all() for value in weights(tmp_path, 4).values())


def test_a_resumed_run_may_cut_the_same_global_batch_differently(
    tmp_path: Path, scene_shards: str, cutout_shard: str
) -> None:
    paste = with_paste(cutout_shard)
    finetune(make_config(tmp_path / "a", scene_shards, *paste))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "run" / "checkpoints" / "step-0000004")
    AcceleratorState._reset_state(reset_partial_state=True)
    cut = ("--data.batch_size", "1", "--loop.grad_accum", "2")
    finetune(make_config(tmp_path / "b", scene_shards, *paste, *cut), resume=True)
    expected, actual = weights(tmp_path / "a", 4), weights(tmp_path / "b", 4)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=0, msg=name)


def test_resuming_does_not_write_into_a_foreign_folder(tmp_path: Path, scene_shards: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="run: the folder already holds files"):
        finetune(make_config(tmp_path, scene_shards), resume=True)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "custom_checkpoint_1.pkl"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, scene_shards: str, name: str) -> None:
    finetune(make_config(tmp_path, scene_shards, "--loop.steps", "2"))
    AcceleratorState._reset_state(reset_partial_state=True)
    damaged = tmp_path / "run" / "checkpoints" / "step-0000002" / name
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(
        InputError, match="--resume: .*step-0000002 cannot be restored; remove it to continue"
    ):
        finetune(make_config(tmp_path, scene_shards, "--loop.steps", "2"), resume=True)


def test_a_run_does_not_resume_on_other_data(tmp_path: Path, scene_shards: str) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(Path(scene_shards).parent, shards)
    entries = [
        ShardEntry(p.name, "train", 1, p.stat().st_size, "0" * 64, (f"scene{i}",))
        for i, p in enumerate(sorted(shards.glob("*.tar")))
    ]
    manifest = Manifest(1, "cityscapes", LABEL_ENCODING, "png", len(entries), {}, tuple(entries))
    write_manifest(manifest, shards)
    finetune(make_config(tmp_path, str(shards), "--loop.steps", "2"))
    AcceleratorState._reset_state(reset_partial_state=True)
    write_manifest(dataclasses.replace(manifest, options={"other": True}), shards)
    with pytest.raises(InputError, match=r"shards/manifest.json has changed since the run was started"):
        finetune(make_config(tmp_path, str(shards), "--loop.steps", "2"), resume=True)


def test_a_broken_provenance_record_is_named(tmp_path: Path, scene_shards: str) -> None:
    finetune(make_config(tmp_path, scene_shards, "--loop.steps", "2"))
    AcceleratorState._reset_state(reset_partial_state=True)
    (tmp_path / "run" / "provenance.json").write_text("[1]")
    with pytest.raises(InputError, match="provenance.json: is no provenance record"):
        finetune(make_config(tmp_path, scene_shards, "--loop.steps", "2"), resume=True)
