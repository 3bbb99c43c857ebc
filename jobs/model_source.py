"""What is evaluated: a checkpoint, a user's own model, or score maps."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from eval.predict.own_model import OwnSegment
from eval.predict.predictions import PredictionRecorder
from eval.predict.score_maps import MapFolder
from eval.predict.scores import DEFAULT_SCORES, SCORES, require_scores
from eval.protocol import get_protocols
from eval.sets.registry import TestSet, read_image
from jobs.evaluate_options import EvaluateOptions
from models.eomt import EoMT
from models.segmenter import Segmenter, compile_model, make_segment, require_readable
from models.weights.checkpoint import find_checkpoint, load_segmenter
from shards.errors import InputError
from shards.files import hash_file
from shards.schema import NUM_CLASSES

logger = logging.getLogger(__name__)

ANY_WINDOW = (1, 1)
"""Of what answers for whole images; nothing reads it."""


def find_source(options: EvaluateOptions) -> Path:
    """Return the checkpoint, the Python file or the folder of maps, and check scores as far as names tell.

    Raises:
        InputError: it is not there, or a score is unknown.
    """
    if options.model_file:
        return parse_model_file(options.model_file)[0]
    if options.score_maps is not None:
        if not options.score_maps.is_dir():
            raise InputError(f"--score_maps {options.score_maps}: no such folder")
        _name_of_maps(options.scores)
        if any(protocol.size is not None for protocol in get_protocols(options.protocol)):
            raise InputError("--score_maps: maps are of native size, so without protocol course-512")
        return options.score_maps
    require_scores(options.scores)
    assert options.checkpoint is not None
    return find_checkpoint(options.checkpoint)


@dataclass(frozen=True)
class OwnSource:
    """What stands in the place of a checkpoint, loaded and checked."""

    segmenter: Segmenter
    scores: tuple[str, ...]
    """Which are measured."""
    fingerprint: str
    """Of what the answers depend on: the maps; or the Python file and what it answers for the first image,
    which changes with its weights, wherever they lie."""


def open_own(source: Path, options: EvaluateOptions, test_sets: Sequence[TestSet]) -> OwnSource | None:
    """Load a user's model or maps, and settle which scores are measured; None: a checkpoint is asked for.

    Args:
        source: as `find_source` returns it.

    Raises:
        InputError: it is broken, or has not what a score needs.
    """
    if options.model_file:
        return _open_own_model(source, options, test_sets)
    if options.score_maps is not None:
        maps = MapFolder(source, test_sets, scale=options.map_range, is_limited=options.limit is not None)
        return OwnSource(Segmenter(maps, ANY_WINDOW), (_name_of_maps(options.scores),), maps.fingerprint)
    return None


def _open_own_model(source: Path, options: EvaluateOptions, test_sets: Sequence[TestSet]) -> OwnSource:
    segment = load_own_model(options.model_file)
    offer = segment.probe(read_image(test_sets[0].frames[0]))
    if options.cityscapes is not None and offer.num_classes != NUM_CLASSES:
        raise InputError(
            f"--cityscapes: {options.model_file} answers logits of {offer.num_classes} classes, Cityscapes "
            f"has {NUM_CLASSES}; leave it out to measure anomaly scores alone"
        )
    scores = segment.choose_scores(offer, options.scores)
    return OwnSource(Segmenter(segment, ANY_WINDOW), scores, f"{hash_file(source)} {offer.fingerprint}")


def _name_of_maps(scores: tuple[str, ...]) -> str:
    """Return what tables call the score of maps."""
    if scores == DEFAULT_SCORES:
        return "Score"
    if len(scores) != 1 or scores[0] in SCORES:
        raise InputError(
            f"--scores: got {', '.join(scores) or 'nothing'}; maps hold one score, of a name of your own "
            f"(not {', '.join(SCORES)}, which are computed here)"
        )
    return scores[0]


def parse_model_file(text: str, setting: str = "--model_file") -> tuple[Path, str]:
    """Split FILE.py:FUNCTION.

    Raises:
        InputError: there is no such file, or it is no Python file.
    """
    match = re.fullmatch(r"(?P<file>.+\.py)(?::(?P<function>\w+))?", text)
    if match is None or not Path(match["file"]).is_file():
        raise InputError(f"{setting} {text}: no such Python file; expected FILE.py or FILE.py:FUNCTION")
    return Path(match["file"]), match["function"] or "build"


def load_own_model(text: str, setting: str = "--model_file") -> OwnSegment:
    """Run a user's Python file and call its function. What the file itself does wrong keeps its traceback.

    Raises:
        InputError: there is no such file or function, or the function returns nothing that can be called.
    """
    path, function = parse_model_file(text, setting)
    name = f"own_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as dataclasses and pickle expect
    sys.path.insert(0, str(path.resolve().parent))  # for modules beside it
    spec.loader.exec_module(module)
    build = getattr(module, function, None)
    if not callable(build):
        names = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        there = ", ".join(names) or "none"
        raise InputError(f"{setting} {text}: no function {function} in it; there are {there}")
    model = build()
    if not callable(model):
        raise InputError(
            f"{setting} {text}: {function}() returns {type(model).__name__}; expected a function from an "
            f"image to logits or scores"
        )
    return OwnSegment(model, text)


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
