"""A training step: our loop in each mode of `adapt.mode` beside tue-mps/eomt's full fine-tuning.

python -m benchmarks.train_step --upstream FOLDER [--size base] [--image_size 512 512] [--out RESULTS.md]

Both sides start from the same random weights and take steps over the same batch: masked attention on, every
depth supervised, matching, point-sampled losses, clipping, AdamW. Ours is `trainer.loop.train` itself, timed
from one request for a batch to the next; upstream's is its network and its criterion under a bare loop,
without what Lightning adds (`benchmarks/upstream_step.py`). Each measurement has a process of its own, so
that its peak of memory is its own; the sides take turns. Without `--upstream` our own full mode is the
reference.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.cost import CostOptions, compute_cost
from benchmarks.machine import describe_machine, measure_peak, publish, read_clocks
from benchmarks.parity import upstream_commit
from models.adapt import AdaptConfig, apply_adaptation
from models.backbone import SIZES
from models.config import DEFAULT_NUM_QUERIES, DEFAULT_PATCH_SIZE, LoraSettings, ModelConfig
from models.eomt import EoMT
from models.segmenter import compile_model
from models.weights.checkpoint import initialise_model
from shards.batch import Batch
from shards.errors import InputError
from shards.schema import NUM_CLASSES
from shards.settings import parse_options, run_program
from trainer.ema import EmaConfig, WeightAverage
from trainer.loop import LoopConfig, Run, train
from trainer.losses import Loss, LossConfig, build_loss, weighted_sum
from trainer.optim import OptimConfig, build_optimizer
from trainer.runtime import make_accelerator
from trainer.schedule import ScheduleConfig, build_lr_schedule

UPSTREAM_SIDE = Path(__file__).with_name("upstream_step.py")
UPSTREAM = "upstream, full"
MODES: dict[str, AdaptConfig] = {
    "full": AdaptConfig(mode="full"),
    "last-4": AdaptConfig(mode="last-4"),
    "lora on the last 4 blocks": AdaptConfig(mode="lora", lora=LoraSettings(last_blocks=4)),
    "lora on all blocks": AdaptConfig(mode="lora"),
    "queries": AdaptConfig(mode="queries"),
    "heads": AdaptConfig(mode="heads"),
}
TARGETS = {"last-4": 1.6, "lora on the last 4 blocks": 1.6, "queries": 1.9, "heads": 1.9}
FULL_TARGETS = {"cpu": 1.4, "cuda": 1.05}
LONG = 10**6


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """Time training steps, ours beside tue-mps/eomt's."""

    upstream: Path | None = None
    """Folder with the code of https://github.com/tue-mps/eomt; without it our full mode is the reference."""
    size: str = "base"
    """Key of `models.backbone.SIZES`."""
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
    threads: int = 1
    """Threads that PyTorch may use, on both sides."""
    out: Path | None = None
    """File to write the report to as well."""

    def __post_init__(self) -> None:
        for name, known in (("modes", MODES), ("size", SIZES)):
            given = getattr(self, name)
            for value in given if isinstance(given, tuple) else (given,):
                if value not in known:
                    raise InputError(f"--{name}: unknown {value!r}; known: {', '.join(known)}")
        if self.upstream is not None and not (self.upstream / "training").is_dir():
            raise InputError(f"--upstream {self.upstream}: no training/; the code of tue-mps/eomt is needed")


@dataclass(frozen=True)
class Times:
    """What one process measured."""

    seconds: tuple[float, ...]
    """Of each timed step, by the clock."""
    processor: tuple[float, ...]
    """The same, of the processor."""
    losses: tuple[float, ...]
    peak: int
    """Bytes: on a GPU those that PyTorch had allocated at most; else the rise of the resident size."""


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a report in Markdown."""
    options: StepOptions = parse_options(StepOptions, arguments, program="benchmarks.train_step")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured: dict[str, list[Times]] = {}
        for turn in range(options.rounds):
            if options.upstream is not None:
                keep(measured, UPSTREAM, time_upstream(options, folder))
            elif turn == 0:
                write_start(options, folder)
            for mode in options.modes:
                keep(measured, mode, time_ours(mode, options, folder))
    publish(render(options, measured), options.out)


def keep(measured: dict[str, list[Times]], side: str, times: Times) -> None:
    """Add what a process measured, and show it."""
    measured.setdefault(side, []).append(times)
    print(f"{side}: {' '.join(f'{value:.3g}' for value in times.seconds)} s", file=sys.stderr, flush=True)


def time_upstream(options: StepOptions, folder: Path) -> Times:
    """Let upstream's side draw weights and batch, and take its steps; the same ones every time."""
    request = {
        "backbone": SIZES[options.size].timm_name,
        "image_size": options.image_size,
        "from_dinov2": False,
        "patch_size": DEFAULT_PATCH_SIZE,
        "num_queries": DEFAULT_NUM_QUERIES,
        "num_blocks": SIZES[options.size].num_joint_blocks,
        "num_classes": NUM_CLASSES,
        "seed": 0,
        "batch_size": options.batch_size,
        "steps": options.steps,
        "precision": options.precision,
        "device": options.device,
        "compile": options.compile,
    }
    (folder / "request.json").write_text(json.dumps(request))
    assert options.upstream is not None
    upstream = str(options.upstream.resolve())
    command = [sys.executable, str(UPSTREAM_SIDE), upstream, str(folder), str(options.threads)]
    subprocess.run(command, check=True, cwd=folder)
    return _read_times(json.loads((folder / "times.json").read_text()))


def write_start(options: StepOptions, folder: Path) -> None:
    """Draw weights and a batch where there is no other side that does."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch_size, *options.image_size)
    image = torch.randint(0, 256, (shape[0], 3, *shape[1:]), generator=generator, dtype=torch.uint8)
    coarse = torch.randint(0, NUM_CLASSES, (shape[0], 1, 8, 8), generator=generator, dtype=torch.uint8)
    label = torch.nn.functional.interpolate(coarse, shape[1:]).squeeze(1).contiguous()
    save_file({"image": image, "label": label}, folder / "batch.safetensors")
    torch.manual_seed(0)
    model = EoMT(ModelConfig(size=options.size, image_size=options.image_size))
    save_file(model.state_dict(), folder / "eomt.safetensors", metadata={"format": "pt"})


def time_ours(mode: str, options: StepOptions, folder: Path) -> Times:
    """Take our steps in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return _read_times(pool.apply(_take_steps, (mode, options, folder)))


def _read_times(answer: dict[str, Any]) -> Times:
    marks = answer["marks"][1:]  # the first step warms up
    pairs = list(itertools.pairwise(marks))
    return Times(
        tuple(after[0] - before[0] for before, after in pairs),
        tuple(after[1] - before[1] for before, after in pairs),
        tuple(answer["losses"]),
        answer["peak"],
    )


def _take_steps(mode: str, options: StepOptions, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    answer: dict[str, Any] = {}
    peak = measure_peak(lambda: answer.update(run_loop(mode, options, folder)))
    answer["peak"] = torch.cuda.max_memory_allocated() if options.device == "cuda" else peak
    return answer


class _EnoughError(Exception):
    """Ends the loop where a checkpoint would follow."""


def run_loop(mode: str, options: StepOptions, folder: Path) -> dict[str, Any]:
    """Run `trainer.loop.train` over one batch; return marks of time, one more than steps, and losses."""
    tensors = load_file(folder / "batch.safetensors")
    keys = tuple(f"scene {i}" for i in range(options.batch_size))
    batch = Batch(tensors["image"], tensors["label"], keys)
    accelerator = make_accelerator(options.precision, folder)
    wait = torch.cuda.synchronize if accelerator.device.type == "cuda" else int
    marks: list[tuple[float, float]] = []

    def batches() -> Iterator[Batch]:
        for _ in range(options.steps + 1):
            marks.append(read_clocks(wait))
            yield batch
        marks.append(read_clocks(wait))
        raise _EnoughError

    run, losses = build_run(mode, options, folder, accelerator, batches())
    with contextlib.suppress(_EnoughError):
        train(run, LoopConfig(steps=LONG, log_every=LONG, save_every=LONG))
    return {"marks": marks, "losses": [float(loss) for loss in losses]}


def build_run(
    mode: str,
    options: StepOptions,
    folder: Path,
    accelerator: Accelerator,
    batches: Iterator[Batch],
) -> tuple[Run, list[Tensor]]:
    """Build a run as `jobs.finetune` does, and a list that takes the loss of every step."""
    model = load_start(options, folder)
    apply_adaptation(model, MODES[mode])
    optimizer = build_optimizer(model, OptimConfig(), fused=accelerator.device.type == "cuda")
    if options.compile:
        compile_model(model, accelerator.device, "--compile")
    schedule = ScheduleConfig()
    lr_schedule = build_lr_schedule(optimizer, schedule, LONG)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    config = LossConfig().completed()
    loss, losses = build_loss(config), list[Tensor]()

    def note(*inputs: Any) -> dict[str, Tensor]:
        terms = loss(*inputs)
        losses.append(weighted_sum(terms, config.weights).detach())
        return terms

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
        folder=folder,
        ema=WeightAverage(model, EmaConfig()),
    ), losses


def load_start(options: StepOptions, folder: Path) -> EoMT:
    """Read the weights that both sides start from, as fine-tuning does."""
    if options.upstream is not None:
        return initialise_model(ModelConfig(weights=str(folder / "eomt.ckpt")))
    model = EoMT(ModelConfig(size=options.size, image_size=options.image_size))
    model.load_state_dict(load_file(folder / "eomt.safetensors"))
    return model


def render(options: StepOptions, measured: dict[str, list[Times]]) -> list[str]:
    """Return the report."""
    modules = (torch, timm)
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    upstream = "" if options.upstream is None else f"; upstream {upstream_commit(options.upstream)}"
    height, width = options.image_size
    reference = next(iter(measured))
    lines = [
        "# Training step",
        "",
        f"{describe_machine(options.threads, modules)}; {device}{upstream}",
        "",
        f"EoMT-{options.size}, {options.batch_size} image(s) of {height} x {width}, {options.precision}, "
        f"{'compiled, ' if options.compile else ''}masked attention, every depth supervised, "
        f"{DEFAULT_NUM_QUERIES} queries; median of "
        f"{options.rounds} turns of {options.steps} steps after one to warm up. "
        f"Ratios to: {reference}. The first loss shows that both sides "
        f"do the same work; they draw other points.",
        "",
        "| side | s per step | ratio | processor s | ratio | target | images/s | peak memory, GB | ratio "
        "| TFLOP per step | TFLOP/s | MFU | first loss |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [_render_row(name, options, measured, reference) for name in measured]
    return lines


def _render_row(name: str, options: StepOptions, measured: dict[str, list[Times]], reference: str) -> str:
    seconds, processor, peak = _summary(measured[name])
    base = _summary(measured[reference])
    targets = {**TARGETS, "full": FULL_TARGETS[options.device]}
    target = f"{targets[name]:g}" if name in targets and reference == UPSTREAM else ""
    flops = rate = mfu = ""
    if name != UPSTREAM:
        tera = options.batch_size * count_flops(name, options) / 1e12
        flops, rate = f"{tera:.2f}", f"{tera / seconds:.3g}"
        mfu = f"{tera / seconds / options.peak_tflops:.1%}" if options.peak_tflops else ""
    return (
        f"| {name} | {seconds:.3g} | {base[0] / seconds:.2f} | {processor:.3g} | {base[1] / processor:.2f} "
        f"| {target} | {options.batch_size / seconds:.3g} | {peak / 1e9:.2f} | {base[2] / peak:.2f} "
        f"| {flops} | {rate} | {mfu} | {measured[name][0].losses[0]:.2f} |"
    )


def _summary(turns: Sequence[Times]) -> tuple[float, float, float]:
    """Return the median seconds by clock and processor, and the median peak."""
    return (
        statistics.median(value for turn in turns for value in turn.seconds),
        statistics.median(value for turn in turns for value in turn.processor),
        statistics.median(turn.peak for turn in turns),
    )


def count_flops(mode: str, options: StepOptions) -> float:
    """Return the model's FLOPs of one image, forward and backward, as `benchmarks.cost` counts them."""
    config = MODES[mode]
    cost = CostOptions(image_size=options.image_size[0], masked=True)
    return compute_cost(options.size, config, cost).step


if __name__ == "__main__":
    run_program(main)
