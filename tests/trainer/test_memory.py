"""Memory: recomputed activations change no gradient, and a micro-batch that is halved changes no step."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from timm.layers import DropPath
from torch.autograd.graph import saved_tensors_hooks

from models.eomt import EoMT, Prediction
from shards.schema import NUM_CLASSES, OUTLIER_ID, VOID_ID
from shards.settings import read_config
from tests.models.tiny import over_both_trunks
from tests.support.refused import refused
from tests.trainer.small_run import assert_equal, forget_after, make_model, read_scalars, train, weights
from trainer.config import FinetuneConfig
from trainer.memory import fit_micro_batch, fullest_batch
from trainer.run_log import record_profile


def backward(model: EoMT, *, recompute: bool, masked: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Return the gradients of a step, and the bytes that were kept for the backward pass."""
    model.recompute = recompute
    model.zero_grad()
    image = torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32).remainder(251).to(torch.uint8)
    unmasked = torch.rand(2, 2, 5, generator=torch.manual_seed(3)) > 0.5 if masked else None
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(5)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        prediction = model(image, unmasked)
    loss = sum(m.square().mean() for m in prediction.mask_logits)
    (loss + prediction.class_logits[-1].square().mean()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, kept


@pytest.mark.parametrize("mode", ["full", "lora", "last-2"])
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
@over_both_trunks
def test_recomputed_activations_give_the_same_gradients(size: str, mode: str, masked: bool) -> None:
    """To the bit, with stochastic depth and dropout of the adapters, which have to draw the same again."""
    model = make_model(mode, size, dropout=0.3).train()
    for block in model.backbone.blocks:
        block.drop_path1 = DropPath(0.5)
    expected, kept = backward(model, recompute=False, masked=masked)
    actual, kept_less = backward(model, recompute=True, masked=masked)
    assert_equal(actual, expected)
    other, _ = backward(model.eval(), recompute=True, masked=masked)
    assert mode == "last-2" or not torch.equal(other["queries.weight"], expected["queries.weight"])
    assert kept_less < (0.75 if mode == "last-2" else 0.5) * kept


def test_a_run_that_recomputes_learns_the_same(tmp_path: Path, scene_shards: str, finished: Path) -> None:
    train(tmp_path, scene_shards, "--loop.activation_checkpointing", "True")
    assert_equal(weights(tmp_path), weights(finished))


@pytest.mark.parametrize(
    ("size", "most", "tried"), [(8, 2, [8, 4, 2]), (6, 2, [6, 3, 1]), (5, 5, [5]), (7, 6, [7, 1]), (4, 0, [])]
)
def test_a_micro_batch_is_halved_until_it_fits(size: int, most: int, tried: list[int]) -> None:
    asked = []

    def attempt(count: int) -> None:
        asked.append(count)
        torch.rand(3)
        if count > most:
            raise torch.OutOfMemoryError("too much")

    torch.manual_seed(1)
    if not most:
        with refused("data.batch_size: the memory is too small for one image; take a smaller model.image_s"):
            fit_micro_batch(Accelerator(cpu=True), size, attempt)
        return
    assert fit_micro_batch(Accelerator(cpu=True), size, attempt) == tried[-1]
    assert asked == tried
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(1)))


def test_the_trial_batch_holds_everything_in_every_image() -> None:
    batch = fullest_batch(2, (32, 48))
    assert len(batch) == 2
    for label in batch.label:
        assert label.unique().tolist() == [*range(NUM_CLASSES), OUTLIER_ID, VOID_ID]


@pytest.fixture(name="small_memory")
def _small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes one image at a time."""
    forward = EoMT.forward

    def limited(self: EoMT, image: torch.Tensor, *arguments: object) -> Prediction:
        if len(image) > 1:
            raise torch.OutOfMemoryError("tried to allocate 2 images")
        return forward(self, image, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(EoMT, "forward", limited)


OPTIONS = ("--adapt.mode", "lora", "--adapt.lora.dropout", "0.2")


@pytest.mark.usefixtures("small_memory")
def test_a_halved_run_is_the_one_that_was_set_so_and_resumes_so(
    tmp_path: Path, scene_shards: str, caplog: pytest.LogCaptureFixture
) -> None:
    by_hand = ("--data.batch_size", "1", "--loop.grad_accum", "2")
    train(tmp_path / "a", scene_shards, *OPTIONS, *by_hand)
    fitting = (*OPTIONS, "--loop.fit_memory", "True")
    train(tmp_path / "b", scene_shards, *fitting)
    assert "out of memory with 2 images per micro-batch, trying 1" in caplog.text
    found = read_config(FinetuneConfig, tmp_path / "b" / "run" / "config.yaml")
    assert (found.data.batch_size, found.loop.grad_accum) == (1, 2)
    assert_equal(weights(tmp_path / "b"), weights(tmp_path / "a"))
    forget_after(2, tmp_path / "b" / "run")
    caplog.clear()
    train(tmp_path / "b", scene_shards, *fitting, resume=True)
    assert "out of memory" not in caplog.text  # it began with what was found
    assert_equal(weights(tmp_path / "b"), weights(tmp_path / "a"))


@pytest.mark.usefixtures("small_memory")
def test_without_the_option_memory_that_runs_out_stays_an_error(tmp_path: Path, scene_shards: str) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        train(tmp_path, scene_shards)


def test_a_trace_of_some_steps_and_the_peak_of_memory(tmp_path: Path, scene_shards: str) -> None:
    train(tmp_path, scene_shards, "--loop.profile", "2", "--loop.steps", "6", "--adapt.mode", "heads")
    folder = tmp_path / "run" / "profile"
    assert sorted(p.name for p in folder.iterdir()) == ["operators.txt", "steps-4-5.pt.trace.json.gz"]
    events = json.loads(gzip.decompress((folder / "steps-4-5.pt.trace.json.gz").read_bytes()))["traceEvents"]
    steps = {event["name"] for event in events if event["name"].startswith("ProfilerStep")}
    assert steps == {"ProfilerStep#3", "ProfilerStep#4"}  # counted from 0
    assert any(event["name"] == "aten::scaled_dot_product_attention" for event in events)
    assert "aten::addmm" in (folder / "operators.txt").read_text()
    peaks = [value for _, value in read_scalars(tmp_path / "run")["memory/peak_rss_gib"]]
    assert 0.1 < peaks[0] <= peaks[-1] < 64


def test_a_trace_may_fail_to_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "profile").write_text("in the way")
    with record_profile(tmp_path, 1) as after_step:
        for _ in range(5):
            after_step()
    assert "the trace cannot be written: [Errno 17] File exists" in caplog.text
