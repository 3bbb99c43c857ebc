"""A network as what evaluation knows: a function from a window of pixels to evidence per class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from eval.scores import pixel_evidence
from models.eomt import EoMT
from models.erfnet import ERFNet
from shards.schema import NUM_CLASSES
from trainer.runtime import Precision

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def make_segment(
    model: EoMT | ERFNet, device: torch.device | str, precision: Precision = "float32"
) -> Callable[[UInt8[Tensor, "B 3 h w"]], Float[Tensor, "B C h w"]]:
    """Wrap a model for `eval`: windows of `model.image_size` in, evidence at window resolution out.

    EoMT's evidence is `eval.scores.pixel_evidence`; ERFNet's its logits, the void channel dropped.

    Args:
        model: in evaluation mode, on `device`.
        precision: float32, or autocast of the network; evidence is computed in float32 either way.
    """
    kind = torch.device(device).type

    @torch.inference_mode()
    def segment(window: Tensor) -> Tensor:
        with torch.autocast(kind, dtype=AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            prediction = model(window.to(device))
        if isinstance(prediction, Tensor):
            return prediction[:, :NUM_CLASSES].float()
        return pixel_evidence(
            prediction.mask_logits[-1], prediction.class_logits[-1], (window.shape[-2], window.shape[-1])
        )

    return segment
