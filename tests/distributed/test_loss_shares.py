"""Terms are shares of a step: two processes x 2 micro-batches, one x 4, and one batch of 4 are the same step.

`run_rank` is one of the two processes. The second one never sees an outlier pixel, and
its last image is void altogether: a term that left a parameter out of the graph would hang or fail there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.eomt import Prediction
from shards.batch import Batch
from shards.schema import OUTLIER_ID, VOID_ID
from tests.support.forked import run_ranks
from tests.trainer.losses import test_losses as losses
from trainer.losses.loss import build_loss, weighted_sum
from trainer.losses.options import LossConfig
from trainer.losses.targets import StepTotals, count_totals
from trainer.randomness import sample_generators

pytestmark = pytest.mark.slow


class TinyModel(nn.Module):
    """Masks and classes that depend on the image; two depths."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.masks = nn.Parameter(2 * torch.randn(losses.Q, 8, 8, generator=generator))
        self.classes = nn.Parameter(3 * torch.randn(losses.Q, columns, generator=generator))

    def forward(self, image: Tensor) -> Prediction:
        tint = image.float().mean(dim=(1, 2, 3)) / 255  # (B,)
        masks = self.masks * (1 + tint)[:, None, None, None]
        classes = self.classes * (1 + tint)[:, None, None]
        return Prediction((masks, -0.5 * masks), (classes, 0.7 * classes))


def make_images() -> list[Batch]:
    """Four images of their own brightness: two with outliers, one without, one void."""
    batch = losses.make_batch()
    batch.label[3] = VOID_ID
    batch.image[:] = torch.tensor([20, 90, 160, 230], dtype=torch.uint8)[:, None, None, None]
    parts = [slice(i, i + 1) for i in range(4)]
    return [Batch(batch.image[part], batch.label[part], batch.keys[part]) for part in parts]


def take_step(config: LossConfig, micro_batches: list[Batch], world_size: int = 1) -> dict[str, Tensor]:
    """Return gradients by parameter and the step's terms, as `trainer.loop` computes them."""
    loss, model = build_loss(config), TinyModel(losses.columns_for(config))
    wrapped = DistributedDataParallel(model) if world_size > 1 else model
    counts = count_totals([batch.label for batch in micro_batches])
    if world_size > 1:
        torch.distributed.all_reduce(counts)
    totals = StepTotals(*counts.tolist())
    sums = torch.zeros(len(config.weights))
    for i, batch in enumerate(micro_batches):
        last = i == len(micro_batches) - 1
        waits = isinstance(wrapped, DistributedDataParallel) and not last
        with wrapped.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            terms = loss(wrapped(batch.image), batch, totals, sample_generators(0, 0, batch.keys, "cpu"))
            (weighted_sum(terms, config.weights) * world_size).backward()
        sums += torch.stack([terms[name].detach() for name in config.weights])
    if world_size > 1:
        torch.distributed.all_reduce(sums)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**gradients, **{f"term {name}": value for name, value in zip(config.weights, sums, strict=True)}}


def run_rank(arguments: Sequence[str]) -> None:
    """Take this process's half of every step, two images one by one; the first one writes the given file."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    own = make_images()[2 * rank : 2 * rank + 2]
    assert any(bool((batch.label == OUTLIER_ID).any()) for batch in own) is (rank == 0)
    steps = {name: take_step(config, own, world_size=2) for name, config in losses.MIXTURES.items()}
    if rank == 0:
        torch.save(steps, arguments[0])
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def steps_of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    out = tmp_path_factory.mktemp("ranks") / "steps.pt"
    run_ranks(run_rank, [str(out)], out.parent, 2, patience_s=120)
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("name", losses.MIXTURES)
def test_every_cut_of_a_step_is_the_same_step(name: str, steps_of_two: dict[str, dict[str, Tensor]]) -> None:
    """Tolerance: float32 sums in another order, of gradients up to 1 in size."""
    images = make_images()
    image, label, keys = zip(*((b.image, b.label, b.keys[0]) for b in images), strict=True)
    whole = take_step(losses.MIXTURES[name], [Batch(torch.cat(image), torch.cat(label), keys)])
    accumulated = take_step(losses.MIXTURES[name], images)
    assert {"masks", "classes", "term mask", "term dice", "term class"} <= whole.keys()
    assert all(bool(value.abs().sum() > 0) for value in whole.values())
    for part, expected in whole.items():
        torch.testing.assert_close(accumulated[part], expected, atol=2e-6, rtol=1e-5, msg=part)
        torch.testing.assert_close(steps_of_two[name][part], expected, atol=2e-6, rtol=1e-5, msg=part)
