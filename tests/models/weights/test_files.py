from __future__ import annotations

import argparse
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.weights.files import read_metadata, read_weight_file, write_weight_file
from shards.errors import InputError

WEIGHTS = {"a.weight": torch.arange(4.0), "b": torch.ones(2, 2)}


FOUND_BELOW = [
    WEIGHTS,
    {"state_dict": WEIGHTS, "epoch": 3, "optimizer_states": [{"state": {0: WEIGHTS}}], "loops": {"a": {}}},
    {"model": WEIGHTS},
    {"model_state_dict": WEIGHTS, "model_ema": {"c": torch.ones(1)}},
    {"teacher": {"backbone": WEIGHTS}, "student": {"backbone": {"c": torch.ones(1)}}},
    {"ckpt": {"net": {"params": WEIGHTS}}, "args": {"lr": 0.1}},
    {"callbacks": {"EMA": {"state_dict": {"c": torch.ones(1)}}}, "state_dict": WEIGHTS},
]


@pytest.mark.parametrize("content", FOUND_BELOW)
@pytest.mark.parametrize("name", ["w.pth", "w.bin", "w.ckpt"])
def test_a_pickle_of_tensors_is_read_with_or_without_wrapper(tmp_path: Path, name: str, content) -> None:
    torch.save(content, tmp_path / name)
    read = read_weight_file(tmp_path / name)
    assert read.keys() == WEIGHTS.keys()
    assert torch.equal(read["a.weight"], WEIGHTS["a.weight"])


def test_weights_in_several_files_are_read_by_their_index(tmp_path: Path) -> None:
    save_file({"a.weight": WEIGHTS["a.weight"]}, tmp_path / "model-1.safetensors")
    save_file({"b": WEIGHTS["b"]}, tmp_path / "model-2.safetensors")
    places = {"a.weight": "model-1.safetensors", "b": "model-2.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert read_weight_file(index).keys() == WEIGHTS.keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"weight_map": {"a": "../a.safetensors"}}', "names '../a.safetensors'; names ending in"),
        ('{"weight_map": {"a": ".."}}', "names '..'; names ending in .* in its own folder are read"),
        ('{"weight_map": {"a": "model.safetensors.index.json"}}', "names 'model.safetensors.index.json'"),
        ('{"weight_map": {"a": "a\\u0000.safetensors"}}', r"names 'a\\x00.safetensors'"),
        ('{"weight_map": {"a": "a\\n.safetensors"}}', r"names 'a\\n.safetensors'"),
        pytest.param('{"weight_map": ' + '{"a": ' * 100_000, "is no valid JSON", id="deep"),
        ("{", "is no valid JSON"),
        ("[]", "is a list; a JSON object is needed"),
        ('{"weight_map": 3}', "weight_map: is a int; a JSON object is needed"),
        ('{"weight_map": {"c": "1.safetensors"}}', r"lists 1 weights that no part has \[c\]"),
    ],
)
def test_a_broken_index_is_named(tmp_path: Path, content: str, message: str) -> None:
    save_file(WEIGHTS, tmp_path / "1.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(InputError, match=f"index.json: {message}"):
        read_weight_file(index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.ones(1), "function": print}, ".*save its state_dict"),
        ({"state_dict": WEIGHTS, "hyper_parameters": argparse.Namespace(lr=1.0)}, r" \(argparse.Namespace\)"),
    ],
    ids=["function", "class"],
)
def test_a_pickle_with_code_is_refused_with_what_to_do(tmp_path: Path, content: dict, message: str) -> None:
    torch.save(content, tmp_path / "w.ckpt")
    with pytest.raises(InputError, match=f"w.ckpt: a pickle with more than tensors in it{message}"):
        read_weight_file(tmp_path / "w.ckpt")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"{name}: truncated, or no"):
        read_weight_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"holds no weights by name, its keys are \[\]; save the network's state_dict\(\) alone"),
        ({"a": 3, "b": {"lr": 1}}, r"holds no weights by name, its keys are \[a, b\]; save"),
        ([1], "holds no weights by name, it is no dictionary; save"),
        ({1: torch.ones(1)}, r"holds no weights by name, its keys are \[1\]"),
        ({"a": WEIGHTS, "b": WEIGHTS}, r"holds weights 2 times, below \[a, b\]; save one of them alone"),
        ({"a": torch.ones(1).expand(10**6, 10**6)}, "a is 1000000x1000000, and the file holds fewer numbers"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value)[:20],
)
def test_a_file_without_weights_by_name_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=f"w.pth: {message}"):
        read_weight_file(tmp_path / "w.pth")


def _npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(2))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.onnx", b"\x08\x0a\x12", r"\(an ONNX graph, .* the checkpoint it was exported from\): "),
        ("w.bin", b"\x08\x0a\x12\x07pytorch", r"\(an ONNX graph"),
        ("w.bin", b"\x89HDF\r\n", r"\(an HDF5 file"),
        ("w.bin", _npz(), r"\(a zip archive; TorchScript's and NumPy's are not read"),
        ("w.bin", b"<!DOCTYPE html><html>", r"\(a web page\)"),
        ("w.bin", b"version https://git-lfs.github.com/spec/v1\n", r"\(a Git LFS pointer; `git"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\n", r"\(a Git LFS pointer; `git"),
        ("w.bin", b"\x28\x00\x00\x00\x00\x00\x00\x00{}", r"\(a safetensors file; name it .safetensors\)"),
        ("w.bin", b"hello", ""),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_weight_file_is_named_and_nobody_is_told_to_trust_it(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: truncated, or no \w+ file.*{message}") as refusal:
        read_weight_file(tmp_path / name)
    assert "trust" not in str(refusal.value)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (torch.ones(2, dtype=torch.int8), "int8 on cpu"),
        (torch.ones(2).to(torch.float8_e4m3fn), "float8_e4m3fn on cpu"),
        (torch.ones(2, dtype=torch.complex64), "complex64 on cpu"),
        (torch.ones(2, device="meta"), "float32 on meta"),
    ],
    ids=["int8", "float8", "complex", "meta"],
)
def test_what_is_no_plain_weight_is_refused(tmp_path: Path, value: torch.Tensor, what: str) -> None:
    torch.save({**WEIGHTS, "c": value}, tmp_path / "w.bin")
    with pytest.raises(InputError, match=f"w.bin: c holds {what}; only weights of float32"):
        read_weight_file(tmp_path / "w.bin")


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(10**6), tmp_path / "w.pth")
    with (
        zipfile.ZipFile(tmp_path / "w.pth") as stored,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    with pytest.raises(InputError, match=r"bomb.pth: an archive that unpacks to 4\d+ bytes"):
        read_weight_file(tmp_path / "bomb.pth")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").chmod(0)
    with pytest.raises(InputError, match="w.safetensors: cannot be read: Permission denied"):
        read_weight_file(tmp_path / "w.safetensors")


def test_equal_weights_are_equal_bytes(tmp_path: Path) -> None:
    metadata = {name: "x" * i for i, name in enumerate("qwertyuiop")}
    for i, ours in enumerate((metadata, dict(reversed(metadata.items())))):
        write_weight_file(WEIGHTS, tmp_path / f"{i}.safetensors", ours)
    first, second = ((tmp_path / f"{i}.safetensors").read_bytes() for i in range(2))
    assert first == second
    assert read_metadata(tmp_path / "0.safetensors") == metadata | {"format": "pt"}
    assert torch.equal(read_weight_file(tmp_path / "0.safetensors")["b"], WEIGHTS["b"])
