"""The whole chain on the synthetic world, step by step: what `jobs.demo` and `jobs.experiments` drive.

Every step is one of the programs, run as its own process, which prints its own command first. A step whose
result is there is left out, so that a chain that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.report import Record, parse_json

logger = logging.getLogger(__name__)

CONFIGS = Path(__file__).parent / "configs"
BASELINE, CONTROL = "baseline", "control"


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to fine-tune the baseline."""

    meaning: str
    """For the reader of a table."""
    pastes: bool
    """Whether it sees pasted outliers."""
    scores: tuple[str, ...] = ()
    """Scores of its own, beside those that every method has."""
    ablation: bool = False
    """Whether it only explains another method; the demo leaves it out."""


METHODS: dict[str, Method] = {
    CONTROL: Method(meaning="the same steps, no outliers", pastes=False),
    "logit_norm": Method(meaning="LogitNorm, no outliers", pastes=False),
    "isomax_plus": Method(meaning="IsoMax+, no outliers", pastes=False, scores=("MinDistance",)),
    "paste_only": Method(meaning="pasted outliers, no outlier term", pastes=True, ablation=True),
    "rba": Method(meaning="RbA outlier exposure", pastes=True),
    "sole_claim": Method(meaning="sole-claim outlier exposure", pastes=True),
}
"""Name of run and configuration (`demo_NAME.yaml`) -> method."""
IN_DEMO = tuple(name for name, method in METHODS.items() if not method.ablation)
SCORES = ("MSP", "MaxLogit", "MaxEntropy", "RbA", "SoleClaim")


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    world: tuple[str, ...] = ()
    baseline: tuple[str, ...] = ()
    finetune: tuple[str, ...] = ()


SHORT = Scale(baseline=("--loop.steps", "800"), finetune=("--loop.steps", "150"))
"""Fewer steps than the configurations have, so that the demo ends within ten to twenty minutes."""
SMOKE = Scale(
    world=("--height", "64", "--train", "16", "--val", "3", "--coco", "24", "--anomaly_images", "3"),
    baseline=("--loop.steps", "4", "--data.crop", "64", "64", "--model.image_size", "64", "64"),
    finetune=("--loop.steps", "2", "--data.crop", "64", "64", "--model.image_size", "64", "64"),
)
"""A miniature world and a handful of steps: only shows that the chain holds together."""


def make_data(out: Path, seed: int, scale: Scale) -> None:
    """Draw the world into `out`/world and turn it into `out`/shards."""
    world, shards = out / "world", out / "shards"
    if not world.exists():
        run_job("synthesize", "--out", world, "--seed", seed, *scale.world)
    if not (shards / "cityscapes").exists():
        frames = ("--root", world / "cityscapes", "--out", shards / "cityscapes", "--samples_per_shard", 16)
        run_job("prepare", "cityscapes", *frames)
    if not (shards / "cutouts").exists():
        coco = ("--images", world / "coco" / "train2017", "--annotations", world / "coco" / "annotations")
        run_job("prepare", "coco", *coco, "--out", shards / "cutouts")


def train_and_evaluate(
    out: Path, runs: Path, seed: int, scale: Scale, methods: Sequence[str] = IN_DEMO
) -> list[Record]:
    """Train the baseline from scratch, fine-tune it with each method, and evaluate all of them.

    Args:
        out: where `make_data` has put the data.
        runs: folder for the runs.
        seed: of every run.
        methods: names of `METHODS`.

    Returns:
        the records of all runs, the baseline's first.
    """
    _finetune(out, runs, seed, BASELINE, scale.baseline)
    for name in methods:
        start = ("--model.weights", runs / BASELINE, *scale.finetune)
        bank = ("--paste.bank", out / "shards" / "cutouts") if METHODS[name].pastes else ()
        _finetune(out, runs, seed, name, (*start, *bank))
    records = []
    for name in (BASELINE, *methods):
        _evaluate(out, runs / name, (*SCORES, *(METHODS[name].scores if name in METHODS else ())))
        path = runs / name / "eval" / "results.json"
        records += parse_json(path.read_text(), str(path))
    return records


def _finetune(out: Path, runs: Path, seed: int, name: str, overrides: tuple[object, ...]) -> None:
    if (runs / name / "eval").exists():
        return
    settings = ("--name", name, "--out", runs, "--seed", seed, "--data.shards", out / "shards" / "cityscapes")
    run_job("finetune", CONFIGS / f"demo_{name}.yaml", *settings, *overrides, "--resume")


def _evaluate(out: Path, run: Path, scores: tuple[str, ...]) -> None:
    if (run / "eval" / "results.json").exists():
        return
    sets = ("--datasets", out / "world" / "anomaly", "--cityscapes", out / "shards" / "cityscapes")
    brief = ("--components", False)  # the maps of them and of the pictures take two thirds of the time
    run_job("evaluate", "--checkpoint", run, *sets, "--out", run / "eval", "--scores", *scores, *brief)


def run_job(job: str, *arguments: object) -> None:
    """Run `python -m jobs.JOB` as its own process.

    Raises:
        SystemExit: the program failed, with its own exit code; it has said why.
    """
    words = [str(argument) for argument in arguments]
    logger.info("\n$ python -m jobs.%s %s", job, shlex.join(words))
    process = subprocess.Popen([sys.executable, "-m", f"jobs.{job}", *words])
    try:
        code = process.wait()
    except BaseException:  # Ctrl-C reaches both of us, SIGTERM perhaps only this one
        process.terminate()
        process.wait()
        raise
    if code:
        sys.exit(code)  # the program has said why
