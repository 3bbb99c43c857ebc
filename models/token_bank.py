"""The fitted outlier head: densities of an EoMT's patch tokens, and a bank of them, without any outlier.

A token x is that of a patch behind one block, or behind several, each normalised to mean 0 and variance 1.
From one pass over labelled scenes come, per class c of the patch's pixels, the mean μ_c and share π_c, and
over all classes the covariance within classes Σ, the mean μ and the covariance Σ_0:

    LikelihoodRatio   log N(x; μ, Σ_0) − log Σ_c π_c N(x; μ_c, Σ)
    Mahalanobis       min_c (x − μ_c)ᵀ Σ⁻¹ (x − μ_c)
    NearestNeighbor   distance to the nearest token of the bank

and, of the pixels of the masks, whose largest class score L[c] has the mean m_c and the deviation s_c:

    StandardizedMaxLogit   (m_c − L[c]) / s_c

An outlier is taken to be any token that a network can have, as broad as all of them together. Covariances are
shrunk, (1 − s) Σ + s · tr(Σ) / D · I. Sums are of float64.

Source: Lee et al., NeurIPS 2018 (Mahalanobis); Ren et al., "A Simple Fix to Mahalanobis Distance", 2021,
whose relative distance is the ratio of the two densities for the nearest class; Sun et al., ICML 2022
(nearest neighbours); Jung et al., ICCV 2021 (standardised max logits, here without their smoothing). We
differ: the ratio adds up the classes by their shares; tokens of patches, not images; L of a mask model.
UEM's generative head (`models.heads`) needs outliers: a trained mixture of them, and one of inliers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor, nn

from eval.predict.queries import QueryOutputs, pixel_class_scores
from eval.predict.score_names import BANK_SCORES, RATIO
from models.config import OutlierHeadConfig
from shards.errors import InputError

MOST_AT_ONCE = 2**24
"""Distances between tokens and a bank that are in memory at once."""
LEAST_VARIANCE = 1e-12
"""Of the largest class scores."""


class TokenSums(NamedTuple):
    """What a fit needs of N tokens of C classes; sums of parts add up."""

    counts: Float64[Tensor, " C"]
    sums: Float64[Tensor, "C D"]
    squares: Float64[Tensor, "D D"]
    """Σ x xᵀ over all classes."""
    tops: Float64[Tensor, "C 3"]
    """As of `sum_tops`."""

    def __add__(self, other: object) -> TokenSums:
        assert isinstance(other, TokenSums)
        return TokenSums(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class TokenBank(nn.Module):
    """Maps of a fitted head at the resolution of patches; its numbers are buffers, which nothing trains.

    Args:
        config: completed, of a bank above 0.
        width: numbers per token of the trunk.
    """

    def __init__(self, config: OutlierHeadConfig, width: int, num_classes: int) -> None:
        super().__init__()
        size = width * len(config.blocks)
        shapes: dict[str, tuple[int, ...]] = {"tokens": (config.bank, size), "mean": (1, size)}
        shapes |= {"means": (num_classes, size), "shares": (num_classes,)}
        shapes |= {"whiten": (size, size), "whiten_all": (size, size)}
        shapes |= {"top_means": (num_classes,), "top_deviations": (num_classes,)}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    @torch.no_grad()
    def fill(self, sums: TokenSums, tokens: Float[Tensor, "N D"], shrinkage: float) -> None:
        """Fit densities to `sums`, and keep `tokens`, as many as the bank holds.

        An InputError says where there are too few tokens for a covariance.
        """
        total = sums.counts.sum()
        if float(total) < 2:
            raise InputError(f"outlier head: {int(total)} patches show mostly one class; two are needed")
        means = sums.sums / sums.counts.clamp(min=1)[:, None]
        mean = sums.sums.sum(dim=0, keepdim=True) / total
        within = (sums.squares - means.T @ (sums.counts[:, None] * means)) / total
        tops = torch.where(sums.tops[:, :1] > 1, sums.tops, sums.tops.sum(dim=0))  # of a rare class, all
        top_means, top_squares = tops[:, 1] / tops[:, 0], tops[:, 2] / tops[:, 0]
        values = {
            "tokens": tokens,
            "means": means,
            "mean": mean,
            "shares": sums.counts / total,
            "whiten": _whitening(within, shrinkage),
            "whiten_all": _whitening(sums.squares / total - mean.T @ mean, shrinkage),
            "top_means": top_means,
            "top_deviations": (top_squares - top_means.square()).clamp(min=LEAST_VARIANCE).sqrt(),
        }
        for name, value in values.items():
            self.get_buffer(name).copy_(value)

    def forward(
        self,
        tokens: Sequence[Float[Tensor, "B P D"]],
        grid: tuple[int, int],
        pixels: object,
        queries: QueryOutputs,
    ) -> dict[str, Float[Tensor, "B 1 _h _w"]]:
        """Return the scores; arguments as of `models.heads.OutlierHead`, all but `pixels` read."""
        with torch.autocast(tokens[0].device.type, enabled=False):
            x = join_tokens(tokens)
            whiten, whiten_all = self.get_buffer("whiten"), self.get_buffer("whiten_all")
            squares = _distances(x @ whiten.T, self.get_buffer("means") @ whiten.T)  # (B, P, C)
            shares = self.get_buffer("shares")
            squares = squares.masked_fill(shares == 0, math.inf)  # of classes that no patch shows
            inlier = (shares.log() - squares / 2).logsumexp(dim=-1) + _log_volume(whiten)
            everything = _distances(x @ whiten_all.T, self.get_buffer("mean") @ whiten_all.T)[..., 0]
            bank = self.get_buffer("tokens")
            near = [_distances(part, bank).amin(dim=-1) for part in x.split(_rows(len(x), len(bank)), dim=1)]
            maps = {
                RATIO: _log_volume(whiten_all) - everything / 2 - inlier,
                BANK_SCORES[0]: squares.amin(dim=-1),
                BANK_SCORES[1]: torch.cat(near, dim=1).sqrt(),
            }
            top, winner = _top_scores(queries)
            means, deviations = self.get_buffer("top_means"), self.get_buffer("top_deviations")
            standardized = (means[winner] - top) / deviations[winner]
        on_patches = {name: value.unflatten(1, grid)[:, None] for name, value in maps.items()}
        return on_patches | {BANK_SCORES[2]: standardized[:, None]}


class TokenReader(nn.Module):
    """In the place of a head: it says the tokens themselves, and the sums of class scores."""

    def forward(
        self,
        tokens: Sequence[Float[Tensor, "B P D"]],
        grid: tuple[int, int],
        pixels: object,
        queries: QueryOutputs,
    ) -> dict[str, Tensor]:
        """Return the `tokens` (B, P, D) and `tops` (C, 3) that a `TokenBank` is fitted to."""
        return {"tokens": join_tokens(tokens), "tops": sum_tops(queries)}


def join_tokens(tokens: Sequence[Float[Tensor, "B P _D"]]) -> Float[Tensor, "B P D"]:
    """Normalise the tokens behind each block and join them."""
    return torch.cat([F.layer_norm(each.float(), each.shape[-1:]) for each in tokens], dim=-1)


def label_patches(label: UInt8[Tensor, "B H W"], patch_size: int, num_classes: int) -> Int64[Tensor, "B P"]:
    """Return the class that more than half of each patch's pixels are of; -1 where there is none."""
    patches = F.unfold(label[:, None].float(), patch_size, stride=patch_size).mT.long()  # (B, P, pixels)
    counts = torch.zeros(*patches.shape[:2], 256, dtype=torch.long)
    counts.scatter_add_(2, patches, torch.ones_like(patches))
    most, class_id = counts[..., :num_classes].max(dim=-1)
    return class_id.masked_fill(2 * most <= patches.shape[-1], -1)


def sum_tokens(
    tokens: Float[Tensor, "N D"], classes: Int64[Tensor, " N"], tops: Float64[Tensor, "C 3"]
) -> TokenSums:
    """Add up tokens, whose classes are all known; `tops` as of `sum_tops`."""
    x, member = tokens.double(), F.one_hot(classes, len(tops)).double()
    return TokenSums(member.sum(dim=0), member.T @ x, x.T @ x, tops)


def sum_tops(queries: QueryOutputs) -> Float64[Tensor, "C 3"]:
    """Count the pixels of which each class has the largest score, and add up the scores and their squares."""
    top, winner = (each.flatten() for each in _top_scores(queries))
    x, member = top.double(), F.one_hot(winner, queries.num_classes).double()
    return member.T @ torch.stack((torch.ones_like(x), x, x.square()), dim=1)


def _top_scores(queries: QueryOutputs) -> tuple[Float[Tensor, "B h w"], Int64[Tensor, "B h w"]]:
    """Return the largest class score of each pixel of the masks, and its class."""
    masks, classes, num_classes = queries[:3]
    top, winner = pixel_class_scores(masks, classes, num_classes=num_classes).max(dim=1)
    return top, winner


def _whitening(covariance: Float64[Tensor, "D D"], shrinkage: float) -> Float64[Tensor, "D D"]:
    """Return L⁻¹ of a shrunk covariance L Lᵀ: distances of L⁻¹ x are Mahalanobis distances of x."""
    size = len(covariance)
    eye = torch.eye(size, dtype=covariance.dtype)
    shrunk = (1 - shrinkage) * covariance + shrinkage * covariance.trace() / size * eye
    lower, failed = torch.linalg.cholesky_ex(shrunk)
    if int(failed) or not bool(shrunk.isfinite().all()):
        raise InputError("outlier head: the tokens are all alike; more scenes or more shrinkage are needed")
    return torch.linalg.solve_triangular(lower, eye, upper=False)


def _log_volume(whiten: Float[Tensor, "D D"]) -> Float[Tensor, ""]:
    """Return −½ log det of the covariance."""
    return whiten.diagonal().log().sum()


def _distances(x: Float[Tensor, "B P D"], y: Float[Tensor, "N D"]) -> Float[Tensor, "B P N"]:
    """Return squared distances, from 0 up."""
    lengths = x.square().sum(dim=-1, keepdim=True) + y.square().sum(dim=-1)
    return (lengths - 2 * x @ y.T).clamp(min=0)


def _rows(batch: int, bank: int) -> int:
    return max(1, MOST_AT_ONCE // (batch * bank))
