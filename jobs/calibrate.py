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

from eval.predict.score_names import describe_scores
from jobs.work.model_options import ModelOptions
from shards.errors import InputError
from shards.program import run_program
from shards.settings import parse_options, require_least


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
    smallest: int = 50
    """Pixels of the smallest alarm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("miss_rate", "confidence"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise InputError(f"--{name}: got {value}; a number between 0 and 1 is needed")
        require_least(self, smallest=1)


def main(arguments: Sequence[str]) -> None:
    """Calibrate from the command line, and print the table."""
    options: CalibrateOptions = parse_options(CalibrateOptions, arguments, program="jobs.calibrate")
    from eval.calibration import render_table
    from eval.store import launched_worker
    from jobs.work.alarms import calibrate

    with launched_worker() as worker:
        found = calibrate(options, worker)
    if found is not None:
        print(render_table(found), end="")


if __name__ == "__main__":
    run_program(main)
