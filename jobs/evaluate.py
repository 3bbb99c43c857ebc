"""Score a checkpoint on the anomaly test sets: numbers, tables and pictures.

python -m jobs.evaluate --checkpoint RUN --datasets Validation_Dataset --out RUN/eval

Under `torchrun --nproc_per_node N -m jobs.evaluate ...` N processes share the images; the numbers are the
same. With `--task I/N` they need not even run at the same time. What is finished is kept, so an evaluation
that was killed goes on when it is started again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from eval.predict.score_names import DEFAULT_SCORES, describe_scores
from eval.report.tables import render_markdown
from jobs.work.model_options import ModelOptions
from shards.errors import InputError
from shards.program import run_program
from shards.settings import parse_options, require_least


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ModelOptions):
    """Score a checkpoint on the anomaly test sets that are present."""

    score_maps: Path | None = None
    """In place of --checkpoint: folder with score maps (.npy, .hdf5 or 16-bit .png), one folder per test set,
    one file per image of the same stem. --scores may name the score."""
    map_range: tuple[float, float] = (0.0, 1.0)
    """Scores that 0 and 65535 stand for in the PNG files of --score_maps."""
    datasets: Path
    """Folder that holds the test sets (RoadAnomaly21, RoadObsticle21, FS_LostFound_full, fs_static,
    RoadAnomaly), each with images/ and labels_masks/."""
    out: Path
    """New or empty folder for results.json, .csv, .md, .tex, per_image.csv, report.html (one page
    with everything), pictures, and sketches for paired tests. What is finished is kept in OUT/cells: the same
    command goes on where it was killed."""
    earlier: Literal["continue", "replace", "ignore"] = "continue"
    """What to do with what an earlier evaluation left in --out. continue: take what has the same weights,
    data and settings, compute the rest, and refuse where finished results would be lost; replace: the same,
    but replace finished results; ignore: take nothing, compute all anew, and replace."""
    sets: Path | None = None
    """YAML file that describes test sets of your own below --datasets: three lines for each, in
    docs/evaluation.md."""
    cache: Path | None = None
    """New or empty folder to save the network's predictions to, for `jobs.temperature`; 26 MB per frame of
    2048 x 1024 and a mask model."""
    cityscapes: Path | None = None
    """Folder written by `jobs.prepare cityscapes`, or `folders`, of the model's classes; its val split gives
    the mIoU, and the IoU of each class in cityscapes.csv; both are missing without."""
    scores: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help=f"Which anomaly scores, defined in docs/evaluation.md: {describe_scores()}."),
    ] = DEFAULT_SCORES
    protocol: tuple[str, ...] = ("native",)
    """How images, ground truth, scores and metrics are treated, stated below every table: one or more of
    native, course-512, smiyc, fishyscapes, rba, pebal, rpl and mask2anomaly. Behind a name stands what is
    done with its scores: +flip (mean with the mirror image's), +scales-75-100-125 (mean over sizes of the
    image, in percent), +smooth (Gaussian of 7 x 7), as in native+flip+smooth. Those that differ in the
    reading only share one forward pass."""
    components: bool = True
    """Compute component metrics (sIoU, PPV, F1*), slices and pictures of the best and worst images too."""
    name: str = ""
    """Model's name in tables and pictures; empty takes the name of the run's folder, or of the file."""
    all_columns: bool = False
    """Show mIoU and all five benchmarks in the tables, whether measured or not."""
    limit: int | None = None
    """Take the first frames of each set only, for a quick look."""
    pictures: int = 3
    """Frames of each set in its picture; 0 draws none."""

    sources: ClassVar[tuple[str, ...]] = (*ModelOptions.sources, "score_maps")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task and self.earlier == "ignore":
            raise InputError("--task: --earlier ignore would drop what other tasks did; give replace")
        if self.cache is not None and self.checkpoint is None:
            given = next(name for name in self.sources if getattr(self, name))
            raise InputError(f"--cache: is for --checkpoint; got --{given}")
        if self.score_maps is not None and self.cityscapes is not None:
            raise InputError("--cityscapes: mIoU needs a model; score maps predict no classes")
        if not self.map_range[0] < self.map_range[1]:
            raise InputError(f"--map_range: got {self.map_range}; the first must be smaller")
        require_least(self, limit=1, pictures=0)


def main(arguments: Sequence[str]) -> None:
    """Run one evaluation from the command line and print its table."""
    options: EvaluateOptions = parse_options(EvaluateOptions, arguments, program="jobs.evaluate")
    from eval.store import launched_worker
    from jobs.work.evaluate import evaluate

    with launched_worker() as worker:
        records = evaluate(options, worker)
    if records:
        print(render_markdown(records, options.all_columns), end="")


if __name__ == "__main__":
    run_program(main)
