"""Anomaly scores of a pixel, as pure functions: what training pushes apart is what the tests measure.

Every score reads the evidence L, one number per class and pixel, and is higher where the pixel is more
anomalous. The scale is free: metrics only compare. EoMT's evidence is a sum of probabilities (see
`pixel_evidence`) of about [0, 1], not a logit; per-pixel networks hand in their logits.

All functions are differentiable, compute in float32 whatever the autocast state, and stay finite for
logits up to at least 1e4 in size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shards.errors import InputError


def pixel_evidence(
    mask_logits: Float[Tensor, "B Q _h _w"],
    class_logits: Float[Tensor, "B Q C1"],
    size: tuple[int, int] | None = None,
) -> Float[Tensor, "B C1-1 _H _W"]:
    """Turn mask predictions into evidence per class and pixel.

    L[c] = Σ_q softmax(class_logits_q)[c] · sigmoid(mask_logits_q), c without "no object". The last class is
    "no object": it takes its share of the softmax and is dropped afterwards, so a query that sees nothing
    speaks for no class.

    Args:
        mask_logits: one map per query, at any resolution.
        class_logits: C classes and, last, "no object".
        size: (H, W) to resize the mask logits to, bilinearly with align_corners=False and before the
            sigmoid (the sigmoid of a mean is not the mean of sigmoids); None keeps their resolution.

    Source: Mask2Former, Cheng et al., CVPR 2022, and RbA, Nayal et al., ICCV 2023. RbA resizes with
    align_corners=True; EoMT, whose masks we read, does not.
    """
    with torch.autocast(mask_logits.device.type, enabled=False):
        masks = mask_logits.float()
        if size is not None and tuple(masks.shape[-2:]) != tuple(size):
            masks = F.interpolate(masks, size=tuple(size), mode="bilinear", align_corners=False)
        classes = class_logits.float().softmax(dim=-1)[..., :-1]
        return torch.einsum("bqc,bqhw->bchw", classes, masks.sigmoid())


def msp(evidence: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    """Maximum softmax probability, turned around: 1 - max_c softmax(L)[c], in [0, 1 - 1/C].

    Computed as s / (1 + s) with s = Σ exp(L[c] - max L) over the other classes: 1 - p by subtraction keeps
    nothing of a p near 1, and makes thousands of ties of sure pixels.

    Source: Hendrycks and Gimpel, ICLR 2017.
    """
    with torch.autocast(evidence.device.type, enabled=False):
        values = evidence.float()
        top, winner = values.max(dim=1, keepdim=True)
        others = (values - top).exp().scatter(1, winner, 0.0).sum(dim=1)
        return others / (1 + others)


def max_logit(evidence: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    """Largest evidence, turned around: -max_c L[c].

    Source: Hendrycks et al., ICML 2022.
    """
    return -evidence.float().amax(dim=1)


def max_entropy(evidence: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    """Entropy of softmax(L), normalised: -Σ_c p log p / log C, in [0, 1]; 1 where all classes are equal.

    The division by log C is ours; it changes no ranking.

    Source: Chan et al., ICCV 2021 (Meta-OoD).
    """
    with torch.autocast(evidence.device.type, enabled=False):
        log_p = evidence.float().log_softmax(dim=1)
        return -(log_p.exp() * log_p).sum(dim=1) / math.log(evidence.shape[1])


def rba(evidence: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    """Rejected by all: -Σ_c tanh(L[c]), in (-C, 0] for evidence that is never negative.

    Source: Nayal et al., ICCV 2023, https://github.com/NazirNayal8/RbA.
    """
    with torch.autocast(evidence.device.type, enabled=False):
        return -evidence.float().tanh().sum(dim=1)


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "MSP": msp,
    "MaxLogit": max_logit,
    "MaxEntropy": max_entropy,
    "RbA": rba,
}
"""Name in the tables -> evidence (B, C, H, W) to score (B, H, W); higher is more anomalous."""


def require_scores(names: tuple[str, ...], setting: str = "--scores") -> None:
    """Check that `names` are scores, each once.

    Raises:
        InputError: an unknown name, a name given twice, or none.
    """
    unknown = [name for name in names if name not in SCORES]
    if unknown:
        raise InputError(f"{setting}: unknown score {unknown[0]!r}; known scores: {', '.join(SCORES)}")
    if not names or len(set(names)) < len(names):
        given = ", ".join(names) or "nothing"
        raise InputError(f"{setting}: got {given}; at least one score, each once, of {', '.join(SCORES)}")
