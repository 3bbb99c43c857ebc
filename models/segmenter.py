"""Predictors of networks: from windows of pixels, or images, to class scores per class and maps of scores."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from eval.predict.predictions import PredictionRecorder
from eval.predict.queries import QueryOutputs
from eval.predict.score_names import DEFAULT_SCORES, NEEDS, RATIO
from eval.predict.strips import read_queries
from eval.predict.windows import ModelSource, Predictor, SlidingPredictor, WindowPredictor, describe_input
from models.config import Precision
from models.eomt import EoMT, Prediction
from models.erfnet import ERFNet
from models.heads import IsoMaxHead
from models.weights.adapter import is_adapter_folder
from models.weights.checkpoint import describe_head, load_segmenter
from models.weights.files import WEIGHT_SUFFIXES, hash_part, list_parts
from models.weights.formats import find_weight_file, read_settings
from shards.errors import InputError
from shards.schema import NUM_CLASSES, ClassTable

logger = logging.getLogger(__name__)

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def require_readable(model: EoMT | ERFNet, scores: Sequence[str], where: str) -> None:
    """Check that a network has the queries, prototypes or outlier class that `scores` read.

    `where` is the setting and the checkpoint, for the message.
    """
    has = model.config.parts if isinstance(model, EoMT) else set()
    for name in scores:
        if (needed := NEEDS[name]) and needed not in has:
            raise InputError(f"{where} has no {re.sub('^an? ', '', needed)}, which {name} reads")


def read_prediction(
    model: EoMT | ERFNet,
    prediction: Prediction | Tensor,
    size: tuple[int, int],
    scores: Sequence[str] = (),
    *,
    whole: bool = False,
) -> Float[Tensor, "B N H W"]:
    """Turn a network's prediction into class scores of the classes and, behind it, maps of query scores.

    EoMT's class scores are `eval.predict.queries.pixel_class_scores`; ERFNet's are its logits without void.

    Args:
        size: (H, W) of the window.
        scores: names; those in `eval.predict.scores.SCORES` are ignored.
        whole: see `read_queries`.
    """
    if isinstance(prediction, Tensor):
        return prediction[:, :NUM_CLASSES].float()
    assert isinstance(model, EoMT)
    masks, classes = prediction.mask_logits[-1], prediction.class_logits[-1]
    maps = prediction.outlier_maps
    queries = QueryOutputs(masks, classes, model.config.num_classes, outlier_maps=maps)
    if isinstance(model.class_head, IsoMaxHead):
        assert prediction.class_distances is not None
        farthest = 2 * model.class_head.distance_scale.float().abs()
        queries = queries._replace(class_distances=prediction.class_distances[-1], farthest=farthest)
    return read_queries(queries, size, scores, whole=whole)


def make_predictor(
    model: EoMT | ERFNet,
    device: torch.device | str,
    precision: Precision = "float32",
    scores: Sequence[str] = (),
    recorder: PredictionRecorder | None = None,
    unmasked: Bool[Tensor, "L 1 Q"] | None = None,
) -> WindowPredictor:
    """Make a predictor of windows of `model.image_size`, or of what else its `stride` allows, whose maps
    are those of `read_prediction`.

    Args:
        model: in evaluation mode, on `device`.
        precision: float32, which on a GPU leaves out TF32 as well, or autocast of the network; class scores
            and scores are float32 either way.
        recorder: gets the predictions, for a cache.
        unmasked: as of `EoMT.forward`, of a network whose masks are not all released; None: no masks.
    """
    kind = torch.device(device).type
    if recorder is not None:
        _introduce(model, recorder)

    @torch.inference_mode()
    def predict(window: Tensor) -> Tensor:
        exact: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if kind == "cuda" and precision == "float32":  # by default cuDNN convolves with 10 bits of 23
            exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with exact, torch.autocast(kind, dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            if unmasked is None:
                prediction = model(window.to(device))
            else:
                prediction = model(window.to(device), unmasked.expand(-1, len(window), -1).to(device))
        if recorder is not None and isinstance(prediction, Tensor):
            recorder.add(prediction[:, :NUM_CLASSES])
        elif recorder is not None:
            ratio = [maps[RATIO]] if (maps := prediction.outlier_maps) else []
            recorder.add(prediction.mask_logits[-1], prediction.class_logits[-1], *ratio)
        return read_prediction(model, prediction, (window.shape[-2], window.shape[-1]), scores)

    return predict


def _introduce(model: EoMT | ERFNet, recorder: PredictionRecorder) -> None:
    """Tell a recorder whose predictions it gets."""
    recorder.num_classes, recorder.window = len(model.classes), model.image_size
    if isinstance(model, EoMT) and isinstance(model.class_head, IsoMaxHead):
        recorder.entropic_scale = model.class_head.entropic_scale
    recorder.sees = describe_input(model.image_size, model.stride)


def compile_model(model: nn.Module, device: torch.device, setting: str) -> None:
    """Let `torch.compile` replace the model's forward pass, in place: the names of its weights stay.

    Results stay the same to rounding; the first step of each shape takes minutes for a large model. An
    InputError, which `setting` opens, says why this platform cannot compile.
    """
    try:  # on something small: where it fails, the reader should not have waited for the model
        torch.compile(torch.square)(torch.ones(2, device=device))
    except Exception as error:  # each backend raises its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{setting}: torch.compile does not work on this platform: {reason}") from None
    model.compile()


def open_predictor(
    checkpoint: Path,
    scores: tuple[str, ...],
    device: torch.device,
    precision: Precision = "float32",
    *,
    windows_at_once: int = 4,
    compiled: bool = False,
    check_classes: Callable[[ClassTable], None] | None = None,
    recorder: PredictionRecorder | None = None,
    setting: str = "--scores",
) -> ModelSource:
    """Make a predictor of a checkpoint, which is loaded onto the device when it is needed.

    `load` raises an InputError where the checkpoint is broken, or unfit for scores or classes.

    Args:
        checkpoint: as `find_checkpoint` returns it.
        scores: the default ones stand for those of an outlier head too, where there is one.
        check_classes: raises an InputError where the classes are not those that they are compared with.
        recorder: gets the predictions, for a cache.
        setting: the scores', for messages.
    """
    scores += describe_head(checkpoint).scores if scores == DEFAULT_SCORES else ()

    def load() -> Predictor:
        model = load_segmenter(checkpoint).to(device)
        require_readable(model, scores, f"{setting}: {checkpoint}")
        if compiled:
            compile_model(model, device, "--compile")
        if check_classes is not None:
            check_classes(model.classes)
        logger.info("%s on %s", checkpoint, device)
        predict = make_predictor(model, device, precision, scores, recorder)
        known = (isinstance(model, EoMT), model.stride, model.classes)
        return SlidingPredictor(predict, model.image_size, windows_at_once, *known)

    config, _ = read_settings(find_weight_file(checkpoint))
    sets = config.trained_on if config else ()
    return ModelSource(str(checkpoint), hash_checkpoint(checkpoint), scores, load, sets)


def hash_checkpoint(path: Path) -> str:
    """Return a hash of the weights and descriptions that `path` (a file or folder) holds."""
    if path.is_file():
        files = list_parts(path)
    elif is_adapter_folder(path):
        files = [file for file in sorted(path.iterdir()) if file.suffix in WEIGHT_SUFFIXES]
    else:
        files = list_parts(find_weight_file(path))
    if path.is_dir():
        files = [*files, *sorted(path.glob("*.json"))]
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(f"{file.name} {hash_part(file)}".encode()).digest())
    return digest.hexdigest()


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is this rank's GPU of its machine, or the CPU without any."""
    present = torch.cuda.device_count()
    if name == "auto" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % present)
    if name == "auto":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise InputError(f"--device: got {name!r}; allowed are auto, cpu, cuda and cuda:N")
    if kind == "cuda" and int(number or 0) >= present:
        raise InputError(f"--device {name}: this machine has {present} CUDA devices")
    return torch.device(name)
