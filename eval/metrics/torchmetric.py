"""Exact pixel metrics as a `torchmetrics.Metric`, for a training loop of one's own, such as Lightning's.

    from eomt_anomaly.eval.metrics.torchmetric import PixelAnomaly    # installed; from eval... in a checkout

It needs torchmetrics, which `pip install "eomt-anomaly[torchmetrics]"` adds.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor
from torchmetrics import Metric

from eval.metrics.curve import ImageScores, exact_curve
from shards.errors import InputError

NAMES = ("ap", "fpr95", "auroc")


class PixelAnomaly(Metric):
    """AP, FPR95 and AUROC of the anomalous pixels of a set, from all of its scores, without bins.

    What `compute` returns is equal to the last bit to `eval.metrics.curve.exact_curve` of the same images,
    whatever their order, batches and processes. The state is one float32 per scored pixel, on the device of
    the scores (`compute_on_cpu=True`: in memory; processes then need a backend for it, such as gloo); reading
    the metrics off takes as much again, and some 70 bytes per anomalous pixel.
    """

    full_state_update = False
    is_differentiable = False
    positives: list[Tensor]
    negatives: list[Tensor]
    counts: list[Tensor]

    def __init__(self, fpr_rule: str = "first-at-least", **kwargs: Any) -> None:
        """Start an empty set; `fpr_rule` is one of `eval.metrics.curve.FPR_RULES`."""
        super().__init__(**kwargs)
        self.fpr_rule = fpr_rule
        for name in ("positives", "negatives", "counts"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, scores: Float[Tensor, "B ..."], target: Integer[Tensor, "B ..."]) -> None:
        """Add images.

        Args:
            scores: higher = more anomalous.
            target: 0 normal, 1 anomalous; anything else, such as 255, is not scored.
        """
        if scores.shape != target.shape:
            raise InputError(f"scores of shape {tuple(scores.shape)}, but labels of {tuple(target.shape)}")
        for image, labels in zip(scores.detach().float(), target, strict=True):
            runs = [image[labels == label].sort().values for label in (1, 0)]
            self.positives.append(runs[0])
            self.negatives.append(runs[1])
            count = torch.tensor([run.numel() for run in runs], dtype=torch.int32, device=scores.device)
            self.counts.append(count.view(torch.float32))  # as the empty state of a process without images

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """Return `NAMES` as fractions, in float64; NaN where one of the classes has no pixel.

        An InputError says that a score is NaN.
        """
        counts = _join(self.counts).view(torch.int32).reshape(-1, 2)
        runs = [
            _join(s).split(c.tolist())
            for s, c in zip((self.positives, self.negatives), counts.T, strict=True)
        ]
        images = [ImageScores(p.numpy(), n.numpy()) for p, n in zip(*runs, strict=True)]
        found = dict.fromkeys(NAMES, float("nan"))
        if bool(counts.any(dim=0).all()):
            metrics = exact_curve(images).metrics(self.fpr_rule)
            found = {name: getattr(metrics, name) for name in NAMES}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}


def _join(state: list[Tensor] | Tensor) -> Tensor:
    """Return a state of "cat" on the CPU, as one tensor, which it is already where processes have met."""
    parts = [state] if isinstance(state, Tensor) else state
    return torch.cat(parts).cpu() if parts else torch.zeros(0)
