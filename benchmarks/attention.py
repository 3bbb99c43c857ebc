"""One masked block of EoMT: attention in two parts beside one dense mask; time, memory, and that they agree.

python -m benchmarks.attention [--size base] [--image_size 1024 1024] [--out RESULTS.md]

Only the rows of the queries are masked. Ours attends for them with a mask (Q rows) and for all other tokens
without one; the other side is timm's own block with one mask of T x T, as upstream EoMT has it. Each side
runs forward and backward over the same tokens, in turns; memory is the peak resident size over that before,
in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor

from benchmarks.machine import describe_machine, measure_peak
from models.backbone import SIZES
from models.config import DEFAULT_NUM_QUERIES, DEFAULT_PATCH_SIZE
from models.eomt import _apply_block
from shards.settings import parse_options, run_program

NUM_PREFIX_TOKENS = 5
"""The class token and DINOv2's four registers."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Time one masked block, forward and backward."""

    size: str = "base"
    """Key of `models.backbone.SIZES`: tells width and heads."""
    image_size: tuple[int, int] = (1024, 1024)
    """Height and width in pixels; patches of 16."""
    rounds: int = 5
    """Turns of which the median counts."""
    threads: int = 1
    """Threads that PyTorch may use."""
    out: Path | None = None
    """File to write the report to as well."""


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a report in Markdown."""
    options: BenchmarkOptions = parse_options(BenchmarkOptions, arguments, program="benchmarks.attention")
    torch.set_num_threads(options.threads)
    block, tokens, may_look = draw_inputs(options)
    sides = {name: partial(SIDES[name], block, tokens, may_look) for name in SIDES}
    answers = {name: run() for name, run in sides.items()}
    times = time_in_turns(sides, options.rounds)
    memory = {name: measure_memory(name, options) for name in sides}
    height, width = options.image_size
    lines = [
        "# Masked attention",
        "",
        describe_machine(options.threads, (torch, timm)),
        "",
        f"One block of {options.size} over {tokens.shape[1]} tokens ({height} x {width} pixels), of which "
        f"{DEFAULT_NUM_QUERIES} are queries that may look at half of the patches; batch 1, float32, forward "
        f"and backward, median of {options.rounds}.",
        "",
        "| side | s | ratio | processor s | ratio | extra memory, MB | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in sides:
        figures = (*times[name], memory[name] / 1e6)
        reference = (*times["one dense mask"], memory["one dense mask"] / 1e6)
        cells = [f"{ours:.4g} | {theirs / ours:.2f}" for ours, theirs in zip(figures, reference, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", describe_differences(answers)]
    report = "\n".join(lines) + "\n"
    print(report, end="")
    if options.out is not None:
        options.out.write_text(report, encoding="utf-8")


def draw_inputs(options: BenchmarkOptions) -> tuple[Block, Tensor, Tensor]:
    """Draw a block, its tokens (1, T, D), and where each query may look (1, 1, Q, T)."""
    torch.manual_seed(0)
    size = SIZES[options.size]
    block = Block(size.width, size.num_heads, qkv_bias=True, init_values=1.0)
    patches = options.image_size[0] // DEFAULT_PATCH_SIZE * (options.image_size[1] // DEFAULT_PATCH_SIZE)
    tokens = torch.randn(1, DEFAULT_NUM_QUERIES + NUM_PREFIX_TOKENS + patches, size.width)
    may_look = torch.ones(1, 1, DEFAULT_NUM_QUERIES, tokens.shape[1], dtype=torch.bool)
    may_look[..., -patches:] = torch.rand(1, 1, DEFAULT_NUM_QUERIES, patches) < 0.5
    return block, tokens, may_look


def run_split(block: Block, tokens: Tensor, may_look: Tensor) -> dict[str, Tensor]:
    """Run ours, and return output and gradients."""
    return _run(block, tokens, lambda x: _apply_block(block, x, may_look))


def run_dense(block: Block, tokens: Tensor, may_look: Tensor) -> dict[str, Tensor]:
    """Run timm's block with the whole mask, and return output and gradients."""

    def apply(x: Tensor) -> Tensor:
        mask = x.new_ones(1, 1, x.shape[1], x.shape[1], dtype=torch.bool)
        mask[:, :, : may_look.shape[2]] = may_look
        return block(x, attn_mask=mask)

    return _run(block, tokens, apply)


SIDES: dict[str, Callable[[Block, Tensor, Tensor], dict[str, Tensor]]] = {
    "one dense mask": run_dense,
    "ours, in two parts": run_split,
}


def _run(block: Block, tokens: Tensor, apply: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    block.zero_grad()
    x = tokens.clone().requires_grad_()
    out = apply(x)
    out.square().mean().backward()
    assert x.grad is not None
    gradients = {name: p.grad for name, p in block.named_parameters() if p.grad is not None}
    return {"output": out.detach(), "gradient of the tokens": x.grad, **gradients}


def time_in_turns(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Return the median seconds of each side by the clock, and by the processor, less disturbed."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            began = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return {
        name: (statistics.median(wall for wall, _ in pairs), statistics.median(cpu for _, cpu in pairs))
        for name, pairs in times.items()
    }


def describe_differences(answers: dict[str, dict[str, Tensor]]) -> str:
    """Say how far the sides differ, relative to the largest value."""
    dense, split = (answers[name] for name in SIDES)
    assert dense.keys() == split.keys()
    output = float((dense["output"] - split["output"]).abs().max())
    relative = {
        name: float((dense[name] - split[name]).abs().max() / dense[name].abs().max()) for name in dense
    }
    name = max(relative, key=lambda key: relative[key])
    return (
        f"Largest difference of the output {output:.1e}; of output and {len(dense) - 1} gradients, relative "
        f"to the largest value of each, {relative[name]:.1e} ({name})."
    )


def measure_memory(side: str, options: BenchmarkOptions) -> int:
    """Return the bytes that one side needs beyond block and tokens, in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return int(pool.apply(_extra_memory, (side, options)))


def _extra_memory(side: str, options: BenchmarkOptions) -> int:
    torch.set_num_threads(options.threads)
    small = BenchmarkOptions(size=options.size, image_size=(64, 64))
    SIDES[side](*draw_inputs(small))  # what is loaded lazily does not count
    return measure_peak(partial(SIDES[side], *draw_inputs(options)))


if __name__ == "__main__":
    run_program(main)
