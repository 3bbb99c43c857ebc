"""Every file of a checkpoint, damaged in any way, is one line on resuming; nothing of it runs, or changes."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.weights.files import read_metadata, write_weight_file
from shards.files import hash_file
from tests.support.files import contents
from tests.support.refused import refused
from tests.trainer.small_run import copy_killed, train

FILES = ("ema.safetensors", "model.json", "model.safetensors", "optimizer.safetensors", "training.json")
OPTIONS = ("--loop.steps", "2", "--loop.save_every", "1", "--ema.decay", "0.5", "--adapt.mode", "lora")


class Code:
    """What a pickle runs when it is read."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch {self._mark}",)


@pytest.fixture(name="trained", scope="module")
def _trained(tmp_path_factory: pytest.TempPathFactory, scene_shards: str) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "a"
    train(folder, scene_shards, *OPTIONS)
    return folder


@pytest.fixture(name="checkpoint")
def _checkpoint(trained: Path, tmp_path: Path) -> Path:
    """Return the checkpoint that a resume reads, of a run stopped after its first step."""
    copy_killed(trained, tmp_path / "a", 1)
    return tmp_path / "a/run/checkpoints/step-0000001"


def refuse(checkpoint: Path, scenes: str, text: str) -> None:
    """Resume, and expect one line, and that every file stays as it is."""
    run = checkpoint.parents[1]
    before = contents(run, "lock")
    with refused(f"^--resume: .*{text}.*; remove step-0000001 to continue from the one before$") as caught:
        train(run.parent, scenes, *OPTIONS, resume=True)
    assert "\n" not in str(caught.value)
    assert contents(run, "lock") == before


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "one bit": flip,
    "missing": Path.unlink,
    "a folder": replace_by_folder,
    "a dangling link": replace_by_link,
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "a number": lambda path: path.write_text("7"),
    "deep JSON": lambda path: path.write_text("[" * 100_000),
    "code": lambda path: path.write_bytes(pickle.dumps(Code(path.with_suffix(".ran")))),
    "code in an archive": lambda path: torch.save(Code(path.with_suffix(".ran")), path),
}


@pytest.mark.parametrize("name", FILES)
def test_no_damage_of_a_file_goes_unseen(checkpoint: Path, scene_shards: str, name: str) -> None:
    assert sorted(path.name for path in checkpoint.iterdir()) == list(FILES)
    whole = (checkpoint / name).read_bytes()
    for damage, spoil in DAMAGES.items():
        if damage == "one bit" and name == "training.json":
            continue  # it may be a letter of a hash or a digit of a counter: see below
        spoil(checkpoint / name)
        refuse(checkpoint, scene_shards, name)
        shutil.rmtree(checkpoint / name, ignore_errors=True)
        (checkpoint / name).unlink(missing_ok=True)
        (checkpoint / name).write_bytes(whole)
    assert not list(checkpoint.glob("*.ran"))


@pytest.mark.parametrize(
    "name", ["custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "scaler.pt"]
)
def test_a_file_that_was_put_there_is_not_read(checkpoint: Path, scene_shards: str, name: str) -> None:
    (checkpoint / name).write_bytes(pickle.dumps(Code(checkpoint / "ran")))
    refuse(checkpoint, scene_shards, f"{name}: is not a file of this checkpoint")
    assert not (checkpoint / "ran").exists()


def change_json(path: Path, *keys: str, to: Any) -> None:
    fields = content = json.loads(path.read_text())
    for key in keys[:-1]:
        fields = fields[key]
    fields[keys[-1]] = to
    path.write_text(json.dumps(content))


def hash_again(checkpoint: Path, name: str) -> None:
    """Make the hash of a changed file right, as somebody does who means it."""
    change_json(checkpoint / "training.json", "files", name, to=hash_file(checkpoint / name))


QUERIES = "queries.weight"
TENSORS = [
    ("model", QUERIES, lambda x: x * torch.nan, "NaN or infinite values in 1 weights"),
    ("model", QUERIES, lambda x: x[:2], r"1 of another shape \[queries.weight 2x128, model 5x128\]"),
    ("model", QUERIES, lambda x: x.int(), "queries.weight holds int32 on cpu; only"),
    ("model", QUERIES, None, r"1 missing \[queries.weight\]"),
    ("ema", QUERIES, lambda x: x * torch.inf, "NaN or infinite values in 1 weights"),
    ("ema", QUERIES, lambda x: x.T, "1 of another shape"),
    ("ema", QUERIES, None, "1 missing"),
    ("optimizer", f"{QUERIES}.exp_avg_sq", lambda x: x + torch.inf, "NaN or infinite"),
    ("optimizer", f"{QUERIES}.exp_avg_sq", lambda x: x - 1, "exp_avg_sq is negative"),
    ("optimizer", f"{QUERIES}.exp_avg", lambda x: x[0], "1 of another shape"),
    ("optimizer", f"{QUERIES}.step", lambda x: -x, "step is negative"),
    ("optimizer", f"{QUERIES}.step", lambda x: x + 1, "or more than the checkpoint's step"),
    ("optimizer", f"{QUERIES}.step", None, r"1 missing \[queries.weight.step\]"),
    ("optimizer", "extra", lambda _: torch.ones(1), r"1 unexpected \[extra\]"),
]


@pytest.mark.parametrize(("name", "tensor", "change", "text"), TENSORS)
def test_numbers_that_cannot_be_are_refused_whatever_their_hash(
    checkpoint: Path,
    scene_shards: str,
    name: str,
    tensor: str,
    change: Callable[[torch.Tensor | None], torch.Tensor] | None,
    text: str,
) -> None:
    path = checkpoint / f"{name}.safetensors"
    tensors = load_file(path)
    value = tensors.pop(tensor, None)
    write_weight_file(tensors | ({tensor: change(value)} if change else {}), path, read_metadata(path))
    hash_again(checkpoint, path.name)
    refuse(checkpoint, scene_shards, f"{path.name}: .*{text}")


FIELDS: list[tuple[str, tuple[str, ...], Any, str]] = [
    ("training", ("state", "step"), -1, "state: step is -1; at least 0 is needed"),
    ("training", ("state", "step"), 2, "state: step is 2; the folder's is needed"),
    ("training", ("state", "step"), 1e999, "state: step is inf; int is needed"),
    ("training", ("state", "samples_seen"), "2", "state: samples_seen is '2'; int is needed"),
    ("training", ("state", "best", "waited"), -1, "best: waited is -1; at least 0 is needed"),
    ("training", ("state", "best"), {"step": 1, "value": 1e999}, "best: value is inf; "),
    ("training", ("state", "speed"), 1, "state: speed: unknown field"),
    ("training", ("loss_scale",), {"scale": 0, "growth_tracker": 0}, "loss_scale: scale 0.0 and"),
    ("training", ("loss_scale",), {"scale": 2, "growth_tracker": 0}, "loss_scale is needed with .* fp16"),
    ("training", ("files", "../x"), "0", "'../x', which training.json lists, is not there"),
    ("training", ("files",), {}, "is not a file of this checkpoint"),
    ("model", ("size",), "giant", "model.json: model.size: giant, but model.trunk is tiny"),
    ("model", ("num_queries",), 10**9, "model.json: model.num_queries must be 1 to 10000"),
    ("model", ("lora",), None, "model.json: is another model"),
]


@pytest.mark.parametrize(("name", "keys", "value", "text"), FIELDS)
def test_counters_and_descriptions_that_cannot_be_are_refused(
    checkpoint: Path, scene_shards: str, name: str, keys: tuple[str, ...], value: Any, text: str
) -> None:
    change_json(checkpoint / f"{name}.json", *keys, to=value)
    if name != "training":
        hash_again(checkpoint, f"{name}.json")
    refuse(checkpoint, scene_shards, text)


def test_a_checkpoint_of_before_is_not_resumed(checkpoint: Path, scene_shards: str) -> None:
    (checkpoint / "training.json").rename(checkpoint / "optimizer.bin")
    refuse(checkpoint, scene_shards, "of an earlier version.* --name NEW --model.weights .* starts another r")
