"""Metrics of scores at many temperatures, from cached predictions, and the choice of one without leaks."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from scipy.optimize import minimize_scalar
from torch import Tensor

from eval.metrics.curve import HALF_VALUES, Curve, PixelMetrics, count_half
from eval.predict.predictions import CachedSet, read_frames
from eval.predict.scores import DEFAULT_SCORES
from eval.predict.strips import compare_at
from eval.store import ImageStore, score_arrays
from shards.errors import InputError
from shards.schema import ANOMALY, NORMAL, OUTLIER_ID, VOID

logger = logging.getLogger(__name__)

Level = Literal["pixel", "query"]
LEVELS: tuple[Level, ...] = ("pixel", "query")
"""What is divided: the class scores of a pixel, softmax(L / T), or the class logits of queries."""
Kind = tuple[str, Level]
"""Score and level."""
OF_SHARES = ("NormalizedMSP", "NormalizedEntropy", "EntropyLogMax")
FIXED_AT_PIXEL = ("MaxLogit", *OF_SHARES)
TABLE_TEMPERATURES = (1.0, 0.5, 0.75, 1.1)
"""In every table of these test sets, beside the best."""
_AT_ONCE = 16
"""Variants measured in one pass over the cache; bounds the disk space to 69 bytes per pixel."""
_EVIDENCE_AT_ONCE = 4
"""Query temperatures scanned at once; each takes 160 MB per frame of 2048 x 1024, half that per window."""
_STRIDE = 7
"""Of the pixels, along each axis, that calibration is fitted to; neighbours say the same."""
_ROUNDS = 3
_LIMITS = (1e-3, 1e3)
"""Temperatures at which a search ends that goes on past an end of its grid."""
_FINALISTS = 3
"""Temperatures of best scanned AP that are measured before one is chosen."""


class Variant(NamedTuple):
    """One way of scoring."""

    score: str
    level: Level
    temperature: float

    @property
    def label(self) -> str:
        """How records name the score."""
        return self.score if self.level == "pixel" else f"{self.score} (query T)"

    @property
    def divisors(self) -> tuple[float, float]:
        """The temperatures of class logits of queries and of class scores of pixels."""
        return (self.temperature, 1.0) if self.level == "query" else (1.0, self.temperature)


def list_kinds(has_queries: bool, scores: Sequence[str] = DEFAULT_SCORES) -> list[Kind]:
    """List the pairs of score and level at which a temperature can change a ranking.

    MaxLogit and scores of L / ΣL are left out at pixel level: dividing by T keeps every order. Without
    queries there is no such share, and asking for its score is an InputError.
    """
    levels = LEVELS if has_queries else LEVELS[:1]
    if of_masks := [score for score in scores if score in OF_SHARES and not has_queries]:
        raise InputError(f"--scores: {of_masks[0]} is of mask models; the cache holds logits of pixels")
    return [(s, level) for s in scores for level in levels if level == "query" or s not in FIXED_AT_PIXEL]


def table_temperatures(level: Level, entropic_scale: float = 0.0) -> dict[float, str | None]:
    """Return the temperatures of every table, and where each is from.

    `entropic_scale`: E of an IsoMax+ head, 0 of others. Its logits are -E · D; at query temperature E the
    scale is gone, as in the published score.
    """
    of_model = {entropic_scale: "entropic scale"} if entropic_scale and level == "query" else {}
    return dict.fromkeys(TABLE_TEMPERATURES) | of_model


@dataclass
class Sweep:
    """Metrics of variants on one cached set; each is computed once.

    Measured ones are exact and may be reported. Scanned ones are counted in half precision, which costs less
    and keeps no scores; they serve to find temperatures and to draw curves. Of drawn frames
    (tests/eval/test_temperature.py, benchmarks/temperature.py) AP is that of float32 scores to 1e-3, and
    FPR95 to 5e-3, as a threshold moves by a step of float16 and all pixels of the step with it. Both refuse a
    broken frame and a class without pixels.
    """

    cache: Path
    """Folder that `read_cache` read."""
    cached: CachedSet
    """One of its sets."""
    scratch: Path | None = None
    """Folder for score maps; None: the system's."""
    metrics: dict[Variant, PixelMetrics] = field(default_factory=dict)
    """Exact metrics of the measured variants."""
    scanned: dict[Variant, PixelMetrics] = field(default_factory=dict)
    """Metrics of the scanned variants."""
    num_pixels: int = 0
    at_end: dict[Kind, float] = field(default_factory=dict)
    """Best end of the grid, where the best temperature of a grid was one: it may be a limit, no optimum."""

    def measure(self, variants: Iterable[Variant]) -> None:
        """Compute the metrics of all `variants` that are not known yet, 16 to a pass over the set."""
        missing = [variant for variant in dict.fromkeys(variants) if variant not in self.metrics]
        missing.sort(key=lambda variant: (variant.level, variant.temperature))
        for begin in range(0, len(missing), _AT_ONCE):
            group = missing[begin : begin + _AT_ONCE]
            with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
                store = ImageStore(Path(folder), [{}] * len(self.cached.stems))
                self.num_pixels = 0
                for image, scored in groupby(self._score(group, 1), key=itemgetter(0)):
                    _, variants_of_image, maps, targets = zip(*scored, strict=True)
                    names = (str(group.index(variant)) for variant in variants_of_image)
                    store.write(image, score_arrays(dict(zip(names, maps, strict=True)), targets[0]))
                    self.num_pixels += int((targets[0] != VOID).sum())
                self.metrics |= {variant: store.measure(str(i)) for i, variant in enumerate(group)}

    def scan(self, variants: Iterable[Variant]) -> None:
        """Count, in half precision, the scores of all `variants` that were not scanned yet.

        Pixel temperatures share the class scores of a frame, query temperatures its masks.
        """
        missing = [variant for variant in dict.fromkeys(variants) if variant not in self.scanned]
        counts = {variant: np.zeros((2, HALF_VALUES.size), dtype=np.int64) for variant in missing}
        for _, variant, scores, target in self._score(missing, _EVIDENCE_AT_ONCE, centred=True):
            half = torch.from_numpy(scores).half().numpy()  # a quarter of the time of NumPy's
            counts[variant] += [count_half(half[target == value]) for value in (ANOMALY, NORMAL)]
        self.scanned |= {v: Curve.from_counts(HALF_VALUES, *found).metrics() for v, found in counts.items()}

    def _score(
        self, variants: Sequence[Variant], scores_at_once: int, *, centred: bool = False
    ) -> Iterator[tuple[int, Variant, Float32[np.ndarray, "H W"], UInt8[np.ndarray, "H W"]]]:
        """Yield position, variant, score map and target: all variants of a frame, frame by frame.

        Args:
            scores_at_once: query temperatures whose class scores are held at once, and share masks.
            centred: subtract the score of a mask model's sure pixel (class scores 1 for one class, 0 for the
                others), which scores of L / ΣL have no need of: float16 is finest about 0.
        """
        query_temperatures = sorted({variant.divisors[0] for variant in variants})
        frames = read_frames(self.cache, self.cached) if variants else ()
        for position, (target, predictions) in enumerate(frames):
            height, width = target.shape
            for begin in range(0, len(query_temperatures), scores_at_once):
                group = query_temperatures[begin : begin + scores_at_once]
                stacked = predictions.class_scores_at((height, width), self.cached.window, group)
                for query_t, class_scores in zip(group, stacked, strict=True):
                    same = [variant for variant in variants if variant.divisors[0] == query_t]
                    for variant, scores in _score_class_scores(class_scores, same, centred=centred):
                        yield position, variant, scores, target

    def refine(self, score: str, level: Level, grid: Sequence[float]) -> float:
        """Return the temperature of best AP: of the grid, then of ever closer neighbours of the best so far.

        While an end is best, the search goes on past it in steps of the last distance, to 0.001 and 1000;
        `at_end` and a warning say that it had to. Then each round halves, on a logarithmic scale, the
        distance to both neighbours. Rounds scan; the best three of all are then measured, and the best of
        what was measured of this score and level is returned.
        """

        def scanned_ap(temperature: float) -> float:
            return self.scanned[Variant(score, level, temperature)].ap

        tried = sorted(grid)
        self.scan(Variant(score, level, t) for t in tried)
        self._pass_ends(score, level, tried, scanned_ap)
        for _ in range(_ROUNDS):
            best = max(tried, key=scanned_ap)
            at = tried.index(best)
            neighbours = [tried[i] for i in (at - 1, at + 1) if 0 <= i < len(tried)]
            tried = sorted({*tried, *(float(np.sqrt(best * neighbour)) for neighbour in neighbours)})
            self.scan(Variant(score, level, t) for t in tried)
        self.measure(Variant(score, level, t) for t in sorted(tried, key=scanned_ap)[-_FINALISTS:])
        measured = {v.temperature: m.ap for v, m in self.metrics.items() if v[:2] == (score, level)}
        return max(sorted(measured), key=measured.__getitem__)

    def _pass_ends(
        self, score: str, level: Level, tried: list[float], scanned_ap: Callable[[float], float]
    ) -> None:
        """Add temperatures past an end of `tried`, ascending, while that end is best."""
        lowest, highest = tried[0], tried[-1]
        while len(tried) > 1 and (best := max(tried, key=scanned_ap)) in (tried[0], tried[-1]):
            step = best / tried[1 if best == tried[0] else -2]
            further = float(np.clip(best * step, *_LIMITS))
            if (score, level) not in self.at_end:
                self.at_end[score, level] = best
                where = f"{self.cached.name}: {Variant(score, level, best).label}"
                told = "the best T is at the end of the grid"
                logger.warning("%s: %s, %g of %g to %g; trying further", where, told, best, lowest, highest)
            if further in tried:
                return
            tried.insert(0 if best == tried[0] else len(tried), further)
            self.scan([Variant(score, level, further)])


def _score_class_scores(
    class_scores: Float[Tensor, "C H W"], variants: Sequence[Variant], *, centred: bool
) -> Iterator[tuple[Variant, Float32[np.ndarray, "H W"]]]:
    for pixel_t in sorted({variant.divisors[1] for variant in variants}):
        same = [variant for variant in variants if variant.divisors[1] == pixel_t]
        names = sorted({variant.score for variant in same})
        scores = compare_at(class_scores, names, pixel_t)
        if centred:
            sure = compare_at(torch.eye(len(class_scores), 1)[..., None], names, pixel_t)
            scores = {n: values - sure[n] if n not in OF_SHARES else values for n, values in scores.items()}
        yield from ((variant, scores[variant.score]) for variant in same)  # T = 1 is one for both levels


def require_selection_split(cached: CachedSet) -> None:
    """Refuse a benchmark: no temperature may be chosen on it."""
    if cached.is_benchmark:
        raise InputError(
            f"--validation {cached.folder}: is a benchmark; what is chosen on it must not be reported on it. "
            f"Choose on a validation split, or see each benchmark's own best, so labelled, by --oracle True"
        )


def fit_calibration(cache: Path, cached: CachedSet) -> float:
    """Return the T of softmax(L / T) with the least negative log-likelihood of a set's train ids.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017. NLL is convex in 1 / T.
    """
    class_scores, labels = [], []
    for target, predictions in read_frames(cache, cached):
        height, width = target.shape
        found = predictions.class_scores((height, width), cached.window)
        label = target[::_STRIDE, ::_STRIDE]
        counted = (label != VOID) & (label != OUTLIER_ID)
        class_scores.append(found[:, ::_STRIDE, ::_STRIDE].permute(1, 2, 0)[torch.from_numpy(counted)])
        labels.append(torch.from_numpy(label[counted].astype(np.int64)))
    return best_likelihood(torch.cat(class_scores), torch.cat(labels))


def best_likelihood(class_scores: Tensor, labels: Tensor) -> float:
    """Return the T in [0.001, 1000] that maximises the likelihood of `labels` under softmax(L / T)."""

    def loss(log_t: float) -> float:
        return float(torch.nn.functional.cross_entropy(class_scores.double() / float(np.exp(log_t)), labels))

    bounds = (float(np.log(1e-3)), float(np.log(1e3)))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
