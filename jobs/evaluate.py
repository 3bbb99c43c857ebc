"""Score a checkpoint on the anomaly test sets: numbers, tables and pictures.

python -m jobs.evaluate --checkpoint RUN --datasets Validation_Dataset --out RUN/eval

Under `torchrun --nproc_per_node N -m jobs.evaluate ...` N processes share the images; the numbers are the
same.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from eval.cache import (
    CLOSED_SET,
    CachedSet,
    CacheInfo,
    PredictionRecorder,
    write_frame,
    write_index,
    write_info,
)
from eval.datasets import TestSet, check_masks, find_test_sets
from eval.own_sets import read_own_sets
from eval.page import render_page
from eval.pictures import draw_grid, encode_png
from eval.protocol import Protocol, get_protocols
from eval.ranks import ALONE, Ranks
from eval.report import Record, render_csv, render_json, render_latex, render_markdown
from eval.report_images import render_per_image
from eval.run import Cell, MiouResult, Subject, evaluate_miou, evaluate_test_set
from eval.scores import DEFAULT_SCORES, require_scores
from eval.sketch import Sketch, sketch_path, write_sketch
from jobs.command_line import parse_options, run_program
from jobs.launched import device_of_rank, launched_ranks, shared_staged_folder
from jobs.segmenter import make_segment, require_readable
from models.checkpoint import BEST_FOLDER, CHECKPOINTS_FOLDER, find_checkpoint, load_segmenter
from models.eomt import EoMT
from shards.errors import InputError
from shards.reader import ShardReader, open_shards
from shards.scene import decode_scene
from shards.schema import NUM_CLASSES
from shards.staging import make_folder, require_free
from trainer.runtime import compile_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Score a checkpoint on the anomaly test sets that are present."""

    checkpoint: Path
    """A run folder, whose newest checkpoint is taken; RUN/best; a checkpoint folder; or weights of another
    origin: a file of tue-mps/eomt, a Hugging Face folder of EoMT, an ERFNet `.pth` (`jobs.doctor checkpoint`
    tells). Where a checkpoint has averaged weights (ema.decay), they are read; its model.safetensors, given
    as a file, has the others."""
    datasets: Path
    """Folder that holds the test sets (RoadAnomaly21, RoadObsticle21, FS_LostFound_full, fs_static,
    RoadAnomaly), each with images/ and labels_masks/."""
    out: Path
    """New or empty folder for results.json, .csv, .md, .tex, per_image.csv, report.html (one page
    with everything), pictures, and sketches for paired tests."""
    sets: Path | None = None
    """YAML file that describes test sets of your own below --datasets; see `eval/own_sets.py`."""
    cache: Path | None = None
    """New or empty folder to save the network's predictions to, for `jobs.temperature`; 26 MB per frame of
    2048 x 1024 and a mask model."""
    cityscapes: Path | None = None
    """Folder written by `jobs.prepare cityscapes`; its val split gives the mIoU, which is missing without."""
    scores: tuple[str, ...] = DEFAULT_SCORES
    """Which anomaly scores: MSP, MaxLogit, MaxEntropy, RbA, Energy of any network; MaskEnergy, EAM of EoMT;
    MinDistance of class head isomax; UNO of a trained outlier class."""
    protocol: tuple[str, ...] = ("native",)
    """How images, windows, ground truth and metrics are treated, stated below every table: one or more of
    native, course-512, smiyc, fishyscapes and rba. Those that differ in the reading only share one forward
    pass."""
    components: bool = True
    """Compute component metrics (sIoU, PPV, F1*) too; needs 4 more bytes of disk per pixel and score."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    name: str = ""
    """Model's name in the tables; empty takes the run's folder name."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of the network; scores are computed in float32 either way."""
    compile: bool = False
    """Run the network through torch.compile: the same results to rounding; minutes more at the start."""
    limit: int | None = None
    """Take the first frames of each set only, for a quick look."""
    windows_at_once: int = 4
    """Windows per forward pass; lower it where memory is short."""
    pictures: int = 3
    """Frames of each set in its picture; 0 draws none."""

    def __post_init__(self) -> None:
        for name, lowest in (("limit", 1), ("windows_at_once", 1), ("pictures", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise InputError(f"--{name}: got {value}; at least {lowest}")


@dataclass(frozen=True)
class Segmenter:
    """The model side as evaluation sees it."""

    segment: Callable[[Tensor], Tensor]
    """Windows (B, 3, h, w) to evidence and the maps of query scores (see `eval.windows.Segment`)."""
    window: tuple[int, int]
    recorder: PredictionRecorder | None = None
    """Keeps what the network says, where predictions are cached."""


def main(arguments: Sequence[str]) -> None:
    """Run one evaluation from the command line and print its table."""
    options: EvaluateOptions = parse_options(EvaluateOptions, arguments, program="jobs.evaluate")
    with launched_ranks() as ranks:
        records = evaluate(options, ranks)
    if ranks.is_first:
        print(render_markdown(records), end="")


def evaluate(options: EvaluateOptions, ranks: Ranks = ALONE) -> list[Record]:
    """Check all inputs, then load the model, score every test set, and write the results.

    Args:
        ranks: the processes that share the images; the first one measures and writes, the others return
            nothing.

    Raises:
        InputError: an option, test set, shard or checkpoint is wrong. Nothing is written then.
    """
    require_free(options.out)
    if options.cache is not None:
        require_free(options.cache, "--cache")
    ranks.wait()  # before the first one makes the folder
    checkpoint = find_checkpoint(options.checkpoint)  # once: a run that still trains saves newer ones
    device = choose_device(options.device)
    require_scores(options.scores)
    protocols = get_protocols(options.protocol)
    if options.cache is not None and any(protocol.size is not None for protocol in protocols):
        raise InputError("--cache: predictions are saved at native size, so without protocol course-512")
    own = read_own_sets(options.sets) if options.sets else ()
    test_sets = find_test_sets(options.datasets, options.limit, own=own)
    for test_set in test_sets:
        check_masks(test_set)
    reader = open_shards([str(options.cityscapes)], "val") if options.cityscapes else None
    segmenter = wrap_checkpoint(checkpoint, device, options)
    with shared_staged_folder(options.out, ranks) as folder:
        subject = Subject(model=model_name(options, checkpoint), checkpoint=str(checkpoint))
        if options.cache is not None and ranks.is_first:
            make_folder(options.cache, "--cache")
            write_info(options.cache, CacheInfo(model=subject.model, checkpoint=subject.checkpoint))
        ranks.wait()
        if reader is not None:
            measured = _miou(segmenter, reader, options, folder, ranks)
            subject = dataclasses.replace(
                subject,
                miou=measured.miou,
                miou_ci=measured.miou_ci,
                ece=measured.ece,
                ece_ci=measured.ece_ci,
            )
        cells: list[Cell] = []
        for test_set in test_sets:
            cells += _evaluate_one(segmenter, test_set, protocols, subject, options, folder, ranks)
        records = [cell.record for cell in cells]
        if ranks.is_first:
            _write(folder, cells, f"{subject.model}: road anomalies")
    logger.info("%s: results of %d test sets", options.out, len(test_sets))
    return records


def _write(folder: Path, cells: Sequence[Cell], title: str) -> None:
    records = [cell.record for cell in cells]
    for name, render in RENDERINGS.items():
        (folder / name).write_text(render(records), encoding="utf-8")
    (folder / "per_image.csv").write_text(render_per_image(cells), encoding="utf-8")
    names = {cell.record.dataset: cell.folder for cell in cells}
    drawn = {name: folder / f"{of_set}.png" for name, of_set in names.items()}
    pictures = {name: path.read_bytes() for name, path in drawn.items() if path.is_file()}
    (folder / "report.html").write_text(render_page(title, cells, pictures), encoding="utf-8")
    for cell in cells:
        record, counts = cell.record, cell.measurement.counts
        stems = tuple(cell.stems[image] for image in counts.images.tolist())
        path = sketch_path(folder, record.dataset, record.protocol, record.score)
        write_sketch(path, Sketch(counts, stems, record.protocol))


RENDERINGS: dict[str, Callable[[Sequence[Record]], str]] = {
    "results.json": render_json,
    "results.csv": render_csv,
    "results.md": render_markdown,
    "results.tex": render_latex,
}


def _evaluate_one(
    segmenter: Segmenter,
    test_set: TestSet,
    protocols: Sequence[Protocol],
    subject: Subject,
    options: EvaluateOptions,
    folder: Path,
    ranks: Ranks,
) -> list[Cell]:
    logger.info("%s: %d images", test_set.name, len(test_set))
    result = evaluate_test_set(
        segmenter.segment,
        test_set,
        protocols,
        subject,
        window=segmenter.window,
        windows_at_once=options.windows_at_once,
        scores=options.scores,
        num_exhibits=options.pictures,
        components=options.components,
        scratch=folder,
        ranks=ranks,
        keep=_keeper(segmenter, options, test_set.convention.folder),
    )
    if ranks.is_first:
        stems = tuple(frame.stem for frame in test_set.frames)
        convention = test_set.convention
        _finish_cache(options, segmenter, convention.folder, convention.name, convention.is_benchmark, stems)
    for record in result.records:
        assert record.ap is not None
        assert record.fpr95 is not None
        logger.info("  %-10s AP %6.2f  FPR95 %6.2f", record.score, 100 * record.ap, 100 * record.fpr95)
    if result.exhibits:
        picture = draw_grid(f"{subject.model} on {test_set.name}", result.exhibits)
        (folder / f"{test_set.convention.folder}.png").write_bytes(encode_png(picture))
    return result.cells


def _miou(
    segmenter: Segmenter, reader: ShardReader, options: EvaluateOptions, folder: Path, ranks: Ranks
) -> MiouResult:
    count = min(options.limit or len(reader), len(reader))
    logger.info("Cityscapes val: %d images", count)
    mine = range(ranks.rank, count, ranks.count)
    result = evaluate_miou(
        segmenter.segment,
        (decode_scene(reader, i) for i in mine),
        window=segmenter.window,
        windows_at_once=options.windows_at_once,
        num_samples=len(mine),
        scratch=folder,
        ranks=ranks,
        keep=_keeper(segmenter, options, CLOSED_SET),
    )
    if ranks.is_first:
        _finish_cache(options, segmenter, CLOSED_SET, "Cityscapes val", False, tuple(reader.keys[:count]))
    logger.info("  mIoU %.2f, ECE %.2f", 100 * result.miou, 100 * result.ece)
    return result


def _keeper(
    segmenter: Segmenter, options: EvaluateOptions, folder: str
) -> Callable[[int, np.ndarray], None] | None:
    """Return what saves the predictions of each frame of a set; None without --cache."""
    if options.cache is None or segmenter.recorder is None:
        return None
    path, recorder = options.cache / folder, segmenter.recorder

    def keep(position: int, target: np.ndarray) -> None:
        write_frame(path, position, target, recorder.take())

    return keep


def _finish_cache(
    options: EvaluateOptions,
    segmenter: Segmenter,
    folder: str,
    name: str,
    is_benchmark: bool,
    stems: tuple[str, ...],
) -> None:
    if options.cache is not None:
        cached = CachedSet(
            folder=folder, name=name, is_benchmark=is_benchmark, window=segmenter.window, stems=stems
        )
        write_index(options.cache, cached)


def wrap_checkpoint(checkpoint: Path, device: torch.device, options: EvaluateOptions) -> Segmenter:
    """Load the network of a checkpoint onto the device.

    Raises:
        InputError: the checkpoint is missing or broken, has not what a score reads, or has other classes than
            those of `--cityscapes`; or this platform cannot compile.
    """
    model = load_segmenter(checkpoint).to(device)
    require_readable(model, options.scores, f"--scores: {checkpoint}")
    if options.compile:
        compile_model(model, device, "--compile")
    num_classes = model.config.num_classes if isinstance(model, EoMT) else NUM_CLASSES
    if options.cityscapes is not None and num_classes != NUM_CLASSES:
        raise InputError(
            f"--cityscapes: {checkpoint} has {num_classes} classes, Cityscapes {NUM_CLASSES}; leave it out "
            f"to measure anomaly scores alone"
        )
    logger.info("%s on %s", checkpoint, device)
    recorder = PredictionRecorder(num_classes) if options.cache is not None else None
    segment = make_segment(model, device, options.precision, options.scores, recorder)
    return Segmenter(segment, model.image_size, recorder)


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is the first GPU, or the CPU where there is none.

    Raises:
        InputError: no such device, or it is not on this machine.
    """
    if name == "auto":
        return device_of_rank()
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise InputError(f"--device: got {name!r}; allowed are auto, cpu, cuda and cuda:N")
    present = torch.cuda.device_count()
    if kind == "cuda" and int(number or 0) >= present:
        raise InputError(f"--device {name}: this machine has {present} CUDA devices")
    return torch.device(name)


def model_name(options: EvaluateOptions, checkpoint: Path) -> str:
    """Return `--name`, or the name of the run that the checkpoint belongs to; a limited run says so."""
    path = checkpoint.resolve()
    of_run = path.parent.parent.name if path.parent.name in (CHECKPOINTS_FOLDER, BEST_FOLDER) else path.name
    limited = f" (first {options.limit} frames)" if options.limit else ""
    return (options.name or of_run) + limited


if __name__ == "__main__":
    run_program(main)
