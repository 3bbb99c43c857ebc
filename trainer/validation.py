"""Validation inside a run: mIoU, anomaly metrics of pasted objects, probes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from eval.part import ClosedSetPart, TestSetPart, evaluate_closed_set, evaluate_test_set
from eval.predict.strips import predict_pixels
from eval.predict.windows import Predictor, SlidingPredictor
from eval.protocol import get_protocol
from eval.report.panels import Example, add_title, choose_examples, draw_panels
from eval.sets.benchmarks import require_no_benchmark, require_no_benchmark_scenes, require_own_sets
from eval.sets.registry import TestSet, check_masks, find_test_sets
from eval.store import Worker
from models.adapt import merged
from models.eomt import EoMT
from models.segmenter import make_predictor, require_readable
from outlier_paste.config import PasteConfig
from outlier_paste.validation_set import require_unseen
from shards.reader import ShardReader, open_shards
from shards.scene import decode_scene, require_scenes
from shards.schema import NORMAL, VOID, VOID_ID, ClassTable
from trainer.checkpoint import show_metric
from trainer.config import TrackingConfig, ValidationConfig
from trainer.tracking import show_distribution, show_picture, show_precision_recall

logger = logging.getLogger(__name__)

PROTOCOL = "native"
MakePredictor = Callable[..., Predictor]
"""Names of scores to a predictor."""


@dataclass(frozen=True)
class Validation:
    """Measures a model by `eval`'s own code; every rank has to call it, and all get the same numbers."""

    config: ValidationConfig
    scenes: ShardReader | None
    """Scenes for the mIoU."""
    pasted: TestSet | None
    accelerator: Accelerator
    scratch: Path
    """Folder that all ranks see."""
    tracking: TrackingConfig
    """Settings of the probes and curves that are shown beside the numbers."""
    ask: Callable[[], None] = lambda: None
    """Called by all ranks before each image and wherever they wait; raises where the run must leave."""

    def __call__(self, model: EoMT, step: int, unmasked: Tensor | None = None) -> dict[str, float]:
        """Measure `model`, in evaluation mode, and log and show it; by TensorBoard tag.

        Fractions in [0, 1], and per score the gap between the medians of anomalous and normal pixels.
        `unmasked` as of `models.segmenter.make_predictor`. What `ask` raises ends it, and leaves nothing.
        """

        def make(scores: tuple[str, ...] = ()) -> Predictor:
            predict = make_predictor(model, self.accelerator.device, scores=scores, unmasked=unmasked)
            return SlidingPredictor(predict, model.image_size)

        with merged(model):
            scalars = self._measure_scenes(make, step) | self._measure_pasted(make, step, model.classes)
        metrics = {tag.removeprefix("Validation/"): value for tag, value in scalars.items()}
        named = [f"{name} {show_metric(name, value)}" for name, value in metrics.items()]
        logger.info("validation at step %d: %s", step, "  ".join(named))
        return scalars

    def _measure_scenes(self, make: MakePredictor, step: int) -> dict[str, float]:
        if self.scenes is None:
            return {}
        count = min(self.config.limit or len(self.scenes), len(self.scenes))
        part, worker = ClosedSetPart(self.scenes, count), self._worker()
        result = evaluate_closed_set(part, make(), self.scratch, worker)
        if self._num_probes and worker.leads:
            chosen = sorted(choose_examples(count, self._num_probes))
            probes = [self._draw_scene(make, self.scenes, index) for index in chosen]
            self._show("scenes", f"validation scenes at step {step}", probes, step, self.scenes.classes)
        return {"Validation/miou": result.miou}

    def _draw_scene(self, make: MakePredictor, reader: ShardReader, index: int) -> Example:
        scene, names = decode_scene(reader, index), self.config.scores
        predicted = predict_pixels(make(names)(scene.image), names)
        target = np.where(scene.label == VOID_ID, VOID, NORMAL).astype(np.uint8)
        example = Example(scene.key, scene.image, target, predicted.classes, predicted.scores, scene.label)
        return example.shrink()

    def _measure_pasted(self, make: MakePredictor, step: int, classes: ClassTable) -> dict[str, float]:
        if self.pasted is None:
            return {}
        names, scalars = self.config.scores, dict[str, float]()
        part = TestSetPart(
            test_set=self.pasted,
            protocols=[get_protocol(PROTOCOL)],
            scores=names,
            num_examples=self._num_probes,
            components=False,
            intervals=False,
        )
        result = evaluate_test_set(part, make(names), self.scratch, self._worker())
        for each in result.results:  # of the first rank, which has measured; the others have none
            record = each.record
            assert each.distribution is not None
            assert record.ap is not None
            assert record.fpr95 is not None
            scalars[f"Validation/ap/{record.score}"] = record.ap
            scalars[f"Validation/fpr95/{record.score}"] = record.fpr95
            scalars[f"Validation/gap/{record.score}"] = each.distribution.gap
            if self.tracking.curves:
                tag = f"precision_recall/{record.score}"
                show_precision_recall(self.accelerator, tag, each.counts, step)
                show_distribution(self.accelerator, f"scores/{record.score}", each.distribution, step)
        if result.examples:
            self._show("pasted", f"pasted objects at step {step}", result.examples, step, classes)
        shared = [scalars]
        broadcast_object_list(shared)
        return shared[0]

    def _show(
        self, name: str, title: str, examples: Sequence[Example], step: int, classes: ClassTable
    ) -> None:
        panels = add_title(title, draw_panels(examples, classes))
        show_picture(self.accelerator, f"probes/{name}", panels, step)

    @property
    def _num_probes(self) -> int:
        return self.tracking.probes if self.tracking.trackers else 0

    def _worker(self) -> Worker:
        accelerator = self.accelerator
        return Worker(accelerator.process_index, accelerator.num_processes, self.ask, self.ask)


def open_validation(
    config: ValidationConfig, paste: PasteConfig
) -> tuple[ShardReader | None, TestSet | None]:
    """Open the scenes for the mIoU and the pasted objects that `config` names."""
    scenes, pasted = None, None
    for place in config.shards:
        require_no_benchmark(place, "validation.shards")
    if config.shards:
        scenes = open_shards(config.shards, config.split, "validation.shards")
        require_scenes(scenes)
        require_no_benchmark_scenes(scenes, "validation.shards")
    if config.pasted:
        require_no_benchmark(config.pasted, "validation.pasted")
        require_unseen(Path(config.pasted), paste, "validation.pasted")
        (pasted,) = find_test_sets(Path(config.pasted), config.limit or None, "validation.pasted")
        check_masks(pasted)
        require_own_sets((pasted,), "validation.pasted")
    return scenes, pasted


def build_validation(
    config: ValidationConfig,
    paste: PasteConfig,
    tracking: TrackingConfig,
    model: EoMT,
    accelerator: Accelerator,
    folder: Path,
    ask: Callable[[], None] = lambda: None,
) -> Validation | None:
    """Open the validation sets of a run, and check that its model has what the scores read; None: no sets."""
    scenes, pasted = open_validation(config, paste)
    if scenes is None and pasted is None:
        return None
    require_readable(model, config.scores, "validation.scores: the model")  # probes of scenes show them too
    if scenes is not None:
        where, advice = "validation.shards: the model", "mIoU compares the same classes"
        model.classes.require_fit(scenes.classes, where, "the shards", advice)
    return Validation(config, scenes, pasted, accelerator, folder, tracking, ask)
