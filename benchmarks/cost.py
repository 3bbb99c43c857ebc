"""The cost of a fine-tuning step by mode, FLOPs and memory, computed on the meta device without running it.

python -m benchmarks.cost [--sizes base large] [--masked True] [--out RESULTS.md]

The model runs on PyTorch's meta device, which has shapes and no numbers: FLOPs are counted operation by
operation, forward and backward, and the memory of activations is the size of what autograd keeps. These are
computed figures, not measurements. They leave out the losses (a few hundred MB per image and supervised
depth), the allocator's slack and the CUDA context (about 1 GB), and take for granted that a fused attention
kernel keeps no T x T matrix. Time is FLOPs over an assumed sustained rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import ReportOptions, table
from models.adapt import apply_adaptation
from models.adaptation import AdaptConfig
from models.config import ModelConfig
from models.eomt import EoMT
from shards.program import run_program
from shards.settings import parse_options

MODES = ("full", "last-4", "lora", "queries+heads", "queries", "heads")
"""Not outlier_head, which reads claims under autocast, and the meta device has none."""
ADAM_BYTES = 16
"""Per trainable parameter in float32: weight, gradient and AdamW's two moments."""


@dataclass(frozen=True, kw_only=True)
class CostOptions(ReportOptions):
    """Compute what one image costs in each mode of `adapt.mode`."""

    sizes: tuple[str, ...] = ("base", "large")
    """Model sizes."""
    image_size: int = 1024
    """Side of the square crop in pixels."""
    batch_size: int = 16
    """Global batch, for the time of a step."""
    tflops: tuple[float, ...] = (25.0, 120.0, 400.0)
    """Sustained bf16 rates in TFLOP/s for the times; about 40 % of the peak of an RTX 3090, an A100 and an
    H100."""
    masked: bool = False
    """With masked attention and a prediction before every joint block, as when training from DINOv2."""


class Cost(NamedTuple):
    """Cost of one image in one mode."""

    trainable: int
    total: int
    step: float
    """FLOPs of forward and backward."""
    activations: int
    """Bytes that autograd keeps between them."""


def main(arguments: Sequence[str]) -> None:
    """Compute, and print a report in Markdown."""
    options: CostOptions = parse_options(CostOptions, arguments, program="benchmarks.cost")
    lines = [
        f"torch {torch.__version__}, meta device: nothing was run. Crops of {options.image_size}², bf16; "
        f"{'with' if options.masked else 'without'} masked attention. Seconds per step of "
        f"{options.batch_size} images, model alone, at sustained rates.",
    ]
    rows = []
    for size in options.sizes:
        costs = {mode: compute_cost(size, AdaptConfig(mode=mode), options) for mode in MODES}
        for mode, cost in costs.items():
            state_bytes = ADAM_BYTES * cost.trainable + 4 * (cost.total - cost.trainable)
            row = [size, mode, f"{cost.trainable / 1e6:.1f} M ({cost.trainable / cost.total:.1%})"]
            row += [f"{cost.step / 1e12:.2f}", f"{costs['full'].step / cost.step:.1f}"]
            row += [f"{cost.activations / 1e9:.2f}", f"{state_bytes / 1e9:.1f}"]
            tera = options.batch_size * cost.step / 1e12
            rows.append(row + [f"{tera / rate:.2f}" for rate in options.tflops])
    header = "model | adapt.mode | trains | TFLOP/image | saves | activations, GB/image | state, GB"
    header += "".join(f" | {rate:g} TFLOP/s" for rate in options.tflops)
    options.publish("Cost of a fine-tuning step, computed", [*lines, *table(header, rows, text_columns=2)])


def compute_cost(size: str, adapt: AdaptConfig, options: CostOptions) -> Cost:
    """Trace one image forward and backward."""
    side = (options.image_size, options.image_size)
    with torch.device("meta"):
        model = EoMT(ModelConfig(size=size, image_size=side))
        image = torch.empty(1, 3, *side, dtype=torch.uint8)
        unmasked = torch.empty(model.num_blocks, 1, model.num_queries, dtype=torch.bool)
        count = apply_adaptation(model, adapt)
    model.to(torch.bfloat16)  # stands for autocast, which the meta device lacks
    model.backbone.patch_embed.register_forward_pre_hook(lambda _, inputs: inputs[0].bfloat16())
    kept = _Kept(model)
    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(kept.add, lambda tensor: tensor):
            prediction = model(image, unmasked if options.masked else None)
            means = [t.mean() for t in (*prediction.mask_logits, *prediction.class_logits)]
        torch.stack(means).sum().backward()
    return Cost(count.trainable, count.total, counter.get_total_flops(), kept.num_bytes)


class _Kept:
    """Sums the storages that autograd keeps, each once, without parameters and attention matrices."""

    def __init__(self, model: EoMT) -> None:
        self.num_bytes = 0
        self._storages = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
        self._seen = {storage._cdata for storage in self._storages}

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        is_attention = tensor.ndim >= 3 and tensor.shape[-2] == tensor.shape[-1] > 1024
        if storage._cdata not in self._seen and not is_attention:
            self._seen.add(storage._cdata)
            self._storages.append(storage)  # keeps the address from being used again
            self.num_bytes += storage.nbytes()
        return tensor


if __name__ == "__main__":
    run_program(main)
