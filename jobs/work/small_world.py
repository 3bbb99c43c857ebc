"""The study on the synthetic world: a tiny EoMT from scratch, in minutes on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.work.steps import run_job
from jobs.work.study import CONFIGS, Study
from shards.cores import count_cores

RECIPE = CONFIGS / "demo.yaml"
BATCH = 4
"""Images of a step of the baseline, over all its ranks."""


@dataclass(frozen=True)
class Scale:
    """Size of the world and of the runs."""

    world: tuple[str, ...] = ()
    """Options of `jobs.synthesize`."""
    baseline: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the baseline instead of those in RECIPE."""
    finetuning: Mapping[str, Any] = field(default_factory=lambda: {"loop.steps": 250})
    """Settings of the fine-tunings instead of those in RECIPE."""
    ranks: int = 2
    """Processes that train the baseline, where there are as many cores."""


_FINETUNING: Mapping[str, Any] = {
    "optim.lr": 3.0e-4,
    "schedule.backbone_warmup": 0.1,
    "loop.log_every": 50,
}
SHORT = Scale(finetuning={"loop.steps": 150})
"""Fewer steps of the fine-tunings, so that the demo ends after five minutes or so."""
_SMALL = {"data.crop": [64, 64], "model.image_size": [64, 64]}
SMOKE = Scale(
    world=("--height", "64", "--train", "8", "--val", "2", "--coco", "12", "--anomaly_images", "2"),
    baseline={"loop.steps": 4, **_SMALL},
    finetuning={"loop.steps": 2, **_SMALL},
    ranks=1,
)
"""A miniature world and a handful of steps: only shows that the chain holds together."""


def plan_study(out: Path, seed: int, scale: Scale, precision: str = "float32") -> Study:
    """Return the study in the folder `out` on the world that `make_world` draws; its baseline has `seed`."""
    in_precision = {"loop.precision": precision}
    ranks = min(scale.ranks, count_cores())
    return Study(
        out=out.absolute(),
        recipe=RECIPE,
        baseline={"seed": seed, "data.batch_size": BATCH // ranks, **scale.baseline, **in_precision},
        finetuning={**_FINETUNING, **scale.finetuning, **in_precision},
        paste={"paste.probability": 0.7, "paste.max_size": 0.5, "paste.held_out": 0.2},
        evaluation={"precision": precision},
        ranks=ranks,
    )


def make_world(study: Study, seed: int, scale: Scale) -> Path:
    """Draw the world, turn it into shards, and return the folder of its test sets."""
    world = study.out / "world"
    if not world.exists():
        run_job("synthesize", "--out", world, "--seed", seed, *scale.world)
    if not study.cityscapes.exists():
        frames = ("--root", world / "cityscapes", "--out", study.cityscapes, "--samples_per_shard", 16)
        run_job("prepare", "cityscapes", *frames)
    study.prepare_objects(world / "coco")
    return world / "anomaly"
