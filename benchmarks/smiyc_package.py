"""A package of ours, read and scored by SMIYC's own toolkit, beside our evaluation of the same files.

python -m benchmarks.smiyc_package --toolkit CHECKOUT --python TOOLKIT_VENV/bin/python [--out RESULTS.md]

CHECKOUT is https://github.com/SegmentMeIfYouCan/road-anomaly-benchmark; its Python is another one than ours,
as it needs older packages (matplotlib < 3.9, numpy < 2; easydict, h5py, click, pandas, opencv, scipy,
ipython, jinja2). The images are of the synthetic world, in the benchmark's layout; the score is the
saturation of colours, as in the toolkit's own example, but smoothed: where scores of several images tie, the
toolkit's AP depends on the order in which it happens to sort them. Our side scores the files of the package
through `jobs.evaluate --score_maps` under protocol smiyc. Only the toolkit's check of the number of images is
turned off.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import h5py
import numpy as np
from jaxtyping import UInt8

from benchmarks.machine import describe_machine
from eval.report.record import Record
from eval.sets.frames import image_size
from eval.submissions.benchmark import BENCHMARKS, choose_pictures
from eval.submissions.package import Description
from eval.submissions.picture import PictureAnswer
from eval.submissions.writing import write_package
from jobs.evaluate import evaluate
from jobs.evaluate_options import EvaluateOptions
from jobs.world.anomaly_layout import AnomalyFrame
from jobs.world.official_layout import write_labelled
from shards.settings import parse_options, run_program

TRACKS = {
    "SMIYC RA-21": ("AnomalyTrack-validation", "SegEval-AnomalyTrack", "RoadAnomaly21", 10),
    "SMIYC RO-21": ("ObstacleTrack-validation", "SegEval-ObstacleTrack", "RoadObsticle21", 18),
}
"""Our name -> split and component metric of the toolkit, folder of the set, labelled frames; of the obstacle
track the toolkit leaves out what is numbered 19 and 21 to 29."""
_SCRIPT = """
import json, sys
import numpy as np
import scipy.ndimage
for name in ("morphology", "measurements"):  # gone from newer SciPy; the functions lie one level up
    sys.modules["scipy.ndimage." + name] = scipy.ndimage
from road_anomaly_benchmark.datasets.dataset_io import DatasetBase
DatasetBase.check_size = lambda self: None
from road_anomaly_benchmark.datasets import tracks
tracks.DatasetRA.check_size = lambda self: None
from road_anomaly_benchmark.evaluation import Evaluation
from road_anomaly_benchmark.metrics import MetricRegistry
found = {}
for name, split, segments in json.loads(sys.argv[1]):
    evaluation = Evaluation(method_name="Saturation", dataset_name=split)
    frames = list(evaluation.get_frames())
    maps = [Evaluation.channels["anomaly_p"].read(method_name="Saturation", dset_name=f.dset_name, fid=f.fid)
            for f in frames]
    assert all(m.dtype == np.float16 and m.shape == f.image.shape[:2] for m, f in zip(maps, frames))
    pixels = evaluation.calculate_metric_from_saved_outputs("PixBinaryClass", parallel=False)
    fields = MetricRegistry.get(segments).extracts_fields_for_table(
        evaluation.calculate_metric_from_saved_outputs(segments, parallel=False))
    found[name] = {"frames": len(frames), "ap": pixels.area_PRC, "fpr95": pixels.tpr95_fpr,
                   "siou": fields["sIoU_gt"], "ppv": fields["prec_pred"], "f1_star": fields["f1_mean"]}
print("RESULT" + json.dumps(found, default=float))
"""


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Compare the official toolkit's numbers of a package with ours."""

    toolkit: Path
    """Checkout of road-anomaly-benchmark."""
    python: Path
    """Python in which the toolkit's packages are installed."""
    height: int = 512
    """Rows of the world that pictures are scaled by."""
    out: Path | None = None
    """File to write the report to as well."""


def main(arguments: Sequence[str]) -> None:
    """Draw, write a package, score it on both sides, and print a report in Markdown."""
    options: BenchmarkOptions = parse_options(BenchmarkOptions, arguments, program="benchmarks.smiyc_package")
    with tempfile.TemporaryDirectory() as name:
        root, package = Path(name) / "official", Path(name) / "package"
        for _, _, folder, count in TRACKS.values():
            for index in range(count):
                write_labelled(AnomalyFrame(0, options.height, folder, index), Path(name))
        theirs_of = _write_and_read(root, package, options)
        ours = evaluate(
            EvaluateOptions(
                score_maps=package / "anomaly_p" / "Saturation",
                datasets=root,
                out=Path(name) / "eval",
                protocol=("smiyc",),
                device="cpu",
                pictures=0,
            )
        )
    report = _report(theirs_of, {record.dataset: record for record in ours}, options)
    print(report, end="")
    if options.out is not None:
        options.out.write_text(report, encoding="utf-8")


def saturation(image: UInt8[np.ndarray, "H W 3"]) -> PictureAnswer:
    """Score a pixel by how colourful it and its neighbours are."""
    colours = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)[..., 1].astype(np.float32) / 255
    return PictureAnswer(cv2.GaussianBlur(colours, (0, 0), 3.1), np.zeros(image.shape[:2], np.uint8))


def _write_and_read(root: Path, package: Path, options: BenchmarkOptions) -> dict[str, dict[str, float]]:
    pictures = choose_pictures(BENCHMARKS["smiyc"], root)
    sizes = {picture.key: image_size(picture.image) for picture in pictures}
    description = Description(
        benchmark="smiyc", method="Saturation", model="", fingerprint="", score="Saturation", frames=sizes
    )
    write_package(package, description, pictures, saturation)
    asked = [(name, split, segments) for name, (split, segments, _, _) in TRACKS.items()]
    places = {"DIR_OUTPUTS": str(package), "DIR_DATASETS": str(root), "PYTHONPATH": str(options.toolkit)}
    told = subprocess.run(
        [str(options.python), "-c", _SCRIPT, json.dumps(asked)],
        env={**os.environ, **places, "MPLBACKEND": "agg"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found: dict[str, dict[str, float]] = json.loads(told.rpartition("RESULT")[2])
    return found


def _report(
    theirs_of: dict[str, dict[str, float]], ours_of: dict[str, Record], options: BenchmarkOptions
) -> str:
    lines = [
        "# A package for SegmentMeIfYouCan, read by its toolkit",
        "",
        describe_machine(1, (np, cv2, h5py)),
        "",
        f"Synthetic world of height {options.height}, score: smoothed saturation. Toolkit: `Evaluation`, "
        "`PixBinaryClass` and `SegEval` on the HDF5 files of the package; ours: `jobs.evaluate --score_maps` "
        "on the same files, protocol smiyc.",
        "",
        "| set | frames | number | toolkit | ours | difference |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for name, theirs in theirs_of.items():
        for field in ("ap", "fpr95", "siou", "ppv", "f1_star"):
            mine = getattr(ours_of[name], field)
            lines.append(
                f"| {name} | {theirs['frames']:.0f} | {field} | {theirs[field]:.8f} | {mine:.8f} | "
                f"{mine - theirs[field]:+.1e} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_program(main)
