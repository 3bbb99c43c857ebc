"""The outlier head: log-likelihood ratio of outlier to inlier, read off an EoMT that stands still.

    tokens of some blocks ── LayerNorm, Linear ── upsampled ─┐
    upscaled patches ─────── 1 x 1 ──────────────────────────┼─ sum ─ 2 x (depth-wise 3 x 3, 1 x 1) ─ logit
    claims of the queries ── 1 x 1 ──────────────────────────┘

at the resolution of the masks. It reads and never writes: masks, classes and every other score are those of
the network without it.

Source: Nayal et al., "A Likelihood Ratio-Based Approach to Segmenting Unknown Objects", IJCV 2025 (UEM),
https://github.com/NazirNayal8/UEM-likelihood-ratio. We differ: its segmentor is a linear head or a mixture
on DINOv2, and its score two logits of an MLP on the last tokens, less the segmentor's largest logit, trained
by a plain mean over pixels. Here the segmenter is EoMT, whose query logits are no densities, so that they are
an input in place of a summand; one logit; blocks of several depths, and maps four times as fine; a mean over
outliers and one over inliers (`trainer.losses.outlier.LikelihoodRatio`).
"""

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


class OutlierHead(nn.Module):
    """Logits of the outlier against the inlier for each pixel of the masks.

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
