"""Score maps, overlays and alarms of your own pictures and videos, which need no labels.

python -m jobs.predict --checkpoint RUN --images PICTURES --out FOLDER --calibration calibration.json

What is finished is kept: the same command goes on where it was killed. Several processes share the frames, by
`torchrun --nproc_per_node N -m jobs.predict ...` or by `--task I/N`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from eval.predict.score_names import describe_scores
from jobs.work.model_options import ModelOptions
from shards.errors import InputError
from shards.files import Location
from shards.program import run_program
from shards.settings import parse_options, require_least


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ModelOptions):
    """Predict pictures and videos without labels."""

    images: tuple[Location, ...]
    """Pictures (PNG, JPEG, WebP), folders of them, patterns such as 'drive/**/*.jpg', and videos (.mp4, .m4v,
    .mov, .mkv, .webm, .avi). No two may have the same name."""
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
        require_least(self, smallest=1, every=1, pictures=0)


def main(arguments: Sequence[str]) -> None:
    """Predict from the command line, and print how many alarms there are."""
    options: PredictOptions = parse_options(PredictOptions, arguments, program="jobs.predict")
    from eval.store import launched_worker
    from jobs.work.alarms import predict

    with launched_worker() as worker:
        told = predict(options, worker)
    if told:
        print(told)


if __name__ == "__main__":
    run_program(main)
