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
from typing import Annotated, Literal

import torch
import tyro

from eval.evaluate import Evaluation
from eval.key import hash_key, network_key
from eval.part import ClosedSetPart
from eval.predict.own_model import open_own_model, parse_model_file
from eval.predict.predictions import CacheInfo, PredictionCache, PredictionRecorder
from eval.predict.score_maps import open_score_maps, require_map_folder
from eval.predict.scores import DEFAULT_SCORES, describe_scores, require_scores
from eval.predict.windows import ModelSource
from eval.protocol import get_protocols
from eval.report.record import Record
from eval.report.tables import render_markdown
from eval.result import require_place
from eval.sets.benchmarks import (
    read_own_sets,
    require_no_benchmark,
    require_no_benchmark_scenes,
    require_own_sets,
)
from eval.sets.registry import TestSet, check_masks, find_test_sets, read_image
from eval.store import ALONE, Worker, launched_worker
from models.segmenter import choose_device, open_predictor
from models.weights.checkpoint import find_checkpoint, run_of
from shards.errors import InputError
from shards.files import Location, require_title
from shards.manifest import read_manifest
from shards.prepare.objects import find_test_categories
from shards.program import run_program
from shards.reader import ShardReader, open_shards
from shards.scene import require_scenes
from shards.schema import NUM_CLASSES
from shards.settings import parse_options, read_settings
from shards.task import parse_task
from trainer.run_folder import CONFIG_NAME


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Score a checkpoint on the anomaly test sets that are present."""

    checkpoint: Path | None = None
    """A run folder, whose newest checkpoint is taken; RUN/best; a checkpoint folder; or weights of another
    origin: a file of tue-mps/eomt, a Hugging Face folder of EoMT, an ERFNet `.pth` (`jobs.doctor checkpoint`
    tells). Where a checkpoint has averaged weights (ema.decay), they are read; its model.safetensors, given
    as a file, has the others."""
    model_file: Location = ""
    """In place of --checkpoint: your own model, as FILE.py:FUNCTION (FUNCTION is build where it is left out).
    It runs your code. See docs/own-models.md."""
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
    """Folder written by `jobs.prepare cityscapes`; its val split gives the mIoU, which is missing without."""
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
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    name: str = ""
    """Model's name in tables and pictures; empty takes the name of the run's folder, or of the file."""
    all_columns: bool = False
    """Show mIoU and all five benchmarks in the tables, whether measured or not."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of the network; scores are computed in float32 either way."""
    compile: bool = False
    """Run the network through torch.compile: the same results to rounding; minutes more at the start."""
    limit: int | None = None
    """Take the first frames of each set only, for a quick look."""
    task: str = ""
    """I/N: score every N-th image only, from the I-th on (counted from 0), as one of N processes that share
    --out and know nothing of each other; `slurm`: the place in a SLURM array. Whichever is last measures and
    writes: the files of a single process."""
    windows_at_once: int = 4
    """Windows per forward pass; lower it where memory is short."""
    pictures: int = 3
    """Frames of each set in its picture; 0 draws none."""

    def __post_init__(self) -> None:
        given = [name for name in ("checkpoint", "model_file", "score_maps") if getattr(self, name)]
        if len(given) != 1:
            told = ", ".join(f"--{name}" for name in given) or "none of them"
            raise InputError(f"one of --checkpoint, --model_file and --score_maps is needed; got {told}")
        if given != ["checkpoint"]:
            for name, default in (("cache", None), ("compile", False), ("precision", "float32")):
                if getattr(self, name) != default:
                    raise InputError(f"--{name}: is for --checkpoint; got --{given[0]}")
        if given == ["score_maps"] and self.cityscapes is not None:
            raise InputError("--cityscapes: mIoU needs a model; score maps predict no classes")
        if not self.map_range[0] < self.map_range[1]:
            raise InputError(f"--map_range: got {self.map_range}; the first must be smaller")
        for name, lowest in (("limit", 1), ("windows_at_once", 1), ("pictures", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise InputError(f"--{name}: got {value}; at least {lowest}")


def main(arguments: Sequence[str]) -> None:
    """Run one evaluation from the command line and print its table."""
    options: EvaluateOptions = parse_options(EvaluateOptions, arguments, program="jobs.evaluate")
    with launched_worker() as worker:
        records = evaluate(options, worker)
    if records:
        print(render_markdown(records, options.all_columns), end="")


def evaluate(options: EvaluateOptions, worker: Worker = ALONE) -> list[Record]:
    """Check all inputs, in the order of what costs least, then score what is not finished, and write.

    Nothing is written where an option, test set, shard or checkpoint is wrong, which is an InputError. Of
    several workers the first one measures and writes, and the others return nothing.
    """
    if options.task:
        worker = _find_task(options, worker)
    require_place(options.out)
    source = _find_source(options)  # once: a run that still trains saves newer ones
    title = model_name(options, source)
    device = choose_device(options.device)
    protocols = get_protocols(options.protocol)
    for name, kept in (("cache", "predictions are saved of"), ("score_maps", "maps are of")):
        other = [protocol.name for protocol in protocols if not protocol.is_of_the_image]
        if getattr(options, name) is not None and other:
            raise InputError(f"--{name}: {kept} images as they are, so without protocol {other[0]}")
    test_sets = _find_test_sets(options)
    scenes = _open_scenes(options.cityscapes) if options.cityscapes else None
    recorder = PredictionRecorder()
    model = _open_source(source, options, device, test_sets, recorder)
    network = network_key(model.fingerprint, options.precision, options.compile, device)
    info = CacheInfo(model=title, checkpoint=str(source), fingerprint=hash_key(network), limit=options.limit)
    return Evaluation(
        out=options.out,
        earlier=options.earlier,
        model=model,
        info=info,
        network=network,
        test_sets=test_sets,
        protocols=protocols,
        components=options.components,
        pictures=options.pictures,
        all_columns=options.all_columns,
        pasted=_describe_pasted(source),
        closed_set=ClosedSetPart(scenes, min(options.limit or len(scenes), len(scenes))) if scenes else None,
        cache=PredictionCache(options.cache, info, recorder) if options.cache else None,
        worker=worker,
    ).run()


def _find_task(options: EvaluateOptions, worker: Worker) -> Worker:
    task = parse_task(options.task)
    if worker.count > 1:
        raise InputError(f"--task {options.task}: tasks are single processes; under torchrun leave it out")
    if options.earlier == "ignore":
        raise InputError("--task: --earlier ignore would drop what other tasks did; give replace")
    return Worker(task.number, task.count, is_task=True)


def _find_source(options: EvaluateOptions) -> Path:
    """Return the checkpoint, the Python file or the folder of maps, and check scores as far as names tell."""
    if options.model_file:
        return parse_model_file(options.model_file)[0]
    if options.score_maps is not None:
        require_map_folder(options.score_maps, options.scores)
        return options.score_maps
    require_scores(options.scores)
    assert options.checkpoint is not None
    return find_checkpoint(options.checkpoint)


def _find_test_sets(options: EvaluateOptions) -> tuple[TestSet, ...]:
    own = read_own_sets(options.sets) if options.sets else ()
    test_sets = find_test_sets(options.datasets, options.limit, own=own)
    for test_set in test_sets:
        check_masks(test_set)
    require_own_sets(test_sets, f"--datasets {options.datasets}")
    return test_sets


def _open_scenes(cityscapes: Path) -> ShardReader:
    """Open the scenes of the mIoU, to which `jobs.temperature` calibrates, too."""
    require_no_benchmark(str(cityscapes), "--cityscapes")
    scenes = open_shards([str(cityscapes)], "val")
    require_scenes(scenes)
    require_no_benchmark_scenes(scenes, f"--cityscapes {cityscapes}")
    return scenes


def _open_source(
    source: Path,
    options: EvaluateOptions,
    device: torch.device,
    test_sets: Sequence[TestSet],
    recorder: PredictionRecorder,
) -> ModelSource:
    """Open what `_find_source` found; a user's model and maps are read and checked at once."""
    if options.score_maps is not None:
        is_limited = options.limit is not None
        return open_score_maps(source, test_sets, options.scores, options.map_range, is_limited=is_limited)
    if not options.model_file:
        return open_predictor(
            source,
            options.scores,
            device,
            options.precision,
            windows_at_once=options.windows_at_once,
            compiled=options.compile,
            cityscapes=options.cityscapes is not None,
            recorder=recorder if options.cache else None,
        )
    first = read_image(test_sets[0].frames[0])
    model, num_classes = open_own_model(options.model_file, first, options.scores)
    if options.cityscapes is not None and num_classes != NUM_CLASSES:
        given = f"{options.model_file} answers logits of {num_classes} classes, Cityscapes has {NUM_CLASSES}"
        raise InputError(f"--cityscapes: {given}; leave it out to measure anomaly scores alone")
    return model


def _describe_pasted(source: Path) -> str:
    """Say which anomalies of test sets the bank of a run may hold; nothing where nobody knows."""
    try:
        paste = read_settings(source.resolve().parent.parent / CONFIG_NAME)["paste"]
        if not paste["bank"] or not paste["probability"]:
            return ""
        held = find_test_categories(read_manifest(Path(paste["bank"]), check_files=False).options)
    except (InputError, OSError, KeyError, TypeError):
        return ""
    if not held:
        return "" if held is None else "never of a category that is an anomaly of a test set"
    return f"of categories that are anomalies of a test set, its bank may hold {', '.join(held)}"


def model_name(options: EvaluateOptions, source: Path) -> str:
    """Return `--name`, or the name of the run that a checkpoint belongs to, or of the file."""
    of_source = source.resolve().stem if source.is_file() else source.resolve().name
    title = options.name or run_of(source) or of_source
    require_title(title, "--name")
    return title


if __name__ == "__main__":
    run_program(main)
