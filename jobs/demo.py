"""The whole chain on the synthetic world, through the same programs that real data goes through.

python -m jobs.demo --out demo
"""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.report.record import Record, parse_json
from eval.report.tables import render_markdown
from eval.sets.registry import find_test_sets, read_image, read_target
from shards.errors import InputError
from shards.files import write_atomically
from shards.output import claimed, make_folder, require_free
from shards.program import run_program
from shards.settings import parse_options

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


METHODS: dict[str, Method] = {
    CONTROL: Method(meaning="the same steps, no outliers", pastes=False),
    "logit_norm": Method(meaning="LogitNorm, no outliers", pastes=False),
    "isomax_plus": Method(meaning="IsoMax+, no outliers", pastes=False, scores=("MinDistance",)),
    "paste_only": Method(meaning="pasted outliers, no outlier term", pastes=True),
    "rba": Method(meaning="RbA outlier exposure", pastes=True),
    "class_claim": Method(meaning="class-claim outlier exposure", pastes=True),
    "outlier_head": Method(
        meaning="likelihood-ratio head, the rest stands still", pastes=True, scores=("LikelihoodRatio",)
    ),
}
"""Name of run and configuration (`demo_NAME.yaml`) -> method."""
IN_DEMO = tuple(name for name in METHODS if name not in ("paste_only", "outlier_head"))
"""`paste_only` is an ablation: it explains the others that paste; a head earns nothing on the drawn world."""
SCORES = ("MSP", "MaxLogit", "MaxEntropy", "RbA", "NormalizedEntropy", "EntropyLogMax")
NATURAL_SCORES = (
    "NormalizedMSP",
    "EAM",
    "SoleClaim",
    "ClassClaim",
    "ClassClaimEntropy",
)
"""More scores of a mask model, for comparisons over seeds."""
PICTURED_SETS = ("RoadAnomaly21", "fs_static")
PICTURED_RUNS = {"before": BASELINE, "after": "class_claim"}
PICTURED_SCORES = ("MSP", "EntropyLogMax")


@dataclass(frozen=True)
class Scale:
    """Options that set the size of the world and the length of the runs."""

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
    out: Path,
    runs: Path,
    seed: int,
    scale: Scale,
    methods: Sequence[str] = IN_DEMO,
    scores: Sequence[str] = SCORES,
) -> list[Record]:
    """Train the baseline, fine-tune it with each method, evaluate all; return the baseline's records first.

    The data is where `make_data` has put it; what is complete in the folder `runs` is left as it is.
    """
    shards, names = out / "shards", (BASELINE, *methods)
    for name in names:
        start: tuple[object, ...] = scale.baseline
        if name != BASELINE:
            bank = ("--paste.bank", shards / "cutouts") if METHODS[name].pastes else ()
            start = ("--model.weights", runs / BASELINE, *scale.finetune, *bank)
        settings = ("--name", name, "--out", runs, "--seed", seed, "--data.shards", shards / "cityscapes")
        if not (runs / name / "eval").exists():
            run_job("finetune", CONFIGS / f"demo_{name}.yaml", *settings, *start, "--resume")
    sets = ("--datasets", out / "world" / "anomaly", "--cityscapes", shards / "cityscapes")
    found = [evaluate(runs / name, "eval", scores, *sets) for name in names]
    return [record for results in found for record in parse_json(results.read_text(), str(results))]


def evaluate(run: Path, folder: str, scores: Sequence[str], *sets: object) -> Path:
    """Evaluate a run into a folder of its own unless it is there, with the scores of its method besides.

    Returns:
        Its results.json.
    """
    own = METHODS[run.name].scores if run.name in METHODS else ()
    brief = ("--components", False)  # the maps of them and of the pictures take two thirds of the time
    results = run / folder / "results.json"
    if not results.exists():
        place = ("--checkpoint", run, "--out", results.parent)
        run_job("evaluate", *place, *sets, "--scores", *scores, *own, *brief)
    return results


def run_job(job: str, *arguments: object) -> None:
    """Run `python -m jobs.JOB` as its own process; leave with its exit code if it fails."""
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


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Run the whole chain on the synthetic world, on the CPU."""

    out: Path
    """New or empty folder for world, shards, runs, tables and pictures."""
    seed: int = 0
    """Of the world and of every run."""
    smoke: bool = False
    """Only check that the chain holds together: a miniature world and a handful of steps. The numbers
    mean nothing then."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed must be in 0..{2**32 - 1}, got {self.seed}")


def main(arguments: Sequence[str]) -> None:
    """Run the demo from the command line."""
    options: DemoOptions = parse_options(DemoOptions, arguments, program="jobs.demo")
    require_free(options.out)
    with claimed(options.out):
        _run_chain(options)


def _run_chain(options: DemoOptions) -> None:
    make_folder(options.out)
    started = time.monotonic()
    scale = SMOKE if options.smoke else SHORT
    make_data(options.out, options.seed, scale)
    records = train_and_evaluate(options.out, options.out / "runs", options.seed, scale)
    table = render_markdown(records)
    write_atomically(options.out / "results.md", table)
    write_atomically(options.out / "picture.png", _draw_picture(options.out))
    print(table)
    print(_summary(records))
    minutes = (time.monotonic() - started) / 60
    print(f"\nall of it took {minutes:.1f} minutes")
    print(f"look at {options.out}/picture.png and {options.out}/world/preview.png")
    print(f"training curves: tensorboard --logdir {options.out}/runs")


def _draw_picture(out: Path) -> bytes:
    """Draw the middle frame of each pictured set under two scores, before and after outlier exposure."""
    import torch

    from eval.predict.strips import predict_pixels
    from eval.report.figures import Example, plot_comparison
    from models.segmenter import open_predictor
    from models.weights.checkpoint import find_checkpoint

    predictors = {}
    for title, name in PICTURED_RUNS.items():
        checkpoint = find_checkpoint(out / "runs" / name)
        predictors[title] = open_predictor(checkpoint, PICTURED_SCORES, torch.device("cpu")).load()
    frames = []
    for test_set in find_test_sets(out / "world" / "anomaly"):
        if test_set.convention.folder in PICTURED_SETS:
            frame = test_set.frames[len(test_set.frames) // 2]
            image, target = read_image(frame), read_target(frame, test_set.convention)
            found = {name: predict_pixels(p(image), PICTURED_SCORES) for name, p in predictors.items()}
            frames.append(
                {name: Example(test_set.name, image, target, *f[::-1]) for name, f in found.items()}
            )
    return plot_comparison(frames)


def _summary(records: Sequence[Record]) -> str:
    """Set the losses side by side: AP and FPR95 of each score, averaged over the test sets."""
    lines = [
        "Mean AP / FPR95 over the test sets. One seed: `make experiments` says which differences hold.",
        f"  {'':<12}{'mIoU':>6}" + "".join(f"{score:>19}" for score in SCORES),
    ]
    for name in (BASELINE, *IN_DEMO):
        own = [record for record in records if record.model == name]
        cells = [f"{100 * miou:.1f}" if (miou := own[0].miou) is not None else ""]
        for score in SCORES:
            pairs = [(r.ap, r.fpr95) for r in own if r.score == score]
            ap, fpr95 = np.mean(np.array(pairs, dtype=float), axis=0)
            cells.append(f"{100 * ap:.1f} / {100 * fpr95:.1f}")
        meaning = METHODS[name].meaning if name in METHODS else "a tiny EoMT from scratch"
        lines.append(f"  {name:<12}{cells[0]:>6}" + "".join(f"{c:>19}" for c in cells[1:]) + f"   {meaning}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
