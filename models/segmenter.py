"""A network as what evaluation knows: a function from a window of pixels to evidence per class and scores."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from eval.predict.predictions import PredictionRecorder
from eval.predict.scores import QUERY_SCORES, QueryOutputs
from eval.predict.strips import read_queries
from eval.predict.windows import Segment
from models.eomt import EoMT, Prediction
from models.erfnet import ERFNet
from models.heads import IsoMaxHead
from shards.errors import InputError
from shards.schema import NUM_CLASSES

Precision = Literal["float32", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def require_readable(model: EoMT | ERFNet, scores: Sequence[str], where: str) -> None:
    """Check that a network has what `scores` read.

    Args:
        where: setting and checkpoint, for the message.

    Raises:
        InputError: a score needs queries, prototypes or an outlier class that the network lacks.
    """
    has = set()
    if isinstance(model, EoMT):
        has.add("queries")
        if isinstance(model.class_head, IsoMaxHead):
            has.add("class distances")
        if model.config.outlier_class == "trained":
            has.add("an outlier class")
    for name in scores:
        if name in QUERY_SCORES and QUERY_SCORES[name].needs not in has:
            raise InputError(
                f"{where} has no {QUERY_SCORES[name].needs.removeprefix('an ')}, which {name} reads"
            )


def read_prediction(
    model: EoMT | ERFNet,
    prediction: Prediction | Tensor,
    size: tuple[int, int],
    scores: Sequence[str] = (),
    *,
    whole: bool = False,
) -> Float[Tensor, "B N H W"]:
    """Turn what a network answers into evidence of the classes and, behind it, maps of query scores.

    EoMT's evidence is `eval.predict.scores.pixel_evidence`; ERFNet's its logits, the void channel dropped.

    Args:
        size: (H, W) of the window.
        scores: names; those that evidence suffices for are passed over.
        whole: see `read_queries`.
    """
    if isinstance(prediction, Tensor):
        return prediction[:, :NUM_CLASSES].float()
    assert isinstance(model, EoMT)
    masks, classes = prediction.mask_logits[-1], prediction.class_logits[-1]
    num_classes = model.config.num_classes
    queries = QueryOutputs(masks, classes, num_classes)
    if isinstance(model.class_head, IsoMaxHead):
        assert prediction.class_distances is not None
        farthest = 2 * model.class_head.distance_scale.float().abs()
        queries = queries._replace(class_distances=prediction.class_distances[-1], farthest=farthest)
    return read_queries(queries, size, scores, whole=whole)


def make_segment(
    model: EoMT | ERFNet,
    device: torch.device | str,
    precision: Precision = "float32",
    scores: Sequence[str] = (),
    recorder: PredictionRecorder | None = None,
) -> Callable[[UInt8[Tensor, "B 3 h w"]], Float[Tensor, "B N h w"]]:
    """Wrap a model for `eval`: windows of `model.image_size` in, `read_prediction` at window resolution out.

    Args:
        model: in evaluation mode, on `device`.
        precision: float32, which on a GPU leaves out TF32 as well, or autocast of the network; evidence and
            scores are float32 either way.
        scores: which scores are to be computed from the answer.
        recorder: keeps what the network says, for a cache of predictions.
    """
    kind = torch.device(device).type

    @torch.inference_mode()
    def segment(window: Tensor) -> Tensor:
        exact = _without_tf32() if kind == "cuda" and precision == "float32" else contextlib.nullcontext()
        with exact, torch.autocast(kind, dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            prediction = model(window.to(device))
        if recorder is not None and isinstance(prediction, Tensor):
            recorder.add(prediction[:, :NUM_CLASSES])
        elif recorder is not None:
            recorder.add(prediction.mask_logits[-1], prediction.class_logits[-1])
        return read_prediction(model, prediction, (window.shape[-2], window.shape[-1]), scores)

    return segment


def _without_tf32() -> contextlib.AbstractContextManager[None]:
    """Let cuDNN convolve with the whole mantissa of float32; by PyTorch's default it takes 10 bits of 23."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


@dataclass(frozen=True)
class Segmenter:
    """The model side as evaluation sees it."""

    segment: Segment
    """Windows (B, 3, h, w) to evidence and the maps of query scores (see `eval.predict.windows.Segment`)."""
    window: tuple[int, int]
    recorder: PredictionRecorder | None = None
    """Keeps what the network says, where predictions are cached."""


def compile_model(model: nn.Module, device: torch.device, setting: str) -> None:
    """Let `torch.compile` replace the model's forward pass, in place: the names of its weights stay.

    Results stay the same to rounding. The first step, and the first of each new shape, takes minutes for a
    large model.

    Args:
        setting: name of the option, for the message.

    Raises:
        InputError: this platform cannot compile, for lack of a C++ compiler or Triton most likely.
    """
    try:  # on something small: where it fails, the reader should not have waited for the model
        torch.compile(torch.square)(torch.ones(2, device=device))
    except Exception as error:  # each backend raises its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{setting}: torch.compile does not work on this platform: {reason}") from None
    model.compile()
