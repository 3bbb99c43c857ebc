"""One evaluation: inputs checked and opened, in the order of what costs least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from eval.evaluate import Evaluation
from eval.key import hash_key, network_key
from eval.part import ClosedSetPart
from eval.predict.own_model import open_own_model
from eval.predict.predictions import CacheInfo, PredictionCache, PredictionRecorder
from eval.predict.score_maps import open_score_maps, require_map_folder
from eval.predict.windows import ModelSource
from eval.protocol import get_protocols
from eval.report.record import Record
from eval.result import require_place
from eval.sets.benchmarks import (
    read_own_sets,
    require_no_benchmark,
    require_no_benchmark_scenes,
    require_own_sets,
)
from eval.sets.registry import TestSet, check_masks, find_test_sets, read_image
from eval.store import ALONE, Worker
from jobs.evaluate import EvaluateOptions
from jobs.work.model_options import join_task
from models.segmenter import choose_device, open_predictor
from models.weights.run_files import CONFIG_NAME, run_of
from shards.errors import InputError
from shards.files import require_title
from shards.manifest import read_manifest
from shards.prepare.objects import find_test_categories
from shards.reader import ShardReader, open_shards
from shards.scene import require_scenes
from shards.schema import ClassTable
from shards.settings import read_settings

_ALONE = "leave it out to measure anomaly scores alone"


def evaluate(options: EvaluateOptions, worker: Worker = ALONE) -> list[Record]:
    """Check all inputs, in the order of what costs least, then score what is not finished, and write.

    Nothing is written where an option, test set, shard or checkpoint is wrong, which is an InputError. Of
    several workers the first one measures and writes, and the others return nothing.
    """
    worker = join_task(options.task, worker)
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
    model = _open_source(source, options, device, test_sets, recorder, scenes)
    network = network_key(model.fingerprint, options.precision, options.compile, device)
    info = CacheInfo(model=title, checkpoint=str(source), fingerprint=hash_key(network), limit=options.limit)
    info = replace(info, classes=scenes.classes.names) if scenes else info
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


def _find_source(options: EvaluateOptions) -> Path:
    """Return the checkpoint, the Python file or the folder of maps, and check scores as far as names tell."""
    if options.score_maps is not None:
        require_map_folder(options.score_maps, options.scores)
        return options.score_maps
    return options.find_source(options.scores, "--scores")


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
    scenes = open_shards([str(cityscapes)], "val", "--cityscapes")
    require_scenes(scenes)
    require_no_benchmark_scenes(scenes, f"--cityscapes {cityscapes}")
    return scenes


def _open_source(
    source: Path,
    options: EvaluateOptions,
    device: torch.device,
    test_sets: Sequence[TestSet],
    recorder: PredictionRecorder,
    scenes: ShardReader | None,
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
            check_classes=partial(_require_classes, scenes, source) if scenes else None,
            recorder=recorder if options.cache else None,
        )
    first = read_image(test_sets[0].frames[0])
    model, num_classes = open_own_model(options.model_file, first, options.scores)
    if scenes is not None and num_classes != len(scenes.classes):
        held = f"{scenes.shards[0].title or 'Cityscapes'} has {len(scenes.classes)}"
        given = f"{options.model_file} answers logits of {num_classes} classes, {held}"
        raise InputError(f"--cityscapes: {given}; {_ALONE}")
    return model if scenes is None else model.with_classes(scenes.classes)


def _require_classes(scenes: ShardReader, source: Path, classes: ClassTable) -> None:
    title = scenes.shards[0].title or "Cityscapes"
    classes.require_fit(scenes.classes, f"--cityscapes: {source}", title, _ALONE)


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
