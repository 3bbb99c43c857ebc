"""Turn a checkpoint into what other programs read, or its answers into what benchmarks read.

python -m jobs.export --checkpoint RUN --to huggingface --out FOLDER
python -m jobs.export --checkpoint RUN --to smiyc --score RbA --datasets DOWNLOADS --out FOLDER
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from eval.predict.score_names import describe_scores
from shards.errors import InputError
from shards.files import Location
from shards.program import run_program
from shards.settings import parse_options, require_least

PACKAGES = ("smiyc", "fishyscapes", "bravo")
"""Kinds of files that a benchmark takes."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Turn a checkpoint into what other programs read."""

    checkpoint: Path | None = None
    """A run or checkpoint folder, or weights of another origin (`jobs.doctor checkpoint` tells)."""
    model_file: Location = ""
    """For benchmarks, in place of --checkpoint: your own model, as FILE.py:FUNCTION. It runs your code. See
    docs/own-models.md."""
    to: Literal[
        "safetensors", "adapter", "outlier_head", "huggingface", "onnx", "smiyc", "fishyscapes", "bravo"
    ]
    """safetensors: model.safetensors, adapters merged, which this suite reads without anything beside it;
    adapter: what a LoRA run changed, in peft's layout; outlier_head: the head alone, which goes onto
    the same EoMT by --base; huggingface: the folder that transformers loads;
    onnx: model.onnx, images of the model's size to class scores and one anomaly score; its metadata say
    classes, scaling and origin; smiyc, fishyscapes, bravo: what the benchmark takes for the images below
    --datasets, whether their labels are published or not."""
    out: Path
    """New or empty folder. A package for a benchmark that was interrupted goes on."""
    push: str = ""
    """Not for benchmarks: a repository of Hugging Face's hub, such as org/name, to which the complete folder
    is uploaded, through huggingface_hub and its log-in; a new one is private."""
    score: Annotated[str, tyro.conf.arg(help=f"For onnx and benchmarks: {describe_scores()}.")] = "MSP"
    base: Path | None = None
    """For adapter and outlier_head: what the run started from; by default what its model.weights says. For
    safetensors and huggingface: the EoMT that an outlier head goes onto, or DINOv3's own file, where the
    checkpoint holds differences to it."""
    outlier_head: bool = True
    """For safetensors: whether an outlier head goes along."""
    datasets: Path | None = None
    """For benchmarks: folder with the images, as the benchmark publishes them."""
    parts: tuple[str, ...] = ()
    """For benchmarks: which of their parts, such as AnomalyTrack-all; by default all that are there."""
    method: str = ""
    """For benchmarks: the method's name in the package; by default the run's folder name."""
    device: str = "auto"
    """For benchmarks, and for torch in --latency: auto, cpu, cuda or cuda:N."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Of the network, for benchmarks (float32, bf16) and onnx (float32, fp16); scores are computed in float32
    either way."""
    windows_at_once: int = 4
    """For benchmarks: windows per forward pass; lower it where memory is short."""
    picture: tuple[int, int] | None = None
    """For onnx: height and width of whole pictures, one at a time, to class map and score; windows are cut
    and averaged inside. By default the graph takes windows of the model's size."""
    calibration: Path | None = None
    """For onnx: calibration.json of `jobs.calibrate`, whose threshold and risk the metadata shall hold."""
    latency: int = 0
    """For onnx with --picture: time so many frames with torch and with onnxruntime on this machine."""

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (not self.model_file):
            given = "both" if self.model_file else "none of them"
            raise InputError(f"one of --checkpoint and --model_file is needed; got {given}")
        require_least(self, windows_at_once=1, latency=0)
        if self.to in PACKAGES and self.datasets is None:
            raise InputError(f"--datasets: --to {self.to} predicts images; name the folder that holds them")
        for name in ("datasets", "parts", "method", "model_file"):
            if self.to not in PACKAGES and getattr(self, name):
                raise InputError(f"--{name}: is for {', '.join(PACKAGES)}; --to is {self.to}")
        for name in ("picture", "calibration", "latency"):
            if self.to != "onnx" and getattr(self, name):
                raise InputError(f"--{name}: is for onnx; --to is {self.to}")
        if self.latency and self.picture is None:
            raise InputError("--latency: times whole pictures; --picture HEIGHT WIDTH says their size")
        if min(self.picture or (1,)) < 1:
            raise InputError(f"--picture: got {self.picture}; at least 1")
        allowed = {"onnx": ("float32", "fp16"), **dict.fromkeys(PACKAGES, ("float32", "bf16"))}
        if self.precision not in (known := allowed.get(self.to, ("float32",))):
            raise InputError(f"--precision: got {self.precision}; --to {self.to} has {', '.join(known)}")
        if self.push and self.to in PACKAGES:
            raise InputError(f"--push: uploads weights; --to is {self.to}, which its benchmark takes")
        with_base = ("adapter", "outlier_head", "safetensors", "huggingface")
        if self.base is not None and self.to not in with_base:
            raise InputError(f"--base: only --to {', '.join(with_base)} has a base; --to is {self.to}")
        if not self.outlier_head and self.to != "safetensors":
            raise InputError(f"--outlier_head: is for --to safetensors; --to is {self.to}")


def main(arguments: Sequence[str]) -> None:
    """Export one checkpoint from the command line and say what was written."""
    options: ExportOptions = parse_options(ExportOptions, arguments, program="jobs.export")
    from jobs.work.export import export

    print(export(options), end="")


if __name__ == "__main__":
    run_program(main)
