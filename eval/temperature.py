"""Metrics of scores at many temperatures, from cached predictions, and the choice of one without leaks."""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from eval.metrics.closed_set import best_likelihood, count_classes
from eval.metrics.curve import HALF_VALUES, Curve, PixelMetrics, count_half
from eval.predict.predictions import CachedSet, read_frames
from eval.predict.score_names import DEFAULT_SCORES, OF_SHARES, RATIO
from eval.predict.strips import compare_at, predict_classes
from eval.store import ImageStore, score_arrays
from shards.errors import InputError
from shards.progress import Progress
from shards.schema import ANOMALY, NORMAL, OUTLIER_ID, VOID

logger = logging.getLogger(__name__)

Level = Literal["pixel", "query"]
LEVELS: tuple[Level, ...] = ("pixel", "query")
"""What is divided: the class scores of a pixel, softmax(L / T), or the class logits of queries."""
Kind = tuple[str, Level]
"""Score and level."""
FIXED_AT_PIXEL = ("MaxLogit", *OF_SHARES)
TABLE_TEMPERATURES = (1.0, 0.5, 0.75, 1.1)
"""In every table of these test sets, beside the best."""
_AT_ONCE = 16
"""Variants measured in one pass over the cache; bounds the disk space to 69 bytes per pixel."""
_EVIDENCE_AT_ONCE = 4
"""Query temperatures scanned at once; each takes 160 MB per frame of 2048 x 1024, half that per window."""
STRIDE = 7  # of pixels along each axis that calibration is fitted to: neighbours say the same
_ROW = 1024
"""Pixels to a row of those that count."""
_SCAN_ERROR = 1e-3
"""Of a scanned AP."""
_ROUNDS = 3
_LIMITS = (1e-3, 1e3)
"""Temperatures at which a search ends that goes on past an end of its grid."""
_FINALISTS = 3
"""Temperatures of best AP that are measured before one is chosen."""


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


def list_kinds(has_queries: bool, scores: Sequence[str] = DEFAULT_SCORES, ratio: bool = False) -> list[Kind]:
    """List the pairs of score and level at which a temperature can change a ranking, and the ratio, at last.

    MaxLogit and scores of L / ΣL are left out at pixel level, where no T changes an order. A share without
    queries and a ratio without an outlier head are refused.
    """
    levels = LEVELS if has_queries else LEVELS[:1]
    if RATIO in scores and not ratio:
        raise InputError(f"--scores: {RATIO} is of an outlier head; the cache's model has none")
    of_head: list[Kind] = [(RATIO, "pixel")] * (RATIO in scores)
    scores = [score for score in scores if score != RATIO]
    if of_masks := [score for score in scores if score in OF_SHARES and not has_queries]:
        raise InputError(f"--scores: {of_masks[0]} is of mask models; the cache holds logits of pixels")
    found = [(s, level) for s in scores for level in levels if level == "query" or s not in FIXED_AT_PIXEL]
    return found + of_head


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
    (tests/eval/test_temperature.py, benchmarks/evaluate.py) AP is that of float32 scores to 1e-3, and
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
                for image, scored in groupby(self._score(group, 1, centred=False), key=itemgetter(0)):
                    _, variants_of_image, scores, labels = zip(*scored, strict=True)
                    names = (str(group.index(variant)) for variant in variants_of_image)
                    store.write(image, score_arrays(dict(zip(names, scores, strict=True)), labels[0]))
                    self.num_pixels += len(labels[0])
                self.metrics |= {variant: store.measure(str(i)) for i, variant in enumerate(group)}

    def scan(self, variants: Iterable[Variant]) -> None:
        """Count, in half precision, the scores of all `variants` of which nothing is known yet.

        Pixel temperatures share the class scores of a frame, query temperatures its masks.
        """
        missing = [variant for variant in dict.fromkeys(variants) if variant not in self.known]
        counts = {variant: np.zeros((2, HALF_VALUES.size), dtype=np.int64) for variant in missing}
        for _, variant, scores, labels in self._score(missing, _EVIDENCE_AT_ONCE, centred=True):
            half = torch.from_numpy(scores).half().numpy()  # a quarter of the time of NumPy's
            counts[variant] += [count_half(half[labels == value]) for value in (ANOMALY, NORMAL)]
        self.scanned |= {v: Curve.from_counts(HALF_VALUES, *found).metrics() for v, found in counts.items()}

    @property
    def known(self) -> dict[Variant, PixelMetrics]:
        """Metrics of all variants: measured, or else scanned."""
        return self.scanned | self.metrics

    def _score(
        self, variants: Sequence[Variant], scores_at_once: int, *, centred: bool
    ) -> Iterator[tuple[int, Variant, Float32[np.ndarray, " P"], UInt8[np.ndarray, " P"]]]:
        """Yield position, variant, and scores and labels of the pixels that count, frame by frame.

        Args:
            scores_at_once: query temperatures whose class scores are held at once, and share masks.
            centred: less the score of a mask model's sure pixel (class scores 1 for one class, 0 for the
                others), which scores of L / ΣL have no need of: float16 is finest about 0.
        """
        if not variants:
            return
        purpose, count = "scanned" if centred else "measured", len(self.cached.stems)
        title = f"{self.cached.name}, {len(variants)} variants {purpose}"
        logger.info("%s: %d frames", title, count)
        query_temperatures = sorted({variant.divisors[0] for variant in variants})
        frames = Progress(read_frames(self.cache, self.cached), total=count, desc=title, unit="frame")
        for position, (target, predictions) in enumerate(frames):
            counted = target != VOID
            labels = target[counted]
            for variant in (variant for variant in variants if variant.score == RATIO):
                ratio = predictions.ratio_at(target.shape, self.cached.window).numpy()[counted]
                yield position, variant, ratio / variant.temperature, labels
            for begin in range(0, len(query_temperatures), scores_at_once):
                group = query_temperatures[begin : begin + scores_at_once]
                stacked = predictions.class_scores(target.shape, self.cached.window, group)
                for query_t, class_scores in zip(group, stacked, strict=True):
                    same = [v for v in variants if v.divisors[0] == query_t and v.score != RATIO]
                    rows = _take_pixels(class_scores, counted)
                    for variant, scores in _score_class_scores(rows, same, centred=centred):
                        yield position, variant, scores.ravel()[: len(labels)], labels

    def refine(self, kinds: Sequence[Kind], grid: Sequence[float]) -> dict[Kind, float]:
        """Return each kind's temperature of best AP: of the grid, then of ever closer neighbours of the best.

        While an end is best, by more than scans may err, the search goes on past it in steps of the last
        distance, to 0.001 and 1000; `at_end` and a warning say so. Then each round halves, on a logarithmic
        scale, the distance to both neighbours. All kinds of a round are scanned in one pass over the set; the
        best three of each are then measured, and the best of what was measured is returned.
        """
        searches = [self._search(kind, grid) for kind in kinds]
        for wanted in itertools.zip_longest(*searches, fillvalue=()):
            self.scan(itertools.chain(*wanted))
        of_kind = {kind: [v for v in self.known if v[:2] == kind] for kind in kinds}
        self.measure(v for each in of_kind.values() for v in sorted(each, key=self._ap)[-_FINALISTS:])
        measured = {kind: [v for v in found if v in self.metrics] for kind, found in of_kind.items()}
        return {kind: max(sorted(found), key=self._ap).temperature for kind, found in measured.items()}

    def _ap(self, variant: Variant) -> float:
        return (self.metrics if variant in self.metrics else self.scanned)[variant].ap

    def _search(self, kind: Kind, grid: Sequence[float]) -> Iterator[list[Variant]]:
        """Yield the variants that have to be known before the next step."""
        tried = [Variant(*kind, t) for t in sorted(grid)]
        yield tried
        yield from self._pass_ends(tried)
        for _ in range(_ROUNDS):
            best = max(tried, key=self._ap)
            at = tried.index(best)
            neighbours = [tried[i].temperature for i in (at - 1, at + 1) if 0 <= i < len(tried)]
            closer = (float(np.sqrt(best.temperature * neighbour)) for neighbour in neighbours)
            tried = sorted({*tried, *(Variant(*kind, t) for t in closer)})
            yield tried

    def _pass_ends(self, tried: list[Variant]) -> Iterator[list[Variant]]:
        """Add variants past an end of `tried`, ascending, while that end is best, and yield each."""
        lowest, highest = tried[0], tried[-1]
        while len(tried) > 1 and (best := max(tried, key=self._ap)) in (tried[0], tried[-1]):
            inner = tried[1 if best == tried[0] else -2]
            step = best.temperature / inner.temperature
            further = best._replace(temperature=float(np.clip(best.temperature * step, *_LIMITS)))
            if best[:2] not in self.at_end:
                self.at_end[best[:2]] = best.temperature
                told = f"{self.cached.name}: {best.label}: the best T is at the end of the grid"
                ends = (v.temperature for v in (best, lowest, highest))
                logger.warning("%s, %g of %g to %g; trying further", told, *ends)
            if further in tried or self._ap(best) - self._ap(inner) < _SCAN_ERROR:
                return
            tried.insert(0 if best == tried[0] else len(tried), further)
            yield [further]


def _take_pixels(
    class_scores: Float[Tensor, "C H W"], counted: Bool[np.ndarray, "H W"]
) -> Float[Tensor, "C R K"]:
    """Return the pixels that count, in rows, as scores are computed by; the last row is filled with zeros."""
    pixels = class_scores.flatten(1) if counted.all() else class_scores[:, torch.from_numpy(counted)]
    filled = torch.nn.functional.pad(pixels, (0, -pixels.shape[1] % _ROW))
    return filled.unflatten(1, (-1, _ROW))


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


def count_confusion(
    cache: Path, cached: CachedSet, query_temperatures: Sequence[float]
) -> dict[float, Int64[np.ndarray, "C C"]]:
    """Return the pixels of the closed set per true and predicted class, at each query temperature.

    A pixel temperature moves no class before another.
    """
    counts: dict[float, Int64[np.ndarray, "C C"]] = {}
    frames = read_frames(cache, cached)
    for target, predictions in Progress(
        frames, total=len(cached.stems), desc=f"{cached.name}, classes", unit="frame"
    ):
        for t in query_temperatures:
            found = predictions.class_scores(target.shape, cached.window, (t,))[0]
            counted = count_classes(target, predict_classes(found).numpy(), predictions.num_classes)
            counts[t] = counts.get(t, 0) + counted
    return counts


def fit_calibration(cache: Path, cached: CachedSet) -> float:
    """Return the T of softmax(L / T) with the least negative log-likelihood of a set's train ids.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017. NLL is convex in 1 / T.
    """
    class_scores, labels = [], []
    for target, predictions in read_frames(cache, cached):
        found = predictions.class_scores(target.shape, cached.window)[0]
        label = target[::STRIDE, ::STRIDE]
        counted = (label != VOID) & (label != OUTLIER_ID)
        class_scores.append(found[:, ::STRIDE, ::STRIDE].permute(1, 2, 0)[torch.from_numpy(counted)])
        labels.append(torch.from_numpy(label[counted].astype(np.int64)))
    return best_likelihood(torch.cat(class_scores), torch.cat(labels))
