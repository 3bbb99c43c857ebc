"""Score maps, overlays and alarms of your own pictures and videos, which need no labels.

python -m jobs.predict --checkpoint RUN --images PICTURES --out FOLDER --calibration calibration.json

What is finished is kept: the same command goes on where it was killed. Several processes share the frames, by
`torchrun --nproc_per_node N -m jobs.predict ...` or by `--task I/N`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from eval.alarms import SMALLEST
from eval.calibration import Calibration, read_calibration
from eval.key import network_key
from eval.predict.footage import VIDEO_SUFFIXES, find_frames
from eval.predict.scores import describe_scores
from eval.prediction import NAMES, Prediction, PredictionCounts
from eval.protocol import get_protocol
from eval.result import require_place
from eval.store import ALONE, Worker, launched_worker
from jobs.model_options import ModelOptions
from models.segmenter import choose_device
from shards.errors import InputError
from shards.files import Location
from shards.program import run_program
from shards.settings import parse_options


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ModelOptions):
    """Predict pictures and videos without labels."""

    images: Annotated[
        tuple[Location, ...],
        tyro.conf.arg(
            help="Pictures (PNG, JPEG, WebP), folders of them, patterns such as 'drive/**/*.jpg', and videos "
            f"({', '.join(VIDEO_SUFFIXES)}). No two may have the same name."
        ),
    ]
    out: Path
    """New or empty folder for maps/, overlays/, alarms.jsonl, sheet.png, and videos/."""
    score: Annotated[str, tyro.conf.arg(help=f"{describe_scores()}; or one of your own model's.")] = ""
    protocol: str = ""
    """What is done with scores, as of jobs.evaluate: native, or native+flip, native+smooth and so on."""
    threshold: float | None = None
    """Pixels with a larger score are alarms. Without it, and without --calibration, none are raised."""
    calibration: Path | None = None
    """In its place: calibration.json of `jobs.calibrate`, of the same model, score and protocol."""
    smallest: int | None = None
    """Pixels of the smallest alarm; default: that of --calibration, or 50."""
    heat: tuple[float, float] | None = None
    """Scores at which the colours of overlays begin and end; default: as in the first frame, up to the
    threshold at least."""
    every: int = 1
    """Take every N-th frame of a video."""
    maps: bool = True
    """Keep score maps: 4 bytes per pixel."""
    pictures: int = 6
    """Frames on the contact sheet; 0 draws none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration is not None:
            for name in ("threshold", "smallest"):
                if getattr(self, name) is not None:
                    raise InputError(f"--{name}: --calibration says it; give one of them")
        if self.heat is not None and not self.heat[0] < self.heat[1]:
            raise InputError(f"--heat: got {self.heat}; the first must be smaller")
        for name, lowest in (("smallest", 1), ("every", 1), ("pictures", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise InputError(f"--{name}: got {value}; at least {lowest}")


def main(arguments: Sequence[str]) -> None:
    """Predict from the command line, and print how many alarms there are."""
    options: PredictOptions = parse_options(PredictOptions, arguments, program="jobs.predict")
    with launched_worker() as worker:
        told = predict(options, worker)
    if told:
        print(told)


def predict(options: PredictOptions, worker: Worker = ALONE) -> str:
    """Check all inputs, predict what is not finished, and write; return a summary, of one worker alone."""
    worker = options.join(worker)
    require_place(options.out, NAMES)
    calibration = read_calibration(options.calibration) if options.calibration else None
    score = options.score or (calibration.score if calibration else "MSP")
    name = options.protocol or (calibration.protocol if calibration else "native")
    protocol = get_protocol(name)
    if protocol.size is not None:
        raise InputError(f"--protocol {name}: resizes pictures whatever their shape; native does not")
    source = options.find_source((score,), "--score")
    device = choose_device(options.device)
    frames = find_frames(options.images, options.every, options.out, "--images")
    model = options.open_model(source, score)
    if calibration is not None:
        calibration.require_of(model, protocol, f"--calibration {options.calibration}")
    threshold = options.threshold if calibration is None else calibration.threshold
    counts = Prediction(
        out=options.out,
        model=model,
        network=network_key(model.fingerprint, options.precision, options.compile, device),
        frames=frames,
        protocol=protocol,
        threshold=math.inf if threshold is None else threshold,
        smallest=calibration.smallest if calibration else options.smallest or SMALLEST,
        heat=options.heat,
        maps=options.maps,
        pictures=options.pictures,
        worker=worker,
    ).run()
    return "" if counts is None else _summarize(options.out, score, threshold, calibration, counts)


def _summarize(
    out: Path, score: str, threshold: float | None, calibration: Calibration | None, counts: PredictionCounts
) -> str:
    head = f"{out}: {counts.frames} frames"
    if threshold is None:
        return f"{head}; no threshold, so no alarms"
    found = f"{counts.alarms} alarms in {counts.alarmed} of them, {score} above {threshold:.4g}"
    return f"{head}, {found}" + (f"; {calibration.describe()}" if calibration else "")


if __name__ == "__main__":
    run_program(main)
