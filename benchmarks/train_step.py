"""A training step: our loop in each mode of `adapt.mode` beside tue-mps/eomt's full fine-tuning.

python -m benchmarks.train_step --upstream FOLDER [--size base] [--image_size 512 512] [--out RESULTS.md]

Both sides start from the same random weights and take steps over the same batch: masked attention on, every
depth supervised, matching, point-sampled losses, clipping, AdamW. Ours is `trainer.loop.train` itself, timed
from one request for a batch to the next; upstream's is its network and its criterion under a bare loop,
without what Lightning adds (`benchmarks/upstream.py`). Each measurement has a process of its own, so
that its peak of memory is its own; the sides take turns. Without `--upstream` our own full mode is the
reference.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.cost import CostOptions, compute_cost
from benchmarks.machine import (
    ThreadedOptions,
    command_upstream,
    describe_machine,
    measure_peak,
    read_clocks,
    table,
    upstream_commit,
)
from benchmarks.parity import request_eomt
from models.adapt import apply_adaptation
from models.adaptation import AdaptConfig, LoraSettings
from models.config import DEFAULT_NUM_QUERIES, ModelConfig
from models.eomt import EoMT
from models.segmenter import compile_model
from models.trunk import SIZES
from models.weights.checkpoint import initialise_model
from shards.batch import Batch
from shards.errors import InputError
from shards.program import run_program
from shards.schema import NUM_CLASSES
from shards.settings import parse_options
from trainer.ema import WeightAverage
from trainer.loop import Run, train
from trainer.losses.loss import Loss, build_loss, weighted_sum
from trainer.losses.options import LossConfig
from trainer.optim import build_lr_schedule, build_optimizer
from trainer.runtime import make_accelerator
from trainer.sections import EmaConfig, LoopConfig, OptimConfig, ScheduleConfig

UPSTREAM = "upstream, full"
MODES: dict[str, AdaptConfig] = {
    "full": AdaptConfig(mode="full"),
    "last-4": AdaptConfig(mode="last-4"),
    "lora on the last 4 blocks": AdaptConfig(mode="lora", lora=LoraSettings(last_blocks=4)),
    "lora on all blocks": AdaptConfig(mode="lora"),
    "queries": AdaptConfig(mode="queries"),
    "heads": AdaptConfig(mode="heads"),
    "outlier_head": AdaptConfig(mode="outlier_head"),
}
TARGETS = {"last-4": 1.6, "lora on the last 4 blocks": 1.6, "queries": 1.9, "heads": 1.9}
FULL_TARGETS = {"cpu": 1.4, "cuda": 1.05}
LONG = 10**6
HEADER = (
    "side | s per step | ratio | processor s | ratio | target | images/s | peak memory, GB | ratio "
    "| TFLOP per step | TFLOP/s | MFU | first loss"
)


@dataclass(frozen=True, kw_only=True)
class StepOptions(ThreadedOptions):
    """Time training steps, ours beside tue-mps/eomt's."""

    upstream: Path | None = None
    """Folder with the code of https://github.com/tue-mps/eomt; without it our full mode is the reference."""
    size: str = "base"
    """Key of `models.trunk.SIZES`."""
    image_size: tuple[int, int] = (512, 512)
    """Height and width in pixels; equal."""
    batch_size: int = 1
    """Images per step."""
    steps: int = 2
    """Steps that are timed in each turn; one before them is not."""
    rounds: int = 3
    """Turns of every side; the median step of all turns counts."""
    modes: tuple[str, ...] = tuple(MODES)
    """Which of our modes."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 is autocast, on both sides."""
    compile: bool = False
    """torch.compile of the network, on both sides."""
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    """Where both sides run."""
    peak_tflops: float = 0.0
    """What the device can do, dense and in this precision, to state the share of it that is used (MFU)."""

    def __post_init__(self) -> None:
        for name, given, known in (("modes", self.modes, MODES), ("size", (self.size,), SIZES)):
            for value in given:
                if value not in known:
                    raise InputError(f"--{name}: unknown {value!r}; known: {', '.join(known)}")
        if self.upstream is not None and not (self.upstream / "training").is_dir():
            raise InputError(f"--upstream {self.upstream}: no training/; the code of tue-mps/eomt is needed")


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a report in Markdown."""
    options: StepOptions = parse_options(StepOptions, arguments, program="benchmarks.train_step")
    sides = ([UPSTREAM] if options.upstream is not None else []) + list(options.modes)
    measured: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as name:
        for side in sides * options.rounds:
            measured[side].append(measure(side, options, Path(name)))
            seconds = _step_times(measured[side][-1])[:, 0]
            print(f"{side}: {' '.join(f'{value:.3g}' for value in seconds)} s", file=sys.stderr, flush=True)
    options.publish("Training step", render(options, measured))


def measure(side: str, options: StepOptions, folder: Path) -> dict[str, Any]:
    """Take the steps of one turn in a fresh process.

    Returns `marks`, pairs of seconds by the clock and of the processor, one more than steps; `losses`; and
    `peak` in bytes: on a GPU what PyTorch had allocated at most, else the rise of the resident size.
    """
    if side != UPSTREAM:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(_take_steps, (side, options, folder))
    assert options.upstream is not None
    request = request_eomt(options.size, options.image_size)
    for name in ("batch_size", "steps", "precision", "device", "compile"):
        request[name] = getattr(options, name)
    command = command_upstream("step", options.upstream, folder, options.threads, request)
    subprocess.run(command, check=True, cwd=folder)  # writes weights and batch too; the same ones every time
    answer: dict[str, Any] = json.loads((folder / "times.json").read_text())
    return answer


def _take_steps(mode: str, options: StepOptions, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    answer: dict[str, Any] = {}
    peak = measure_peak(lambda: answer.update(run_loop(mode, options, folder)))
    answer["peak"] = torch.cuda.max_memory_allocated() if options.device == "cuda" else peak
    return answer


def run_loop(mode: str, options: StepOptions, folder: Path) -> dict[str, Any]:
    """Run `trainer.loop.train` over one batch; return marks and losses."""
    model, batch = load_start(options, folder)
    accelerator = make_accelerator(options.precision, folder)
    wait = torch.cuda.synchronize if accelerator.device.type == "cuda" else int
    marks: list[tuple[float, float]] = []

    def batches() -> Iterator[Batch]:
        for _ in range(options.steps + 1):
            marks.append(read_clocks(wait))
            yield batch
        marks.append(read_clocks(wait))

    run, losses = build_run(mode, options, model, accelerator, batches())
    with contextlib.suppress(StopIteration):  # the batches end before the loop does, which would save
        train(run, LoopConfig(steps=LONG, log_every=LONG, save_every=LONG))
    return {"marks": marks, "losses": [float(loss) for loss in losses]}


def build_run(
    mode: str, options: StepOptions, model: EoMT, accelerator: Accelerator, batches: Iterator[Batch]
) -> tuple[Run, list[Tensor]]:
    """Build a run as `jobs.finetune` does, and a list that takes the loss of every step."""
    apply_adaptation(model, MODES[mode])
    optimizer = build_optimizer(model, OptimConfig(), fused=accelerator.scaler is None)
    if options.compile:
        compile_model(model, accelerator.device, "--compile")
    schedule, config = ScheduleConfig(), LossConfig()
    if mode == "outlier_head":
        schedule = ScheduleConfig(masked_attention="never")
        config = LossConfig(name="likelihood_ratio")
    config = config.completed()
    lr_schedule = build_lr_schedule(optimizer, schedule, LONG)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    loss, losses = build_loss(config), list[Tensor]()

    def note(*inputs: Any) -> dict[str, Tensor]:
        terms = loss(*inputs)
        losses.append(weighted_sum(terms, config.weights).detach())
        return terms

    note.area_exponent = loss.area_exponent  # type: ignore[attr-defined]
    return Run(
        accelerator=accelerator,
        model=prepared,
        optimizer=optimizer,
        lr_schedule=lr_schedule,
        schedule=schedule,
        loss=cast(Loss, note),
        loss_weights=config.weights,
        batches=batches,
        seed=0,
        folder=Path(),  # nothing is saved
        ema=WeightAverage(model, EmaConfig()),
    ), losses


def load_start(options: StepOptions, folder: Path) -> tuple[EoMT, Batch]:
    """Read the weights and the batch that both sides start from; without upstream, draw them."""
    keys = tuple(f"scene {i}" for i in range(options.batch_size))
    if options.upstream is not None:
        tensors = load_file(folder / "batch.safetensors")
        model = initialise_model(ModelConfig(weights=str(folder / "eomt.ckpt")))
        return model, Batch(tensors["image"], tensors["label"], keys)
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch_size, 3, *options.image_size)
    image = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    coarse = torch.randint(0, NUM_CLASSES, (shape[0], 1, 8, 8), generator=generator, dtype=torch.uint8)
    label = torch.nn.functional.interpolate(coarse, options.image_size).squeeze(1).contiguous()
    torch.manual_seed(0)
    return EoMT(ModelConfig(size=options.size, image_size=options.image_size)), Batch(image, label, keys)


def render(options: StepOptions, measured: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Return the report."""
    machine = describe_machine(options.threads, (torch, timm))
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    upstream = "" if options.upstream is None else f"; upstream {upstream_commit(options.upstream)}"
    height, width = options.image_size
    medians = {side: _medians(turns) for side, turns in measured.items()}
    reference = next(iter(measured))
    rows = [
        [*_render_times(side, options, ours, medians[reference]), f"{measured[side][0]['losses'][0]:.2f}"]
        for side, ours in medians.items()
    ]
    return [
        f"{machine}; {device}{upstream}",
        "",
        f"EoMT-{options.size}, {options.batch_size} image(s) of {height} x {width}, {options.precision}, "
        f"{'compiled, ' if options.compile else ''}masked attention, every depth "
        f"supervised (outlier_head: neither), {DEFAULT_NUM_QUERIES} "
        f"queries; median of {options.rounds} turns of {options.steps} steps after one "
        f"to warm up. Ratios to: {reference}. The first loss shows that both sides do the same work; they "
        "draw other points.",
        *table(HEADER, rows),
    ]


def _step_times(turn: Mapping[str, Any]) -> np.ndarray:
    """Return seconds by the clock and of the processor (steps, 2); a first step warms up."""
    return np.diff(turn["marks"][1:], axis=0)


def _medians(turns: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Return seconds per step by the clock, by the processor, and the peak of memory."""
    seconds, processor = np.median(np.concatenate([_step_times(turn) for turn in turns]), axis=0)
    return seconds, processor, float(np.median([turn["peak"] for turn in turns]))


def _render_times(
    side: str, options: StepOptions, ours: tuple[float, float, float], base: tuple[float, float, float]
) -> list[str]:
    seconds, processor, peak = ours
    ratios = [f"{theirs / own:.2f}" for theirs, own in zip(base, ours, strict=True)]
    targets = {**TARGETS, "full": FULL_TARGETS[options.device]} if options.upstream is not None else {}
    flops = rate = mfu = ""
    if side not in (UPSTREAM, "outlier_head"):  # FLOPs as `benchmarks.cost` can tell
        cost = CostOptions(image_size=options.image_size[0], masked=True)
        tera = options.batch_size * compute_cost(options.size, MODES[side], cost).step / 1e12
        flops, rate = f"{tera:.2f}", f"{tera / seconds:.3g}"
        mfu = f"{tera / seconds / options.peak_tflops:.1%}" if options.peak_tflops else ""
    row = [side, f"{seconds:.3g}", ratios[0], f"{processor:.3g}", ratios[1]]
    row += [f"{targets[side]:g}" if side in targets else "", f"{options.batch_size / seconds:.3g}"]
    return [*row, f"{peak / 1e9:.2f}", ratios[2], flops, rate, mfu]


if __name__ == "__main__":
    run_program(main)
