"""Score a checkpoint on the anomaly test sets: numbers, tables and pictures.

python -m jobs.evaluate --checkpoint RUN --datasets Validation_Dataset --out RUN/eval
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from eval.datasets import TestSet, check_masks, find_test_sets
from eval.pictures import draw_grid, encode_png
from eval.protocol import Protocol, get_protocol
from eval.report import Record, render_csv, render_json, render_latex, render_markdown
from eval.run import Subject, evaluate_miou, evaluate_test_set
from eval.scores import DEFAULT_SCORES, require_scores
from jobs.command_line import parse_options, run_program
from jobs.segmenter import make_segment, require_readable
from models.checkpoint import CHECKPOINTS_FOLDER, find_checkpoint, load_segmenter
from shards.errors import InputError
from shards.reader import ShardReader, decode_scenes, open_shards
from shards.staging import require_free, staged_folder
from trainer.runtime import compile_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Score a checkpoint on the anomaly test sets that are present."""

    checkpoint: Path
    """A run folder, whose newest checkpoint is taken; a checkpoint folder; or weights of another origin: a
    file of tue-mps/eomt, a Hugging Face folder of EoMT, an ERFNet `.pth` (`jobs.doctor checkpoint` tells)."""
    datasets: Path
    """Folder that holds the test sets (RoadAnomaly21, RoadObsticle21, FS_LostFound_full, fs_static,
    RoadAnomaly), each with images/ and labels_masks/."""
    out: Path
    """New or empty folder for results.json, .csv, .md, .tex and the pictures."""
    cityscapes: Path | None = None
    """Folder written by `jobs.prepare cityscapes`; its val split gives the mIoU, which is missing without."""
    scores: tuple[str, ...] = DEFAULT_SCORES
    """Which anomaly scores: MSP, MaxLogit, MaxEntropy, RbA, Energy of any network; MaskEnergy, EAM of EoMT;
    MinDistance of class head isomax; UNO of a trained outlier class."""
    protocol: str = "native"
    """How images, windows, ground truth and metrics are treated; stated below every table."""
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


def main(arguments: Sequence[str]) -> None:
    """Run one evaluation from the command line and print its table."""
    options: EvaluateOptions = parse_options(EvaluateOptions, arguments, program="jobs.evaluate")
    records = evaluate(options)
    print(render_markdown(records), end="")


def evaluate(options: EvaluateOptions) -> list[Record]:
    """Check all inputs, then load the model, score every test set, and write the results.

    Raises:
        InputError: an option, test set, shard or checkpoint is wrong. Nothing is written then.
    """
    require_free(options.out)
    checkpoint = find_checkpoint(options.checkpoint)  # once: a run that still trains saves newer ones
    device = choose_device(options.device)
    require_scores(options.scores)
    protocol = get_protocol(options.protocol)
    test_sets = find_test_sets(options.datasets, options.limit)
    for test_set in test_sets:
        check_masks(test_set)
    reader = open_shards([str(options.cityscapes)], "val") if options.cityscapes else None
    segmenter = wrap_checkpoint(checkpoint, device, options)
    with staged_folder(options.out) as folder:
        miou = _miou(segmenter, reader, options) if reader else None
        subject = Subject(model=model_name(options, checkpoint), checkpoint=str(checkpoint), miou=miou)
        records: list[Record] = []
        for test_set in test_sets:
            records += _evaluate_one(segmenter, test_set, protocol, subject, options, folder)
        for name, render in RENDERINGS.items():
            (folder / name).write_text(render(records), encoding="utf-8")
    logger.info("%s: results of %d test sets", options.out, len(test_sets))
    return records


RENDERINGS: dict[str, Callable[[Sequence[Record]], str]] = {
    "results.json": render_json,
    "results.csv": render_csv,
    "results.md": render_markdown,
    "results.tex": render_latex,
}


def _evaluate_one(
    segmenter: Segmenter,
    test_set: TestSet,
    protocol: Protocol,
    subject: Subject,
    options: EvaluateOptions,
    folder: Path,
) -> list[Record]:
    logger.info("%s: %d images", test_set.name, len(test_set))
    result = evaluate_test_set(
        segmenter.segment,
        test_set,
        protocol,
        subject,
        window=segmenter.window,
        windows_at_once=options.windows_at_once,
        scores=options.scores,
        num_exhibits=options.pictures,
        scratch=folder,
    )
    for record in result.records:
        assert record.ap is not None
        assert record.fpr95 is not None
        logger.info("  %-10s AP %6.2f  FPR95 %6.2f", record.score, 100 * record.ap, 100 * record.fpr95)
    if result.exhibits:
        picture = draw_grid(f"{subject.model} on {test_set.name}", result.exhibits)
        (folder / f"{test_set.convention.folder}.png").write_bytes(encode_png(picture))
    return result.records


def _miou(segmenter: Segmenter, reader: ShardReader, options: EvaluateOptions) -> float:
    count = min(options.limit or len(reader), len(reader))
    logger.info("Cityscapes val: %d images", count)
    result = evaluate_miou(
        segmenter.segment,
        decode_scenes(reader, count),
        window=segmenter.window,
        windows_at_once=options.windows_at_once,
        num_samples=count,
    )
    logger.info("  mIoU %.2f", 100 * result.miou)
    return result.miou


def wrap_checkpoint(checkpoint: Path, device: torch.device, options: EvaluateOptions) -> Segmenter:
    """Load the network of a checkpoint onto the device.

    Raises:
        InputError: the checkpoint is missing or broken, or has not what a score reads, or this platform
            cannot compile.
    """
    model = load_segmenter(checkpoint).to(device)
    require_readable(model, options.scores, f"--scores: {checkpoint}")
    if options.compile:
        compile_model(model, device, "--compile")
    logger.info("%s on %s", checkpoint, device)
    return Segmenter(make_segment(model, device, options.precision, options.scores), model.image_size)


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is the first GPU, or the CPU where there is none.

    Raises:
        InputError: no such device, or it is not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
    of_run = path.parent.parent.name if path.parent.name == CHECKPOINTS_FOLDER else path.name
    limited = f" (first {options.limit} frames)" if options.limit else ""
    return (options.name or of_run) + limited


if __name__ == "__main__":
    run_program(main)
