"""Classification losses on query class logits: cross-entropy, LogitNorm, IsoMax+."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from trainer.losses.options import LogitNormOptions

PUBLISHED_EPSILON = 1e-7
NORM_FLOOR = 1e-3
"""Shorter vectors are normalised by this length: the gradient, 1 / (length · temperature), has to fit into
float16. Published LogitNorm reaches 1e7 / temperature at zero logits."""


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """−log softmax(z)[y] of query class logits: what Mask2Former and EoMT are trained with.

    Computed in float32 inside autocast. Subclasses change the logits; their fields are their options.
    """

    def __call__(
        self, logits: Float[Tensor, "N C1"], target: Int64[Tensor, " N"], weight: Float[Tensor, " C1"]
    ) -> Float[Tensor, ""]:
        """Return Σ_n weight[target_n] · loss_n, in float32; the caller divides by the sum of the weights."""
        with torch.autocast(logits.device.type, enabled=False):
            scaled = self.scale(logits.float())
            return F.cross_entropy(scaled, target, weight.float(), reduction="sum")

    def scale(self, logits: Float[Tensor, "N C1"]) -> Float[Tensor, "N C1"]:
        """Return the logits of the softmax."""
        return logits

    def lower_bound(self, num_logits: int) -> float:
        """Return the least loss that a query with `num_logits` logits can have."""
        return 0.0


class LogitNorm(LogitNormOptions, CrossEntropy):
    """Cross-entropy of logits of one length: −log softmax(z / (‖z‖ + 1e-7) / temperature)[y].

    A network cannot lower it by growing its logits, only by turning them, so it stays less sure of what it
    does not know. All logits of a query are normalised together, "no object" included; the weight of "no
    object" is kept. Only this loss normalises: the matcher and every score read the plain logits. Computed
    in float32 inside autocast.

    The loss has a lower bound. Among vectors of length 1 the best points to the target and is equal
    elsewhere, (√((K−1)/K), −1/√(K(K−1)), …), which leaves

        bound = log(1 + (K − 1) · exp(−√(K/(K−1)) / temperature))

    per query: 0.48 for K = 20 and 0.3, 2.06 for 1.0, where a uniform guess costs 3.00. A weighted mean over
    queries has the same bound. So a high training loss is no sign that something is wrong.

    Source: Wei et al., "Mitigating Neural Network Overconfidence with Logit Normalization", ICML 2022,
    https://github.com/hongxin001/logitnorm_ood. We differ: lengths below 1e-3 count as 1e-3.
    """

    def scale(self, logits: Float[Tensor, "N C1"]) -> Float[Tensor, "N C1"]:
        length = torch.linalg.vector_norm(logits, dim=-1, keepdim=True).clamp(min=NORM_FLOOR)
        return logits / (length + PUBLISHED_EPSILON) / self.temperature

    def lower_bound(self, num_logits: int) -> float:
        others = num_logits - 1
        return math.log1p(others * math.exp(-math.sqrt(num_logits / others) / self.temperature))


CLASS_TERMS: dict[str, type[CrossEntropy]] = {
    "cross_entropy": CrossEntropy,
    "logit_norm": LogitNorm,
    "isomax_plus": CrossEntropy,
}
"""IsoMax+ (Macêdo and Ludermir, 2021) is a cross-entropy of the logits -E · D of `models.heads.IsoMaxHead`,
which holds prototypes and distance scale. We differ: log-softmax at once (theirs takes the logarithm of a
probability, which is -inf from distances that differ by about 10), and a weighted mean over queries."""
