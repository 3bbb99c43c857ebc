"""Validation inside a run by `eval`'s own code: mIoU, anomaly metrics of pasted objects, probes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from jaxtyping import UInt8

from eval.cell import Cell, Subject, TestSetResult
from eval.evaluate import evaluate_test_set
from eval.metrics.closed_set import evaluate_miou
from eval.predict.scores import require_scores
from eval.predict.strips import answer_pixels
from eval.predict.windows import Segment, segment_in_windows
from eval.protocol import get_protocol
from eval.ranks import Ranks
from eval.report.figures import Example, add_title, choose_examples, draw_panels
from eval.sets.benchmarks import require_no_benchmark
from eval.sets.pasted import require_unseen
from eval.sets.registry import TestSet, check_masks, find_test_sets
from models.eomt import EoMT
from models.lora import merged
from models.segmenter import make_segment, require_readable
from outlier_paste.config import PasteConfig
from shards.errors import InputError
from shards.reader import ShardReader, open_shards
from shards.scene import decode_scene, require_scenes
from shards.schema import NORMAL, VOID, VOID_ID
from trainer.tracking import TrackingConfig, show_distribution, show_picture, show_precision_recall


def draw_scenes(
    reader: ShardReader,
    num_frames: int,
    num_probes: int,
    segment: Segment,
    window: tuple[int, int],
    scores: Sequence[str],
    step: int,
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw `num_probes` of the first `num_frames` scenes, with their true and predicted classes and scores.

    Args:
        segment: the network, built for `scores`.
        window: its input size (h, w).
        step: for the title.
    """
    exhibits = []
    for index in sorted(choose_examples(num_frames, num_probes)):
        scene = decode_scene(reader, index)
        evidence = segment_in_windows(torch.from_numpy(scene.image).permute(2, 0, 1), segment, window)
        answers = answer_pixels(evidence, scores)
        target = np.where(scene.label == VOID_ID, VOID, NORMAL).astype(np.uint8)
        shown = Example(
            scene.key, scene.image, target, answers.prediction, answers.scores, scene.label
        ).shrink()
        exhibits.append(shown)
    return add_title(f"validation scenes at step {step}", draw_panels(exhibits))


logger = logging.getLogger(__name__)

PROTOCOL = "native"


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Validation while training, on Cityscapes val and on objects pasted onto it; never on a benchmark."""

    shards: tuple[str, ...] = ()
    """Prepared Cityscapes whose `split` is measured by mIoU; empty: no mIoU."""
    split: str = "val"
    """Which part of the shards."""
    pasted: str = ""
    """Folder that `jobs.paste_validation` wrote, measured by AP and FPR95 of `scores`; empty: none. Scores of
    its pixels lie in the run's folder meanwhile, 4 bytes per pixel and score."""
    scores: tuple[str, ...] = ("MSP", "RbA")
    """Anomaly scores that `pasted` is measured by; names as in `jobs.evaluate --scores`."""
    limit: int = 0
    """How many frames of each at most; 0: all."""
    select: str = ""
    """The one metric by which `best/` is chosen and a run ends early: miou, or ap/SCORE or fpr95/SCORE of
    `scores`, such as ap/RbA. Empty: the newest checkpoints alone are kept."""
    patience: int = 0
    """End the run after so many validations in a row without a better `select`; 0: never. A run that ended
    so ends again on --resume, which may raise the patience."""

    def __post_init__(self) -> None:
        require_scores(self.scores, "validation.scores")
        if self.limit < 0:
            raise InputError(f"validation.limit must be 0 (all) or more, got {self.limit}")
        if self.patience < 0:
            raise InputError(f"validation.patience must be 0 (never) or more, got {self.patience}")
        metrics = self.metrics()
        if self.select and self.select not in metrics:
            known = ", ".join(metrics) or "nothing, as validation.shards and validation.pasted are empty"
            raise InputError(f"validation.select: {self.select!r} is not measured; measured: {known}")
        if self.patience and not self.select:
            raise InputError("validation.patience: needs validation.select, the metric it waits for")

    def metrics(self) -> list[str]:
        """Name what is measured."""
        scores = self.scores if self.pasted else ()
        return [
            *(["miou"] if self.shards else []),
            *(f"{metric}/{score}" for score in scores for metric in ("ap", "fpr95")),
        ]


@dataclass(frozen=True)
class ValidationSets:
    """What a run is measured on, opened and checked."""

    scenes: ShardReader | None
    """For the mIoU."""
    pasted: TestSet | None

    def __bool__(self) -> bool:
        return self.scenes is not None or self.pasted is not None


def open_validation(config: ValidationConfig, paste: PasteConfig) -> ValidationSets:
    """Open what `config` names.

    Raises:
        InputError: it is missing, broken or a benchmark, or holds objects that this run pastes in training.
    """
    scenes, pasted = None, None
    if config.shards:
        for place in config.shards:
            require_no_benchmark(place, "validation.shards")
        scenes = open_shards(config.shards, config.split)
        require_scenes(scenes)
    if config.pasted:
        require_no_benchmark(config.pasted, "validation.pasted")
        require_unseen(Path(config.pasted), paste, "validation.pasted")
        (pasted,) = find_test_sets(Path(config.pasted), config.limit or None, "validation.pasted")
        check_masks(pasted)
    return ValidationSets(scenes, pasted)


@dataclass(frozen=True)
class Validation:
    """Measures a model; every rank has to call it, and all get the same numbers."""

    config: ValidationConfig
    sets: ValidationSets
    accelerator: Accelerator
    scratch: Path
    """Folder that all ranks see."""
    tracking: TrackingConfig
    """What is shown beside the numbers."""

    def __call__(self, model: EoMT, step: int) -> dict[str, float]:
        """Measure `model`, in evaluation mode, and log and show it; by TensorBoard tag.

        Fractions in [0, 1], and per score the gap between the medians of anomalous and normal pixels.
        """
        with merged(model):
            scalars = self._measure_scenes(model, step) | self._measure_pasted(model, step)
        named = [f"{tag.removeprefix('validation/')} {value:.4f}" for tag, value in scalars.items()]
        logger.info("validation at step %d: %s", step, "  ".join(named))
        return scalars

    def _measure_scenes(self, model: EoMT, step: int) -> dict[str, float]:
        reader, ranks = self.sets.scenes, self._ranks()
        if reader is None:
            return {}
        count = min(self.config.limit or len(reader), len(reader))
        result = evaluate_miou(
            make_segment(model, self.accelerator.device),
            (decode_scene(reader, index) for index in range(ranks.rank, count, ranks.count)),
            window=model.image_size,
            num_samples=len(range(ranks.rank, count, ranks.count)),
            intervals=False,
            scratch=self.scratch,
            ranks=ranks,
        )
        if self._num_probes and ranks.is_first:
            names = self.config.scores
            segment = make_segment(model, self.accelerator.device, scores=names)
            sheet = draw_scenes(reader, count, self._num_probes, segment, model.image_size, names, step)
            show_picture(self.accelerator, "probes/scenes", sheet, step)
        return {"validation/miou": result.miou}

    def _measure_pasted(self, model: EoMT, step: int) -> dict[str, float]:
        if self.sets.pasted is None:
            return {}
        names = self.config.scores
        result = evaluate_test_set(
            make_segment(model, self.accelerator.device, scores=names),
            self.sets.pasted,
            get_protocol(PROTOCOL),
            Subject(model=self.scratch.name, checkpoint=f"step {step}"),
            window=model.image_size,
            scores=names,
            num_exhibits=self._num_probes,
            components=False,
            intervals=False,
            scratch=self.scratch,
            ranks=self._ranks(),
        )
        self._show_pasted(result, step)
        shared = [_scalars_of(result.cells)]  # the first rank has measured, the others have nothing
        broadcast_object_list(shared)
        return shared[0]

    def _show_pasted(self, result: TestSetResult, step: int) -> None:
        if result.exhibits:
            sheet = add_title(f"pasted objects at step {step}", draw_panels(result.exhibits))
            show_picture(self.accelerator, "probes/pasted", sheet, step)
        for cell in result.cells if self.tracking.curves else ():
            name, measured = cell.record.score, cell.measurement
            show_precision_recall(self.accelerator, f"precision_recall/{name}", measured.counts, step)
            show_distribution(self.accelerator, f"scores/{name}", measured.distribution, step)

    @property
    def _num_probes(self) -> int:
        return self.tracking.probes if self.tracking.tensorboard else 0

    def _ranks(self) -> Ranks:
        accelerator = self.accelerator
        return Ranks(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone)


def _scalars_of(cells: list[Cell]) -> dict[str, float]:
    found = {}
    for cell in cells:
        assert cell.record.ap is not None
        assert cell.record.fpr95 is not None
        found[f"validation/ap/{cell.record.score}"] = cell.record.ap
        found[f"validation/fpr95/{cell.record.score}"] = cell.record.fpr95
        found[f"validation/gap/{cell.record.score}"] = cell.measurement.distribution.gap
    return found


def build_validation(
    config: ValidationConfig,
    paste: PasteConfig,
    tracking: TrackingConfig,
    model: EoMT,
    accelerator: Accelerator,
    folder: Path,
) -> Validation | None:
    """Open the validation sets of a run and check that its model has what the scores read; None without any.

    Raises:
        InputError: as `open_validation`, or the model lacks something.
    """
    sets = open_validation(config, paste)
    if sets:  # probes of scenes show the scores too
        require_readable(model, config.scores, "validation.scores: the model")
    return Validation(config, sets, accelerator, folder, tracking) if sets else None
