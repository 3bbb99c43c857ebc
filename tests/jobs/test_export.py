"""What is exported is read by whom it is for, and answers the same."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import peft
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoImageProcessor, EomtForUniversalSegmentation

from eval.calibration import Calibration
from eval.predict.queries import pixel_class_scores
from eval.predict.scores import SCORES
from eval.predict.strips import find_classes
from eval.predict.windows import SlidingPredictor
from jobs.export import main
from models.adapt import apply_adaptation
from models.adaptation import AdaptConfig, LoraSettings
from models.config import ModelConfig
from models.eomt import IMAGENET_MEAN, IMAGENET_STD, EoMT
from models.erfnet import ERFNet
from models.onnx import PictureScorer, noise
from models.segmenter import hash_checkpoint, make_predictor
from models.trunk import SIZES
from models.weights.checkpoint import initialise_model, load_model, open_checkpoint
from shards.files import to_json
from tests.models.tiny import make_model as make_tiny
from tests.models.tiny import over_both_trunks, save
from tests.support.files import contents
from tests.support.forked import run_ranks
from tests.support.refused import refused

IMAGE = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
BATCHES = (IMAGE, IMAGE[:1], torch.cat((IMAGE, IMAGE)))
"""A graph of windows takes any number of them."""

GATED, PLAIN = replace(SIZES["dinov3-tiny"], gated=True), replace(SIZES["tiny"], registers=0)


def make_model(**changes: object) -> EoMT:
    return make_tiny(**{"image_size": (32, 48), "num_queries": 5, "num_blocks": 3, **changes})


def make_shallow(size: str = "tiny", depth: int = 2, **changes: object) -> EoMT:
    """Make a model whose graph is small: queries in the last block alone, and at most one block before."""
    trunk = replace(SIZES[size], depth=depth)
    return make_model(size="", trunk=trunk, num_blocks=1, patch_size=8, **changes)


def finetune_with_lora(folder: Path, base: EoMT | None = None, **changes: object) -> Path:
    """Change adapters, queries and heads of a model that starts from `folder/../base`."""
    base = save(base or make_model(), folder.parent / "base")
    model = initialise_model(ModelConfig(weights=str(base), **changes))  # type: ignore[arg-type]
    apply_adaptation(model, AdaptConfig(mode="lora", lora=LoraSettings(rank=2, alpha=3.0)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return save(model, folder)


def export(checkpoint: Path, to: str, out: Path, *extra: str) -> Path:
    main(["--checkpoint", str(checkpoint), "--to", to, "--out", str(out), *extra])
    return out


def run_onnx(folder: Path, images: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    return session.run(None, {"image": images.numpy()})


@torch.no_grad()
def masks(model: EoMT, image: torch.Tensor = IMAGE) -> torch.Tensor:
    return model.eval()(image).mask_logits[-1]


def test_one_merged_file_needs_nothing_beside_it(tmp_path):
    run = finetune_with_lora(tmp_path / "run", make_model(outlier_class="trained"))
    out = export(run, "safetensors", tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "model.safetensors"]
    alone = tmp_path / "renamed.safetensors"
    (out / "model.safetensors").rename(alone)
    loaded = load_model(alone)
    assert (loaded.config.image_size, loaded.config.num_blocks) == ((32, 48), 3)
    assert loaded.config.outlier_class == "trained"
    assert torch.equal(masks(loaded), masks(load_model(run)))


@pytest.mark.parametrize("to", ["safetensors", "adapter", "huggingface"])
def test_two_processes_export_the_same_bytes(tmp_path, to):
    run = finetune_with_lora(tmp_path / "run")
    words = ["--checkpoint", str(run), "--to", to, "--out", str(tmp_path / "theirs")]
    run_ranks(main, words, tmp_path / "said")
    assert contents(tmp_path / "theirs") == contents(export(run, to, tmp_path / "ours"))


def test_an_adapter_over_its_base_is_the_run(tmp_path, capsys):
    run = finetune_with_lora(tmp_path / "run", image_size=(32, 32))  # positions are resampled
    out = export(run, "adapter", tmp_path / "out")
    assert "LoRA adapter of" in capsys.readouterr().out
    whole, alone = load_model(run).state_dict(), load_model(out).state_dict()
    assert all(torch.equal(alone[name], value) for name, value in whole.items())
    saved = sum(p.stat().st_size for p in out.iterdir())
    assert saved < 0.3 * (run / "model.safetensors").stat().st_size


@over_both_trunks
def test_peft_reads_the_adapter(tmp_path, size):
    run = finetune_with_lora(tmp_path / "run", make_model(size=size))
    out = export(run, "adapter", tmp_path / "out")
    adapted = peft.PeftModel.from_pretrained(load_model(tmp_path / "base"), str(out)).eval()
    # not merged there: two products where we have one, so float32 rounds elsewhere
    torch.testing.assert_close(masks(adapted), masks(load_model(run)), atol=1e-4, rtol=0)


def test_an_adapter_without_its_base_is_refused(tmp_path):
    run, base = finetune_with_lora(tmp_path / "run"), tmp_path / "base"
    out = export(run, "adapter", tmp_path / "out")
    other = make_model()
    torch.nn.init.ones_(other.backbone.norm.bias)
    another = ("--base", str(save(other, tmp_path / "other")))
    for checkpoint, text in (
        (run, r"was not trained on .*: 1 frozen weights differ, such as backbone.norm"),
        (base, "holds no LoRA adapter; the run's adapt.mode was another one"),
    ):
        with refused(text):
            export(checkpoint, "adapter", tmp_path / "new", *another)
    assert not (tmp_path / "new").exists()
    save(other, base)
    with refused("the LoRA adapter was trained on another base than"):
        load_model(out)
    base.rename(tmp_path / "moved")
    with refused(r"a LoRA adapter without its base; .* which is not there"):
        load_model(out)


def test_transformers_reads_the_folder_with_its_preprocessing_and_predicts_the_same(tmp_path):
    model = make_model(image_size=(64, 64))
    out = export(save(model, tmp_path / "run"), "huggingface", tmp_path / "out")
    theirs, report = EomtForUniversalSegmentation.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] - {"criterion.empty_weight"}
    assert not report["unexpected_keys"]
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected, ours = theirs.eval()((image / 255 - mean) / std), model(image)
    torch.testing.assert_close(ours.mask_logits[-1], expected.masks_queries_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.class_logits[-1], expected.class_queries_logits, atol=1e-4, rtol=0)
    assert theirs.config.id2label[13] == "car"
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in load_model(out).state_dict().items())
    frame = torch.cat((image[0], image[1]), dim=2).permute(1, 2, 0).numpy()
    windows = AutoImageProcessor.from_pretrained(out)(frame, return_tensors="pt")["pixel_values"]
    scaled = (image / 255 - mean) / std  # of a frame twice as wide
    torch.testing.assert_close(windows, scaled, atol=1e-4, rtol=0)


def test_a_graph_answers_as_torch_says_what_its_user_has_to_know_and_the_export_one_line(
    tmp_path, capfd, caplog
):
    caplog.set_level(logging.INFO)
    model = make_shallow("dinov3-tiny")  # graphs of learned positions are below
    run = save(model, tmp_path / "run")
    out = export(run, "onnx", tmp_path / "out", "--score", "RbA")
    printed, errors = capfd.readouterr()
    assert printed.count("\n") == 1
    assert "uint8 images of 32x48 to class_scores and score (RbA), described in its metadata" in printed
    assert (errors, caplog.text) == ("", "")
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"])[:2] == ["road", "sidewalk"]
    assert json.loads(facts["image_size"]) == [32, 48]
    assert json.loads(facts["mean"]) == pytest.approx(IMAGENET_MEAN)
    assert json.loads(facts["std"]) == pytest.approx(IMAGENET_STD)
    assert facts["scaling"] == "inside the graph: (image / 255 - mean) / std"
    assert (facts["score"], facts["network"], facts["checkpoint"]) == ("RbA", "EoMT", str(run))
    assert re.fullmatch("[0-9a-f]{64}", facts["sha256"])
    assert [output.name for output in session.get_outputs()] == ["class_scores", "score"]
    for images in BATCHES:
        class_scores, score = session.run(None, {"image": images.numpy()})
        with torch.no_grad():
            prediction = model(images)
            expected = pixel_class_scores(prediction.mask_logits[-1], prediction.class_logits[-1], (32, 48))
        np.testing.assert_allclose(class_scores, expected.numpy(), atol=1e-5)
        np.testing.assert_allclose(score, SCORES["RbA"](expected).numpy(), atol=1e-5)


@pytest.mark.parametrize("score", ["MinDistance", "UNO", "ClassClaimEntropy"])
def test_onnx_has_scores_that_read_queries_too(tmp_path, score):
    model = make_shallow(depth=1, class_head="isomax", outlier_class="trained")  # the score is what differs
    out = export(save(model, tmp_path / "run"), "onnx", tmp_path / "out", "--score", score)
    for images in BATCHES:
        class_scores, value = run_onnx(out, images)
        expected = make_predictor(model, "cpu", scores=(score,))(images)
        np.testing.assert_allclose(class_scores, expected[:, :19].numpy(), atol=1e-5)
        np.testing.assert_allclose(value, expected[:, 19].numpy(), atol=1e-4)


def test_the_baseline_is_exported_too(tmp_path, monkeypatch):
    monkeypatch.setattr("models.erfnet.ERFNet.image_size", (16, 32))
    torch.manual_seed(0)
    torch.save(ERFNet(20).state_dict(), tmp_path / "erfnet.pth")
    out = export(tmp_path / "erfnet.pth", "onnx", tmp_path / "out")
    class_scores, _ = run_onnx(out, IMAGE[:, :, :16, :32])
    assert class_scores.shape == (2, 19, 16, 32)


def answer_in_windows(model: EoMT, images: torch.Tensor, score: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what an evaluation finds: the classes and the score of one picture."""
    predictor = SlidingPredictor(make_predictor(model, "cpu"), model.image_size)
    maps = predictor(images[0].permute(1, 2, 0).numpy())
    return find_classes(maps).numpy(), SCORES[score](maps[None])[0].numpy()


@pytest.mark.parametrize(
    ("picture", "within"),
    [((32, 48), 1e-4), ((32, 90), 1e-4), ((16, 24), 1e-4), ((40, 90), 1e-2)],  # of 4 / 5 pixels round apart
    ids=str,
)
def test_a_module_of_whole_pictures_answers_as_windows_do(picture, within):
    model, images = make_shallow(), noise(1, picture)
    classes, score = answer_in_windows(model, images, "RbA")
    with torch.no_grad():
        answers = PictureScorer(model, "RbA", picture)(images)
    assert (answers[0][0].numpy() == classes).mean() > 0.999
    np.testing.assert_allclose(answers[1][0], score, atol=within)


def test_a_graph_of_whole_pictures_answers_as_windows_do_on_its_own_scale_and_is_timed(tmp_path, capsys):
    model, picture = make_shallow(), (16, 45)  # twice as large it is two windows
    torch.nn.init.normal_(model.class_head.weight, std=0.6)  # surer of classes, so that the score moves
    run = save(model, tmp_path / "run")
    found = Calibration(
        threshold=0.5, score="MSP", protocol="smiyc", smallest=7, risk="pixels", alpha=0.1, delta=0.1, n=40,
        frames=50, missed=0.05, false_alarms=2.0, dataset="Pasted val", model=str(run),
        fingerprint=hash_checkpoint(run), key="",
    )  # fmt: skip
    (tmp_path / "c.json").write_text(to_json(found))
    words = ("--picture", "16", "45", "--calibration", str(tmp_path / "c.json"), "--latency", "3")
    out = export(run, "onnx", tmp_path / "out", *words)
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    facts = session.get_modelmeta().custom_metadata_map
    share = 1 / (1 + np.exp(-0.5))  # of the largest MSP, 1 - 1 / 19
    assert float(facts["threshold"]) == pytest.approx((1 - 1 / 19) * share)
    assert (facts["smallest"], facts["risk"]) == ("7", found.describe())
    assert json.loads(facts["image_size"]) == [16, 45]
    assert facts["output class_map"] == "number of the class of largest score"
    lines = capsys.readouterr().out.splitlines()
    for line, name in zip(lines[1:], ("torch on c", "onnxruntime on cpu"), strict=True):
        assert re.match(rf"{name}.*: p50 [\d.]+ ms, p95 [\d.]+ ms per frame, 3 frames", line)
    with refused("c.json: is of score MSP; got RbA"):
        export(run, "onnx", tmp_path / "new", *words, "--score", "RbA")

    half = export(run, "onnx", tmp_path / "half", *words[:3], "--score", "RbA", "--precision", "fp16")
    images = noise(1, picture)
    for folder, name, within, share in ((out, "MSP", 1e-6, 0.999), (half, "RbA", 2e-2, 0.9)):
        expected, score = answer_in_windows(model, images, name)
        classes, value = run_onnx(folder, images)
        assert (classes.dtype, value.dtype, value.shape) == (np.uint8, np.float32, (1, *picture))
        np.testing.assert_allclose(value[0], score, atol=within, rtol=0)
        assert score.std() > 5 * within
        assert (classes[0] == expected).mean() > share


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({}, "huggingface --picture 32 48", "--picture: is for onnx; --to is huggingface"),
        ({}, "onnx --latency 3", "--latency: times whole pictures; --picture HEIGHT WIDTH says their size"),
        ({}, "onnx --picture 0 9", r"--picture: got \(0, 9\); at least 1"),
        ({}, "onnx --picture 99999 99999", "--picture: says that it has 99999 x 99999 pixels; at most"),
        ({}, "onnx --precision bf16", "--precision: got bf16; --to onnx has float32, fp16"),
        ({"class_head": "isomax"}, "huggingface", "EoMT has a linear class head; .*run has isomax"),
        ({"outlier_class": "trained"}, "huggingface", "EoMT has no outlier class; .*run has one"),
        ({"num_classes": 7}, "huggingface", "has 7 classes, whose names are unknown; the 19 of Cityscapes"),
        (
            {"size": "", "trunk": GATED},
            "huggingface",
            "over DINOv3's gated MLPs transformers' EoMT has another ",
        ),
        ({"size": "", "trunk": PLAIN}, "huggingface", "has DINOv2 with registers or DINOv3; .*, 0 registers"),
        ({}, "onnx --score MinDistance", "--score: .*run has no class distances, which MinDistance"),
        ({}, "onnx --score msp", "--score: unknown score 'msp'; known scores: MSP"),
        (
            {},
            "onnx --base x",
            "--base: only --to adapter, outlier_head, safetensors, huggingface has a base; --to is onnx",
        ),
        ({}, "adapter", "--to adapter: .* did not start from weights; --base names its base"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, settings, options, message):
    run, (to, *extra) = save(make_model(**settings), tmp_path / "run"), options.split()
    with refused(message):
        export(run, to, tmp_path / "out", *extra)
    assert not (tmp_path / "out").exists()


def test_a_foreign_adapter_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    save_file({"base_model.model.a.lora_A.weight": torch.ones(1, 1)}, tmp_path / "adapter_model.safetensors")
    with refused("a LoRA adapter that this suite did not write; its model is unknown"):
        open_checkpoint(tmp_path)
