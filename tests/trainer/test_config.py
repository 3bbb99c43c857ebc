"""Settings of a run that are refused, each with a text that names the setting and what is allowed."""

from __future__ import annotations

import re

import pytest

from shards.errors import InputError
from trainer.ema import EmaConfig
from trainer.losses.classification import LogitNorm
from trainer.losses.mask import MaskOptions
from trainer.losses.outlier import Energy, Mask2Anomaly, Rba
from trainer.optim import OptimConfig
from trainer.schedule import ScheduleConfig
from trainer.tracking import TrackingConfig
from trainer.validation import ValidationConfig


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (EmaConfig, {"decay": 1.0}, "ema.decay must be in [0, 1), got 1.0"),
        (OptimConfig, {"lr": 0.0}, "optim.lr must be above 0, got 0.0"),
        (OptimConfig, {"layer_decay": 1.5}, "optim.layer_decay must be in (0, 1], got 1.5"),
        (OptimConfig, {"weight_decay": -1.0}, "optim.weight_decay must be 0 or more, got -1.0"),
        (OptimConfig, {"lr_batch": 0}, "optim.lr_batch must be at least 1, got 0"),
        (ScheduleConfig, {"head_warmup": 1.0}, "schedule.head_warmup must be in [0, 1), got 1.0"),
        (ScheduleConfig, {"backbone_warmup": -0.1}, "schedule.backbone_warmup must be in [0, 1), got -0.1"),
        (ScheduleConfig, {"head_warmup": 0.6, "backbone_warmup": 0.6}, "must be at most 1, got 0.6 + 0.6"),
        (ScheduleConfig, {"poly_power": 0.0}, "schedule.poly_power must be above 0, got 0.0"),
        (
            ScheduleConfig,
            {"preset": "eomt", "head_warmup": 0.1},
            "schedule.head_warmup: got 0.1, but schedule.preset eomt fixes it; leave one out",
        ),
        (TrackingConfig, {"probes": -1}, "tracking.probes: got -1; 0 or more are needed"),
        (ValidationConfig, {"scores": ("RBA",)}, "validation.scores: unknown score 'RBA'; known scores: MSP"),
        (ValidationConfig, {"limit": -1}, "validation.limit must be 0 (all) or more, got -1"),
        (
            ValidationConfig,
            {"select": "miou"},
            "validation.select: 'miou' is not measured; measured: nothing, as validation.shards and",
        ),
        (
            ValidationConfig,
            {"select": "ap/EAM", "pasted": "val"},
            "measured: ap/MSP, fpr95/MSP, ap/RbA, fpr95/RbA",
        ),
        (ValidationConfig, {"patience": 2}, "validation.patience: needs validation.select, the metric it"),
        (ValidationConfig, {"patience": -1}, "validation.patience must be 0 (never) or more, got -1"),
        (MaskOptions, {"num_points": 0}, "loss.options.mask.num_points must be at least 1, got 0"),
        (MaskOptions, {"no_object_weight": 0.0}, "no_object_weight must be in (0, 1], got 0"),
        (LogitNorm, {"temperature": 0.0}, "loss.options.logit_norm.temperature must be above 0, got 0"),
        (Rba, {"layers": -1}, "loss.options.rba.layers must be 0 (all) or more, got -1"),
        (Energy, {"layers": -2}, "loss.options.energy.layers must be 0 (all) or more, got -2"),
        (Mask2Anomaly, {"layers": -1}, "loss.options.mask2anomaly.layers must be 0 (all) or more"),
        (Mask2Anomaly, {"margin": 0.0}, "loss.options.mask2anomaly.margin must be in (0, 1], got 0.0"),
        (Mask2Anomaly, {"margin": 1.5}, "loss.options.mask2anomaly.margin must be in (0, 1], got 1.5"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_impossible_settings_are_refused(config: type, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        config(**settings)
