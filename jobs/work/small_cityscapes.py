"""The study on real data at small size: an EoMT-S on Cityscapes at 512 x 256, and ERFNet beside it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.work.steps import list_words, run_job
from jobs.work.study import CONFIGS, PASTED, Study
from shards.errors import InputError

RECIPE = CONFIGS / "small_pictures.yaml"
UNPACK = "cityscapes_256/unpack.py"
ERFNET, DINOV2 = "weights/erfnet_cityscapes_int8.pth", "weights/vit_s14_fp16.safetensors"
PLACES = ("Validation_Dataset", UNPACK, "coco/train2017", "coco/annotations", ERFNET, DINOV2)
"""Files and folders of the data."""


def plan_study(out: Path, data: Path, precision: str, is_smoke: bool) -> Study:
    """Return the study in the folder `out`: the last six blocks of a DINOv2-small, then the last three."""
    if missing := [place for place in PLACES if not (data / place).exists()]:
        raise InputError(f"--data {data}: lacks {', '.join(missing)}; the tables need all of it")
    return Study(
        out=out.absolute(),
        recipe=RECIPE,
        baseline={
            "model.weights": data / DINOV2,
            "adapt.mode": "last-6",
            "validation.shards": out.absolute() / "shards" / "cityscapes",
            "validation.select": "miou",
            "ema.decay": 0.998,
            "loop.precision": precision,
            "loop.steps": 2 if is_smoke else 2000,
            "loop.eval_every": 2 if is_smoke else 250,
            "loop.save_every": 100,
        },
        finetuning={
            "optim.lr": 1.0e-4,
            "loop.precision": precision,
            "loop.steps": 2 if is_smoke else 200,
            "loop.save_every": 50,
            "loop.eval_every": 0,
        },
        paste={"paste.probability": 0.5, "paste.max_size": 0.5, "paste.held_out": 0.2},
        evaluation={"precision": precision, **({"limit": 2} if is_smoke else {})},
    )


def prepare_data(study: Study, data: Path, is_smoke: bool) -> Path:
    """Write shards of frames and objects, and return the folder of the test sets.

    No object is of a category that is an anomaly of a test set.
    """
    if not study.cityscapes.exists():
        frames = study.out / ".cityscapes"
        shutil.rmtree(frames, ignore_errors=True)
        limit = ("--limit", "8") if is_smoke else ()
        subprocess.run([sys.executable, data / UNPACK, frames, *limit], check=True)
        run_job("prepare", "cityscapes", "--root", frames, "--out", study.cityscapes)
        shutil.rmtree(frames)
    taken = ("--min_side", 240, "--exclude", "object", "--test_categories", False)
    study.prepare_objects(data / "coco", *taken)
    return data / "Validation_Dataset"


def evaluate_erfnet(study: Study, data: Path) -> Mapping[str, Path]:
    """Evaluate ERFNet under two protocols, choose a temperature on PastedVal, and return title -> table."""
    erfnet, cache, temperature = study.out / "erfnet", study.out / "cache", study.out / "temperature"
    for protocol in ("course-512", "native"):
        if not (erfnet / protocol / "results.json").exists():
            how: dict[str, Any] = {
                "checkpoint": data / ERFNET,
                "datasets": study.sets,
                "out": erfnet / protocol,
                "name": "ERFNet",
                "scores": ["MSP", "MaxLogit", "MaxEntropy"],
                "protocol": protocol,
                **study.evaluation_options,
                "precision": "float32",
                **({"cache": cache} if protocol == "native" else {}),
            }
            run_job("evaluate", *list_words(how))
    if not temperature.exists():
        chosen = ("--validation", PASTED, "--scores", "MSP", "--out", temperature)
        run_job("temperature", "--cache", cache, *chosen)
    tables = {f"ERFNet, protocol {name}": erfnet / name / "results.md" for name in ("course-512", "native")}
    return {**tables, "MSP of ERFNet by temperature": temperature / "temperature.md"}
