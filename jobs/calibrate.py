"""A threshold of alarms whose misses are bounded, from a validation set.

python -m jobs.calibrate --checkpoint RUN --datasets data/pasted-val --miss_rate 0.05 --confidence 0.9 \
    --out RUN/calibration

What is finished is kept: the same command goes on where it was killed. Several processes share the images, by
`torchrun` or by `--task I/N`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from eval.alarms import SMALLEST
from eval.calibration import NAMES, Calibration, CalibrationRun, render_table
from eval.conformal import RiskBound
from eval.key import network_key
from eval.part import TestSetPart
from eval.predict.scores import describe_scores
from eval.protocol import get_protocol
from eval.result import require_place
from eval.sets.benchmarks import read_own_sets, require_own_sets
from eval.sets.registry import TestSet, check_masks, find_test_sets, read_target
from eval.store import ALONE, Worker, launched_worker
from jobs.model_options import ModelOptions
from models.segmenter import choose_device
from shards.errors import InputError
from shards.program import run_program
from shards.schema import ANOMALY
from shards.settings import parse_options


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(ModelOptions):
    """Choose a threshold by conformal risk control."""

    datasets: Path
    """Folder with the validation set, in the layout of the test sets: PastedVal of `jobs.paste_validation`,
    or one of your own that --sets describes. Benchmarks beside it are compared with it, and never used."""
    out: Path
    """New or empty folder for calibration.json and calibration.md."""
    sets: Path | None = None
    """YAML file that describes sets of your own, as of jobs.evaluate, with `use: validation`."""
    validation: str = ""
    """Folder name of the set; needed where there are several."""
    score: Annotated[str, tyro.conf.arg(help=f"{describe_scores()}; or one of your own model's.")] = "MSP"
    protocol: str = "native"
    """What is done with scores, as of jobs.evaluate: native, or native+flip, native+smooth and so on."""
    miss_rate: float = 0.05
    """Largest share that may be missed, the mean over frames that hold an anomaly."""
    confidence: float | None = None
    """Probability with which that holds, such as 0.9; without: in the mean over draws of the set."""
    risk: Literal["pixels", "objects"] = "pixels"
    """What is missed: anomalous pixels that no alarm covers, or objects that no alarm touches."""
    smallest: int = SMALLEST
    """Pixels of the smallest alarm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("miss_rate", "confidence"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise InputError(f"--{name}: got {value}; a number between 0 and 1 is needed")
        if self.smallest < 1:
            raise InputError(f"--smallest: got {self.smallest}; at least 1")


def main(arguments: Sequence[str]) -> None:
    """Calibrate from the command line, and print the table."""
    options: CalibrateOptions = parse_options(CalibrateOptions, arguments, program="jobs.calibrate")
    with launched_worker() as worker:
        found = calibrate(options, worker)
    if found is not None:
        print(render_table(found), end="")


def calibrate(options: CalibrateOptions, worker: Worker = ALONE) -> Calibration | None:
    """Check all inputs, predict what is not finished, and write; None of all workers but one."""
    worker = options.join(worker)
    require_place(options.out, NAMES)
    protocol, score = get_protocol(options.protocol), options.score
    if protocol.size is not None:
        raise InputError(f"--protocol {options.protocol}: resizes images; pictures to predict are not")
    source = options.find_source((score,), "--score")
    device = choose_device(options.device)
    test_set = _find_validation(options)
    bound = RiskBound(options.miss_rate, None if options.confidence is None else 1 - options.confidence)
    _require_enough(test_set, bound, options)
    model = options.open_model(source, score)
    return CalibrationRun(
        out=options.out,
        model=model,
        network=network_key(model.fingerprint, options.precision, options.compile, device),
        part=TestSetPart(test_set=test_set, protocols=[protocol], scores=model.scores),
        bound=bound,
        risk=options.risk,
        smallest=options.smallest,
        worker=worker,
    ).run()


def _find_validation(options: CalibrateOptions) -> TestSet:
    """Find the one set to calibrate on, which the guard of benchmarks lets pass."""
    where = f"--datasets {options.datasets}"
    test_sets = find_test_sets(options.datasets, own=read_own_sets(options.sets) if options.sets else ())
    found = {each.convention.folder: each for each in test_sets}
    usable = [name for name, each in found.items() if not each.convention.is_benchmark]
    name = options.validation or (usable[0] if len(usable) == 1 else "")
    if name in found and name not in usable:
        raise InputError(f"--validation {name}: is a benchmark, on which nothing may be chosen")
    if name not in usable:
        told = f"no validation set {name}" if name else f"{len(usable) or 'no'} validation sets; name one"
        advice = "PastedVal is one, and what --sets describes with use: validation"
        raise InputError(f"{where}: {told}; there are {', '.join(found)}; {advice}")
    check_masks(found[name])
    require_own_sets(
        [each for each in test_sets if each.convention.is_benchmark or each is found[name]], where
    )
    return found[name]


def _require_enough(test_set: TestSet, bound: RiskBound, options: CalibrateOptions) -> None:
    masks = (read_target(frame, test_set.convention) for frame in test_set.frames)
    count, needed = sum(bool((mask == ANOMALY).any()) for mask in masks), bound.least_frames()
    if count < needed:
        asked = f"--miss_rate {options.miss_rate:g}"
        asked += f" --confidence {options.confidence:g}" if options.confidence is not None else ""
        given = f"{test_set.convention.folder} has {count} frames with an anomaly"
        raise InputError(f"{asked}: needs {needed} frames with an anomaly at least; {given}")


if __name__ == "__main__":
    run_program(main)
