"""One process: what a run writes, and that stopping changes nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from jobs.preview_paste import draw_contact_sheet, paste_scenes
from jobs.work.finetune import finetune
from models.weights.checkpoint import load_model
from shards.errors import InputError
from shards.schema import VOID_ID
from shards.settings import read_config
from tests.models.tiny import over_both_trunks
from tests.support.tars import encode, write_tar
from tests.trainer.small_run import (
    at_step,
    make_config,
    read_events,
    read_scalars,
    train,
    weights,
    with_paste,
)
from trainer.config import FinetuneConfig
from trainer.loop import is_due


def test_a_run_leaves_everything_a_reader_needs(tmp_path: Path, scene_shards: str, cutout_shard: str) -> None:
    config = make_config(tmp_path, scene_shards, *with_paste(cutout_shard))
    state = finetune(config)
    run = tmp_path / "run"
    assert (state.step, state.samples_seen) == (4, 8)
    complete = dataclasses.replace(config, model=config.model.completed(), loss=config.loss.completed())
    assert read_config(FinetuneConfig, run / "config.yaml") == complete
    (start,) = json.loads((run / "provenance.json").read_text())
    assert (start["seed"], start["num_processes"]) == (0, 1)
    assert "step 4/4" in (run / "log.txt").read_text()
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["step-0000002", "step-0000004"]
    events = read_events(run)
    tags = set(events.Tags()["scalars"])
    terms = {f"Loss/{name}" for name in ("total", "mask", "dice", "class", "rba")}
    assert terms | {"lr/heads", "grad_norm/all"} <= tags
    assert not any(tag.startswith("Loss/lower_bound") for tag in tags)  # which are 0 here
    assert [point.step for point in events.Scalars("Loss/total")] == [1, 2, 3, 4]
    (shown,) = events.Images("pasted scenes")
    sheet = cv2.imdecode(np.frombuffer(shown.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(sheet[..., ::-1], draw_contact_sheet(paste_scenes(config, 4), columns=4))
    assert (sheet == 255).all(axis=-1).sum() > 1000  # white on its label maps: every scene has an outlier


def test_the_lower_bound_of_a_loss_is_logged_beside_it(tmp_path: Path, scene_shards: str) -> None:
    extra = ("--loss.classification", "logit_norm", "--loss.options.logit_norm.temperature", "1")
    train(tmp_path, scene_shards, *extra)
    bound = 3 * math.log(1 + 19 * math.exp(-math.sqrt(20 / 19)))  # three supervised depths
    events = read_events(tmp_path / "run")
    assert events.Tags()["images"] == []  # as nothing is pasted
    logged = [point.value for point in events.Scalars("Loss/lower_bound/class")]
    assert logged == pytest.approx([bound] * 4, rel=1e-5)
    assert all(point.value > bound for point in events.Scalars("Loss/class"))
    assert f"lower_bound/class {bound:.4g}" in (tmp_path / "run" / "log.txt").read_text()


@over_both_trunks
def test_isomax_plus_trains_its_head_and_other_losses_refuse_it(
    tmp_path: Path, scene_shards: str, size: str
) -> None:
    extra = ("--loss.classification", "isomax_plus", "--model.class_head", "isomax", "--model.size", size)
    train(tmp_path, scene_shards, *extra)
    first, last = weights(tmp_path, 2), weights(tmp_path)
    for name in ("class_head.prototypes", "class_head.distance_scale"):
        assert not torch.equal(first[name], last[name])
    published = {"mask": 5.0, "dice": 5.0, "class": 2.0}
    assert read_config(FinetuneConfig, tmp_path / "run" / "config.yaml").loss.weights == published
    with pytest.raises(InputError, match="cross_entropy needs model.class_head linear, not isomax"):
        train(tmp_path / "b", scene_shards, "--model.size", size, "--model.weights", str(tmp_path / "run"))


def test_a_platform_that_cannot_compile_says_so(
    tmp_path: Path, scene_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_function: object) -> object:
        raise RuntimeError("no C++ compiler\nfound")

    monkeypatch.setattr(torch, "compile", fail)
    message = "loop.compile: torch.compile does not work on this platform: no C.. compiler found"
    with pytest.raises(InputError, match=message):
        train(tmp_path, scene_shards, "--loop.compile", "True")


def test_blocks_stand_still_until_their_step(tmp_path: Path, scene_shards: str) -> None:
    gradual = ("--adapt.mode", "gradual", "--adapt.thaw", "0.25", "0.75", "--schedule.backbone_warmup", "0")
    train(tmp_path, scene_shards, *gradual, "--loop.save_every", "1")
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
    train(tmp_path, scene_shards, "--adapt.mode", "lora", "--adapt.lora.alpha", "3")
    plain = load_model(tmp_path / "run").state_dict()
    raw = weights(tmp_path)
    layer = "backbone.blocks.2.attn.proj"
    up, down = raw[f"{layer}.lora_B.default.weight"], raw[f"{layer}.lora_A.default.weight"]
    expected = raw[f"{layer}.base_layer.weight"] + 3 / 8 * up @ down
    torch.testing.assert_close(plain[f"{layer}.weight"], expected, atol=1e-6, rtol=0)
    further = ("--name", "further", "--model.weights", str(tmp_path / "run"), "--adapt.mode", "heads")
    train(tmp_path, scene_shards, *further)
    again = load_model(tmp_path / "further").state_dict()
    assert torch.equal(again[f"{layer}.weight"], plain[f"{layer}.weight"])


def test_a_run_asked_to_stop_saves_and_leaves(tmp_path: Path, scene_shards: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with at_step(1, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        state = train(tmp_path, scene_shards, "--loop.save_every", "100")
    assert state.step == 1
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000001"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, scene_shards: str) -> None:
    extra = ("--loop.save_every", "1", "--loop.keep_checkpoints", "2")
    train(tmp_path, scene_shards, *extra)
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-0000003", "step-0000004"]


def test_something_is_due_every_so_often_and_at_the_end() -> None:
    assert [step for step in range(1, 8) if is_due(step, 3, 7)] == [3, 6, 7]
    assert not any(is_due(step, 0, 7) for step in range(1, 8))


def test_a_run_in_bf16_is_finite_and_close_to_float32(
    tmp_path: Path, scene_shards: str, cutout_shard: str
) -> None:
    """Weights of both runs move by lr x steps = 4e-3 at most, so they may differ by twice that."""
    paste = with_paste(cutout_shard)
    train(tmp_path / "a", scene_shards, *paste)
    train(tmp_path / "b", scene_shards, *paste, "--loop.precision", "bf16")
    full, half = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(half[name].dtype == torch.float32 and torch.isfinite(half[name]).all() for name in full)
    difference = max(float((half[name] - full[name]).abs().max()) for name in full)
    assert 0 < difference < 8e-3


def test_a_precision_that_the_machine_lacks_is_refused(tmp_path: Path, scene_shards: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, which does fp16")
    with pytest.raises(InputError, match="loop.precision: fp16 needs a GPU, which this machine lacks"):
        train(tmp_path, scene_shards, "--loop.precision", "fp16")
    assert not (tmp_path / "run").exists()


def test_scenes_without_any_class_or_outlier_train_without_breaking(
    tmp_path: Path, cutout_shard: str
) -> None:
    parts = {"image": np.zeros((48, 48, 3), np.uint8), "label": np.full((48, 48), VOID_ID, np.uint8)}
    members = {f"void.{name}.png": encode(part) for name, part in parts.items()}
    shard = write_tar(tmp_path / "void.tar", members)
    train(tmp_path, str(shard), *with_paste(cutout_shard), "--paste.probability", "1e-9")
    assert all(torch.isfinite(value).all() for value in weights(tmp_path).values())


def test_log_and_tensorboard_show_speed_waiting_and_decode_errors(tmp_path: Path, scene_shards: str) -> None:
    """One of eight scenes is damaged; four steps of two scenes are one epoch and meet it once."""
    shards = tmp_path / "shards"
    shutil.copytree(Path(scene_shards).parent, shards)
    damaged = shards / "scenes-000003.tar"
    with tarfile.open(damaged) as tar:
        place = tar.getmember("scene3.label.png").offset_data
    content = bytearray(damaged.read_bytes())
    content[place : place + 20] = bytes(20)
    damaged.write_bytes(content)
    train(tmp_path, f"{shards}/*.tar", "--data.max_errors", "1")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("unreadable, 1 of 1 allowed: sample scene3: label.png") == 1
    last = next(line for line in log.splitlines() if "step 4/4" in line)
    assert "data/errors 1" in last
    assert "images_per_s " in last
    assert re.search(r"^\S+ \S+ step 4/4  to_go 00:00  total ", last)
    events = read_events(tmp_path / "run")
    errors = [point.value for point in events.Scalars("data/errors")]
    assert errors == sorted(errors)
    assert errors[-1] == 1
    assert all(0 <= point.value <= 1 for point in events.Scalars("speed/data_wait_share"))
    assert all(point.value > 0 for point in events.Scalars("speed/images_per_s"))


def test_labels_that_hold_outliers_need_no_bank(tmp_path: Path, scene_shards: str) -> None:
    outlier = ("--loss.outlier", "rba", "--loop.steps", "1")
    told = r"no outliers for rba: none is pasted, and no label of \d+ holds 254; set paste\.bank"
    with pytest.raises(InputError, match=told):
        train(tmp_path / "without", scene_shards, *outlier)
    label = np.zeros((48, 48), np.uint8)
    label[10:40, 10:40] = 254
    pictures = {"image.png": np.full((48, 48, 3), 90, np.uint8), "label.png": label}
    members = {name: encode(picture) for name, picture in pictures.items()}
    write_tar(tmp_path / "own.tar", {f"{i}.{name}": members[name] for i in "01" for name in members})
    assert train(tmp_path, str(tmp_path / "own.tar"), *outlier).step == 1
    assert all(value > 0 for _, value in read_scalars(tmp_path / "run")["Loss/rba"])
