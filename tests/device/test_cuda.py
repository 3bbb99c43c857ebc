"""What only a GPU shows. Left out, every one, where there is none."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import jobs.finetune
import trainer.losses.loss
from jobs.work.evaluate import evaluate
from models.adapt import add_adapters
from models.adaptation import LoraSettings
from models.config import ModelConfig
from models.eomt import EoMT
from shards.errors import InputError
from shards.settings import read_config
from tests.support.evaluation import options_for, write_val_shards
from tests.trainer.losses.test_losses import MIXTURES, columns_for, make_batch, make_prediction
from tests.trainer.small_run import (  # noqa: F401
    _fresh_accelerator,
    assert_close,
    assert_equal,
    forget_after,
    weights,
    with_paste,
)
from tests.trainer.small_run import train as train_run
from trainer.checkpoint import TrainState
from trainer.config import FinetuneConfig
from trainer.loop import Run, train
from trainer.losses.loss import build_loss, weighted_sum
from trainer.losses.targets import StepTotals, count_totals
from trainer.optim import sample_generators

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _all_of_the_memory() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0)


def make_model(**settings: object) -> EoMT:
    torch.manual_seed(0)
    return EoMT(ModelConfig(size="tiny", image_size=(64, 64), num_queries=7, **settings))  # type: ignore[arg-type]


def draw_input() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    return image, torch.rand(2, 2, 7, generator=generator) > 0.5


def run_backward(model: EoMT, device: torch.device) -> list[Tensor]:
    image, unmasked = (tensor.to(device) for tensor in draw_input())
    prediction = model(image, unmasked)
    outputs = [*prediction.mask_logits, *prediction.class_logits]
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    found = [tensor.detach().cpu() for tensor in (*outputs, *gradients)]
    model.zero_grad(set_to_none=True)
    return found


def test_a_model_answers_and_learns_as_on_the_cpu() -> None:
    model = make_model()
    expected = run_backward(model, torch.device("cpu"))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = run_backward(model.to(CUDA), CUDA)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("adapted", [False, True])
def test_recomputed_blocks_give_the_same_gradients_in_less_memory(adapted: bool) -> None:
    peaks, results = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = EoMT(ModelConfig(size="small", image_size=(224, 224), num_queries=20)).to(CUDA)
        if adapted:
            add_adapters(model, LoraSettings(dropout=0.2))
            model.to(CUDA)
        model.recompute = recompute
        image = torch.full((2, 3, 224, 224), 90, dtype=torch.uint8, device=CUDA)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16):
            torch.manual_seed(3)
            prediction = model(image, torch.zeros(3, 2, 20, dtype=torch.bool, device=CUDA))
            total = torch.stack([masks.float().square().mean() for masks in prediction.mask_logits]).sum()
        total.backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        results.append([p.grad for p in model.parameters() if p.grad is not None])
        del prediction, total
    assert peaks[1] < 0.8 * peaks[0]
    for kept, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, kept, atol=1e-5, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["mixed", "void", "outlier", "inlier"])
def test_every_loss_is_finite_and_connected(kind: str, dtype: torch.dtype) -> None:
    batch = make_batch(kind).to(CUDA)
    totals = StepTotals(*count_totals([batch.label]).tolist())
    for name, config in MIXTURES.items():
        prediction = make_prediction(dtype=dtype, columns=columns_for(config))
        moved = [tuple(t.detach().to(CUDA).requires_grad_() for t in part) for part in prediction[:2]]
        prediction = type(prediction)(*moved)
        generators = sample_generators(0, 0, batch.keys, CUDA)
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            terms = build_loss(config)(prediction, batch, totals, generators)
        total = weighted_sum(terms, config.weights)
        assert total.isfinite(), name
        total.backward()
        for tensor in (*moved[0], *moved[1]):
            assert tensor.grad is not None, name
            assert tensor.grad.isfinite().all(), name


def test_a_loss_is_the_same_as_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same points: a GPU's generators draw others."""
    draw = trainer.losses.loss.draw_points

    def draw_on_the_cpu(depths, counts, number, generators, device):  # type: ignore[no-untyped-def]
        seeds = [generator.initial_seed() for generator in generators]
        own = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = draw(depths, counts, number, own, torch.device("cpu"))
        parts = (getattr(drawn, field.name).to(device) for field in dataclasses.fields(drawn))
        return type(drawn)(*parts)

    monkeypatch.setattr(trainer.losses.loss, "draw_points", draw_on_the_cpu)
    for name, config in MIXTURES.items():
        found: list[dict[str, float]] = []
        for device in (torch.device("cpu"), CUDA):
            batch = make_batch().to(device)
            given = make_prediction(columns=columns_for(config))
            prediction = type(given)(*(tuple(t.detach().to(device) for t in part) for part in given[:2]))
            totals = StepTotals(*count_totals([batch.label]).tolist())
            generators = sample_generators(0, 0, batch.keys, device)
            terms = build_loss(config)(prediction, batch, totals, generators)
            found.append({term: float(value) for term, value in terms.items()})
        assert found[1] == pytest.approx(found[0], rel=1e-3), name


@pytest.fixture(name="runs")
def _runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    found: list[Run] = []

    def train_and_keep(run: Run, config: object) -> TrainState:
        found.append(run)
        return train(run, config)  # type: ignore[arg-type]

    monkeypatch.setattr(jobs.finetune, "train", train_and_keep)
    return found


def test_half_precision_scales_its_loss_and_resumes_its_scale(
    tmp_path: Path, scene_shards: str, cutout_shard: str, runs: list[Run]
) -> None:
    """Eight steps, nowhere near the 2000 that double the scale; an overflow halves it."""
    extra = ("--loop.precision", "fp16", *with_paste(cutout_shard), "--loop.steps", "8")
    assert train_run(tmp_path, scene_shards, *extra).step == 8
    scaler = runs[0].accelerator.scaler
    assert scaler is not None
    scale = scaler.get_scale()
    assert 1 <= scale <= 65536
    saved = json.loads((tmp_path / "run/checkpoints/step-0000008/training.json").read_text())
    assert saved["loss_scale"]["scale"] == scale
    assert all(value.isfinite().all() for value in weights(tmp_path, 8).values())
    forget_after(6, tmp_path / "run")
    assert train_run(tmp_path, scene_shards, *extra, resume=True).step == 8
    assert runs[1].accelerator.scaler is not None
    assert runs[1].accelerator.scaler.get_scale() == scale


def test_an_overflow_in_half_precision_halves_the_scale_and_skips_the_step(
    tmp_path: Path, scene_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, object] = {}

    def poison(run: Run, loop: object) -> TrainState:
        found["before"] = {name: value.cpu().clone() for name, value in run.model.state_dict().items()}
        parameter = next(p for p in run.model.parameters() if p.requires_grad)
        parameter.register_hook(lambda gradient: gradient * float("inf"))
        state = train(run, loop)  # type: ignore[arg-type]
        assert run.accelerator.scaler is not None
        found["scale"] = run.accelerator.scaler.get_scale()
        return state

    monkeypatch.setattr(jobs.finetune, "train", poison)
    extra = ("--loop.precision", "fp16", "--loop.steps", "1")
    assert train_run(tmp_path, scene_shards, *extra).step == 1
    assert found["scale"] == 32768
    before = found["before"]
    assert isinstance(before, dict)
    assert_equal(weights(tmp_path, 1), before)


def limit_memory(size: float) -> None:
    """Leave this process so many bytes of the GPU."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, size / total))


def test_a_micro_batch_is_halved_until_it_fits_the_gpu(
    tmp_path: Path, scene_shards: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    extra = (
        "--model.size", "small", "--data.crop", "512", "512", "--model.image_size", "512", "512",
        "--loop.steps", "2", "--data.batch_size", "16",
    )  # fmt: skip
    torch.cuda.reset_peak_memory_stats()
    train_run(tmp_path, scene_shards, *extra, "--name", "whole")
    limit_memory(0.6 * torch.cuda.max_memory_reserved())
    assert train_run(tmp_path, scene_shards, *extra, "--loop.fit_memory", "True").step == 2
    assert "out of memory with 16 images per micro-batch, trying 8" in caplog.text
    found = read_config(FinetuneConfig, tmp_path / "run" / "config.yaml")
    assert found.data.batch_size * found.loop.grad_accum == 16
    assert found.data.batch_size in (4, 8)


def test_memory_for_no_image_is_an_error_in_one_line(tmp_path: Path, scene_shards: str) -> None:
    extra = ("--model.size", "small", "--data.crop", "512", "512", "--model.image_size", "512", "512")
    limit_memory(300e6)
    with pytest.raises(InputError, match="the memory is too small for one image"):
        train_run(tmp_path, scene_shards, *extra, "--loop.fit_memory", "True")


def test_a_run_resumes_on_a_gpu(tmp_path: Path, scene_shards: str, cutout_shard: str) -> None:
    """To rounding: sums on a GPU have no fixed order."""
    extra = (*with_paste(cutout_shard), "--loop.precision", "bf16")
    for name in ("a", "b"):
        train_run(tmp_path / name, scene_shards, *extra)
    forget_after(2, tmp_path / "b" / "run")
    train_run(tmp_path / "b", scene_shards, *extra, resume=True)
    assert_close(weights(tmp_path / "b"), weights(tmp_path / "a"), atol=2e-3)


@pytest.mark.slow
def test_a_compiled_run_learns(tmp_path: Path, scene_shards: str) -> None:
    for name, compiled in (("eager", "False"), ("compiled", "True")):
        train_run(tmp_path / name, scene_shards, "--loop.compile", compiled)
    assert_close(weights(tmp_path / "compiled"), weights(tmp_path / "eager"), atol=2e-3)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_an_evaluation_finds_what_it_finds_on_the_cpu(tmp_path: Path, precision: str) -> None:
    options = options_for(tmp_path, cityscapes=write_val_shards(tmp_path / "val"), precision=precision)
    expected = evaluate(options)
    actual = evaluate(dataclasses.replace(options, device="cuda", out=tmp_path / "cuda"))
    tolerance = 1e-3 if precision == "float32" else 2e-2
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        assert (one.dataset, one.score) == (other.dataset, other.score)
        for name in ("ap", "fpr95", "miou"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=tolerance), (one, name)
