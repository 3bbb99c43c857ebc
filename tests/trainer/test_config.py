"""Settings of a run that are refused, each with a text that names the setting and what is allowed."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from models.adaptation import AdaptConfig
from models.config import ModelConfig, OutlierHeadConfig
from shards.config import StreamConfig
from shards.errors import InputError
from shards.settings import load_config
from tests.support.refused import refused
from trainer.config import FinetuneConfig, TrackingConfig, ValidationConfig
from trainer.losses.classification import LogitNorm
from trainer.losses.options import LossConfig, LossOptions, MaskOptions
from trainer.losses.outlier import Mask2Anomaly, Rba
from trainer.sections import EmaConfig, OptimConfig, ScheduleConfig

CHOSEN = ValidationConfig(shards=("val",), select="miou")
ALONE = {"name": "likelihood_ratio"}
PRESET = {"preset": "eomt", "head_warmup": 0.1}
BASE = {"mask": 1.0, "dice": 1.0, "class": 1.0}
NO_TERM = "is no term of this loss; exactly one weight for each of mask, dice, class is"
HEAD, RATIO = AdaptConfig(mode="outlier_head"), LossConfig(name="likelihood_ratio")
WITH_HEAD = ModelConfig(outlier_head=OutlierHeadConfig(width=8))
UNREAD = LossOptions(rba=Rba(preset="code"))


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (EmaConfig, {"decay": 1.0}, "ema.decay must be in [0, 1), got 1.0"),
        (OptimConfig, {"lr": 1e38}, "optim.lr must be above 0 and at most 100, got 1e+38"),
        (OptimConfig, {"lr": math.nan}, "optim.lr must be above 0 and at most 100, got nan"),
        (OptimConfig, {"weight_decay": math.inf}, "optim.weight_decay must be in [0, 100], got inf"),
        (StreamConfig, {"workers": 100000}, "data.workers: got 100000; 0..256 are allowed"),
        (StreamConfig, {"batch_size": 10**9}, "data.batch_size: got 1000000000; 1..4096 are allowed"),
        (StreamConfig, {"crop": (0, 64)}, "data.crop: got [0, 64]; height and width of at least 1 are"),
        (OptimConfig, {"layer_decay": 1.5}, "optim.layer_decay must be in (0, 1], got 1.5"),
        (OptimConfig, {"weight_decay": -1.0}, "optim.weight_decay must be in [0, 100], got -1.0"),
        (OptimConfig, {"lr_batch": 0}, "optim.lr_batch must be at least 1, got 0"),
        (ScheduleConfig, {"head_warmup": 1.0}, "schedule.head_warmup must be in [0, 1), got 1.0"),
        (ScheduleConfig, {"backbone_warmup": -0.1}, "schedule.backbone_warmup must be in [0, 1), got -0.1"),
        (ScheduleConfig, {"head_warmup": 0.6, "backbone_warmup": 0.6}, "must be at most 1, got 0.6 + 0.6"),
        (ScheduleConfig, {"poly_power": 0.0}, "schedule.poly_power must be above 0, got 0.0"),
        (ScheduleConfig, PRESET, "schedule.head_warmup: got 0.1, but schedule.preset eomt fixes it; leave o"),
        (TrackingConfig, {"probes": -1}, "tracking.probes: got -1; 0 or more are needed"),
        (ValidationConfig, {"scores": ("RBA",)}, "validation.scores: unknown score 'RBA'; known scores: MSP"),
        (ValidationConfig, {"limit": -1}, "validation.limit must be 0 (all) or more, got -1"),
        (ValidationConfig, {"select": "miou"}, "'miou' is not measured; measured: nothing, as validation.sh"),
        (ValidationConfig, {"select": "ap/EAM", "pasted": "v"}, "measured: ap/MSP, fpr95/MSP, ap/RbA, fpr95"),
        (ValidationConfig, {"patience": 2}, "validation.patience: needs validation.select, the metric it"),
        (ValidationConfig, {"patience": -1}, "validation.patience must be 0 (never) or more, got -1"),
        (MaskOptions, {"num_points": 0}, "loss.options.mask.num_points must be at least 1, got 0"),
        (MaskOptions, {"no_object_weight": 0.0}, "no_object_weight must be in (0, 1], got 0"),
        (LogitNorm, {"temperature": 0.0}, "loss.options.logit_norm.temperature must be above 0, got 0"),
        (Rba, {"layers": -1}, "loss.options.rba.layers must be 0 (all) or more, got -1"),
        (Mask2Anomaly, {"margin": 0.0}, "loss.options.mask2anomaly.margin must be in (0, 1], got 0.0"),
        (Mask2Anomaly, {"margin": 1.5}, "loss.options.mask2anomaly.margin must be in (0, 1], got 1.5"),
        (LossConfig, {"area_exponent": 1.5}, "loss.area_exponent must be in [0, 1], got 1.5"),
        (LossConfig, {"area_exponent": 0.5, "outlier": ("uno",)}, "loss.area_exponent: no outlier term with"),
        (LossConfig, {"name": "focal"}, "loss.name: unknown 'focal'; known: mask, likelihood_ratio"),
        (LossConfig, {"classification": "ce"}, "loss.classification: unknown 'ce'; known: cross_entropy, lo"),
        (LossConfig, {"outlier": ("rbaa",)}, "unknown 'rbaa'; known: rba, energy, mask2anomaly, class_claim"),
        (
            LossConfig,
            ALONE | {"outlier": ("rba",)},
            "stands alone, as nothing else trains; got loss.outlier",
        ),
        (LossConfig, ALONE | {"classification": "logit_norm"}, "got loss.outlier none, classification logit"),
        (
            FinetuneConfig,
            {"validation": CHOSEN},
            "validation.select: loop.eval_every is 0, so that nothing is",
        ),
        (FinetuneConfig, {"adapt": HEAD}, "adapt.mode: outlier_head goes with loss.name likelihood_r"),
        (FinetuneConfig, {"loss": RATIO}, "got adapt.mode full, loss.name likelihood_ratio"),
        (FinetuneConfig, {"adapt": HEAD, "loss": RATIO}, "schedule.masked_attention never is needed"),
        (FinetuneConfig, {"model": WITH_HEAD}, "model.outlier_head: is for adapt.mode outlier_head, not"),
        (LossConfig, {"outlier": ("rba", "rba")}, "loss.outlier: got rba, rba; each term at most once"),
        (LossConfig, {"options": UNREAD}, "loss.options.rba: nothing here reads it; this loss consists of m"),
        (LossConfig, {"weights": {"mask": 1.0, "dice": 1.0}}, "loss.weights: class is missing; exactly one"),
        (LossConfig, {"outlier": ("uno",), "weights": {**BASE, "uno": 1.0}}, f"loss.weights: uno {NO_TERM}"),
        (LossConfig, {"weights": {**BASE, "rba": 1.0}}, f"loss.weights: rba {NO_TERM}"),
        (LossConfig, {"weights": {**BASE, "class": -1.0}}, "loss.weights.class must be 0 or more, got"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_impossible_settings_are_refused(config: type, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        config(**settings)


RECIPE = """
model: {image_size: [64, 32]}
paste: {bank: b, probability: 0.5}
loss: {outlier: [rba], options: {rba: {preset: code}}, weights: {mask: 5, dice: 5, class: 2, rba: 1}}
optim: {lr: 1.0e-2}
"""


def load(path: Path, *words: str, text: str = RECIPE) -> FinetuneConfig:
    (path / "c.yaml").write_text(text)
    return load_config(FinetuneConfig, [str(path / "c.yaml"), *words], program="jobs.finetune")


@pytest.mark.parametrize(
    ("text", "words", "size"),
    [
        ("seed: 1", "", (1024, 1024)),
        ("seed: 1", "--data.crop 96 64", (96, 64)),
        ("seed: 1", "--model.image_size 96 64", (96, 64)),
        ("data: {crop: [64, 32]}", "", (64, 32)),
        ("data: {crop: [64, 32]}", "--model.weights w", (64, 32)),
        ("data: {crop: [64, 32]}", "--data.crop none --model.image_size 32 32", (32, 32)),
        ("seed: 1", "--model.weights w", (0, 0)),  # which the weights will tell
    ],
)
def test_crop_and_image_size_follow_each_other(
    text: str, words: str, size: tuple[int, int], tmp_path: Path
) -> None:
    config = load(tmp_path, *words.split(), text=text)
    assert (config.data.crop, config.model.image_size) == (size, size)


def test_two_sizes_that_differ_are_refused(tmp_path: Path) -> None:
    with refused(r"data.crop \[96, 64\] and model.image_size \[64, 32\] differ; .*leave one of them out"):
        load(tmp_path, "--data.crop", "96", "64")


def test_a_setting_of_the_file_is_taken_back(tmp_path: Path) -> None:
    with refused("loss.options.rba: nothing here reads it.*, and `--SETTING none` takes one of the file b"):
        load(tmp_path, "--loss.outlier", "none")
    back = ("--loss.outlier", "none", "--loss.options.rba.preset", "null")
    config = load(tmp_path, *back, "--loss.weights.rba", "none", "--optim.lr", "None")
    assert (config.loss.outlier, config.optim.lr) == ((), 1e-4)
    assert config.loss.weights == {"mask": 5.0, "dice": 5.0, "class": 2.0}
    assert load(tmp_path, *back, "--loss.weights", "none").loss.weights == {}
    assert load(tmp_path, text="optim: {lr: null}\nloss: null").optim.lr == 1e-4
    assert load(tmp_path, "--model.outlier_class", "none").model.outlier_class == "none"  # a value of its own
