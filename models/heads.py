"""Heads of an EoMT: IsoMax+ classes, and the trained outlier head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from eval.predict.queries import QueryOutputs, pixel_class_scores, sole_claim
from eval.predict.score_names import RATIO
from eval.predict.scores import log_evidence, normalized_entropy
from models.config import OutlierHeadConfig

DEFAULT_WIDTH = 128
NUM_CLAIMS = 3
NORM_FLOOR = 1e-3
"""Shorter vectors are divided by this: a gradient of 1 / length has to fit into float16."""
DISTANCE_FLOOR = 1e-6
"""Closer prototypes count as this close: no gradient pulls on a direction that rounding alone decides."""


class IsoMaxHead(nn.Module):
    """Distances to prototypes on the unit sphere instead of a linear layer: Enhanced Isotropy Maximization.

        D_c = |s| · ‖ f/‖f‖ − p_c/‖p_c‖ ‖₂ in [0, 2|s|]        class logits = −E · D

    with one prototype p_c per class and one for "no object", and one learned distance scale s. The entropic
    scale E is no parameter: IsoMax+ trains with it and drops it for its own score, the minimum distance. Here
    the logits carry it always, so that softmax means the same in the loss, the matcher and the evaluation
    (without it no class reaches a probability of 0.3); whoever wants D gets it from `distances`.

    Computed in float32 whatever the autocast state; gradients stay finite where a query meets a prototype.

    Args:
        num_logits: C + 1, or C + 2 with an outlier class.
        entropic_scale: E, above 0; 10 as published.

    Source: Macêdo and Ludermir, "Enhanced Isotropy Maximization Loss", 2021,
    https://github.com/dlmacedo/entropic-out-of-distribution-detection. We differ: prototypes of "no object"
    beside those of the classes; distances have a floor of 1e-6, lengths one of 1e-3 (theirs: none and 1e-12).
    """

    def __init__(self, width: int, num_logits: int, entropic_scale: float = 10.0) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(num_logits, width))
        self.distance_scale = nn.Parameter(torch.ones(()))
        self.entropic_scale = entropic_scale

    def distances(self, queries: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q C1"]:
        """Return the scaled distance of each query to each prototype."""
        with torch.autocast(queries.device.type, enabled=False):
            features = F.normalize(queries.float(), dim=-1, eps=NORM_FLOOR)
            prototypes = F.normalize(self.prototypes.float(), dim=-1, eps=NORM_FLOOR)
            prototypes = prototypes.expand(features.shape[0], -1, -1)
            # by differences: 2 − 2 cos loses what is left of a small distance
            distance = torch.cdist(features, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
            return self.distance_scale.float().abs() * distance.clamp(min=DISTANCE_FLOOR)

    def to_logits(self, distances: Float[Tensor, "B Q C1"]) -> Float[Tensor, "B Q C1"]:
        """Turn distances into class logits, ready for softmax."""
        return -self.entropic_scale * distances

    def forward(self, queries: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q C1"]:
        """Return class logits, ready for softmax."""
        return self.to_logits(self.distances(queries))

    @torch.no_grad()
    def start_from(self, linear_weight: Float[Tensor, "C1 D"]) -> str:
        """Point the prototypes where a trained linear head's rows point, and say so.

        A query then is nearest to the class of which its direction had the largest linear logit, up to biases
        and the rows' lengths, which a prototype does not have. The distance scale stays 1.
        """
        self.prototypes.copy_(F.normalize(linear_weight.float(), dim=-1))
        return "class_head.prototypes start as the directions of the linear class head's rows; scale 1"


class OutlierHead(nn.Module):
    """Log-likelihood ratio of outlier to inlier for each pixel of the masks, read off an EoMT.

        tokens of some blocks ── LayerNorm, Linear ── upsampled ─┐
        upscaled patches ─────── 1 x 1 ──────────────────────────┼─ sum ─ 2 x (depth-wise 3 x 3, 1 x 1) ─ r
        claims of the queries ── 1 x 1 ──────────────────────────┘

    At the resolution of the masks. It reads and never writes: masks, classes and every other score are those
    of the network without it, which stands still.

    Source: Nayal et al., "A Likelihood Ratio-Based Approach to Segmenting Unknown Objects", IJCV 2025 (UEM),
    https://github.com/NazirNayal8/UEM-likelihood-ratio. We differ: its segmentor is a linear head or a
    mixture on DINOv2, and its score two logits of an MLP on the last tokens, less the segmentor's largest
    logit, trained by a plain mean over pixels. Here the segmenter is EoMT, whose query logits are no
    densities, so that they are an input in place of a summand; one logit; blocks of several depths, and maps
    four times as fine; a mean over outliers and one over inliers (`trainer.losses.outlier.LikelihoodRatio`).

    Args:
        config: completed, of a width above 0.
        width: numbers per token of the trunk.
    """

    def __init__(self, config: OutlierHeadConfig, width: int) -> None:
        super().__init__()
        inner = config.width
        self.tokens = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner)) for _ in config.blocks
        )
        self.pixels = nn.Conv2d(width, inner, 1)
        self.claims = nn.Conv2d(NUM_CLAIMS, inner, 1) if config.claims else None
        self.mix = nn.Sequential(MixBlock(inner), MixBlock(inner))
        self.logit = nn.Sequential(LayerNorm2d(inner), nn.Conv2d(inner, 1, 1))

    def forward(
        self,
        tokens: Sequence[Float[Tensor, "B P D"]],
        grid: tuple[int, int],
        pixels: Float[Tensor, "B D h w"],
        queries: QueryOutputs,
    ) -> dict[str, Float[Tensor, "B 1 h w"]]:
        """Return the logits, by the score's name.

        Args:
            tokens: patch tokens behind each block of `config.blocks`.
            grid: rows and columns of patches.
            pixels: upscaled patches, which the masks are read off.
        """
        low = torch.stack([read(each) for read, each in zip(self.tokens, tokens, strict=True)]).sum(dim=0)
        low = low.transpose(1, 2).unflatten(2, grid)
        x = self.pixels(pixels) + F.interpolate(low, size=pixels.shape[-2:], mode="bilinear")
        if self.claims is not None:
            x = x + self.claims(read_claims(queries).to(x.dtype))
        return {RATIO: self.logit(self.mix(x))}


class MixBlock(nn.Module):
    """Add what the neighbours say: depth-wise convolution, LayerNorm, GELU, 1 x 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)
        self.norm = LayerNorm2d(width)
        self.channels = nn.Conv2d(width, width, 1)

    def forward(self, x: Float[Tensor, "B W h w"]) -> Float[Tensor, "B W h w"]:
        return x + self.channels(F.gelu(self.norm(self.around(x))))


def read_claims(queries: QueryOutputs) -> Float[Tensor, "B 3 h w"]:
    """Return what the queries say of a pixel of the masks, in numbers of about 0 to 10.

    The entropy of the classes' shares; and as log(1 + x), since they may be thousands: −log of the largest
    class score, and of the probability that exactly one query claims it.
    """
    evidence = pixel_class_scores(queries.mask_logits, queries.class_logits, num_classes=queries.num_classes)
    surprises = torch.stack((-log_evidence(evidence).amax(dim=1), sole_claim(queries)), dim=1)
    return torch.cat((normalized_entropy(evidence)[:, None], surprises.clamp(min=0).log1p()), dim=1)
