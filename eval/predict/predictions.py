"""Predictions of a network, frame by frame, on disk: scores and temperatures need no second forward pass.

    CACHE/cache.json             model, checkpoint
    CACHE/{set}/index.json       name, window, frames
    CACHE/{set}/{position}.npz   target, and per window:
                                   of a mask model   masks (float16), classes (float32), num_classes,
                                                     ratio (float32) of its outlier head, if there is one
                                   of a pixel model  logits (float16)

Mask and pixel logits are rounded to half precision: 26 MB per frame of 2048×1024 in place of 80 to 160 MB.
Class logits, a few thousand numbers, stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from eval.predict.queries import resize_masks
from eval.predict.strips import resize_in_strips
from eval.predict.windows import predict_in_windows
from eval.sets.registry import Convention
from shards.errors import InputError
from shards.files import partial_file, read_json, remove_partials, to_json, write_atomically
from shards.output import make_folder, require_free

T = TypeVar("T")

CLOSED_SET = "cityscapes"
"""Name of the set whose targets are train ids, not anomalies."""


@dataclass(frozen=True, kw_only=True)
class CacheInfo:
    """Origin of predictions."""

    model: str
    """Its name in tables."""
    checkpoint: str
    """Path of the checkpoint, or of what stands in its place."""
    fingerprint: str = ""
    """Hash of the network and all that its predictions depend on."""
    entropic_scale: float = 0.0
    """Factor of distances in the class logits of an IsoMax+ head; 0 of other heads."""
    limit: int | None = None
    """As of `eval.report.record.Record`."""
    classes: tuple[str, ...] = ()
    """Names of the closed set's classes; empty: Cityscapes', or there is no such set."""


@dataclass(frozen=True, kw_only=True)
class CachedSet:
    """One set of a cache."""

    folder: str
    """The test set's, in the course's layout; `CLOSED_SET` for Cityscapes val."""
    name: str
    """The set's, in tables."""
    is_benchmark: bool
    """Whether numbers on it are reported as results, so that nothing may be chosen on it."""
    window: tuple[int, int]
    stems: tuple[str, ...]
    sees: str = ""
    """As of `eval.predict.windows.Predictor`."""
    limit: int | None = None
    """As of `eval.report.record.Record`."""
    fingerprint: str = ""
    """Hash of the data."""


@dataclass(frozen=True)
class WindowPredictions:
    """Predictions of the windows of one frame, in the order in which `predict_in_windows` asks."""

    masks: Float[Tensor, "W Q h w"] | None
    classes: Float[Tensor, "W Q C1"] | None
    """Both for mask models."""
    logits: Float[Tensor, "W C _h _w"] | None
    """For pixel models, in place of both."""
    num_classes: int
    ratio: Float[Tensor, "W 1 _h _w"] | None = None
    """Log-likelihood ratio of an outlier head, where the model has one."""

    def ratio_at(self, size: tuple[int, int], window: tuple[int, int]) -> Float[Tensor, "H W"]:
        """Return the log-likelihood ratio of a frame of `size`, seen in windows of (h, w)."""
        assert self.ratio is not None
        maps = iter(resize_masks(self.ratio, window))
        blank = torch.zeros(3, *size, dtype=torch.uint8)
        return predict_in_windows(blank, lambda _: next(maps)[None], window, windows_at_once=1)[0]

    def class_scores(
        self, size: tuple[int, int], window: tuple[int, int], query_temperatures: Sequence[float] = (1.0,)
    ) -> Float[Tensor, "T C H W"]:
        """Return the class scores of a frame of `size` (H, W), seen in windows of (h, w).

        `query_temperatures`: of softmax(class logits / T), before the sum over queries; mask models only,
        whose masks are resized and squashed once for all.
        """
        position = 0
        if self.logits is not None and len(self.logits) == 1:  # one window is the whole image, scaled
            whole = F.interpolate(self.logits.float(), size=size, mode="bilinear", align_corners=False)
            return whole.expand(len(query_temperatures), -1, -1, -1)

        def replay(crops: Tensor) -> Tensor:
            nonlocal position
            part = slice(position, position + len(crops))
            position += len(crops)
            if self.logits is not None:
                return self.logits[part].float().repeat(1, len(query_temperatures), 1, 1)
            assert self.masks is not None
            assert self.classes is not None
            classes = self.classes[part].float()
            shares = [(classes / t).softmax(dim=-1)[..., : self.num_classes] for t in query_temperatures]
            # Σ_q weights_q · sigmoid(masks_q), as `pixel_class_scores` does
            weights = torch.cat(shares, dim=-1)
            answer = torch.empty(len(crops), weights.shape[-1], *window)
            for rows, strip in resize_in_strips(self.masks[part], window):
                answer[:, :, rows] = torch.einsum("bqk,bqhw->bkhw", weights, strip.sigmoid())
            return answer

        blank = torch.zeros(3, *size, dtype=torch.uint8)
        stacked = predict_in_windows(blank, replay, window, windows_at_once=1)
        return stacked.unflatten(0, (len(query_temperatures), -1))


def write_frame(
    folder: Path, position: int, target: UInt8[np.ndarray, "H W"], predictions: WindowPredictions
) -> None:
    """Write one frame of a set."""
    arrays: dict[str, np.ndarray] = {"target": target, "num_classes": np.array(predictions.num_classes)}
    half = {"logits": predictions.logits, "masks": predictions.masks}
    arrays |= {name: part.half().cpu().numpy() for name, part in half.items() if part is not None}
    whole = {"classes": predictions.classes, "ratio": predictions.ratio}
    arrays |= {name: part.float().cpu().numpy() for name, part in whole.items() if part is not None}
    folder.mkdir(parents=True, exist_ok=True)
    with partial_file(folder / f"{position}.npz") as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_frame(folder: Path, position: int) -> tuple[UInt8[np.ndarray, "H W"], WindowPredictions]:
    """Read target and predictions of one frame of a set."""

    def read(file: Any) -> tuple[UInt8[np.ndarray, "H W"], WindowPredictions]:
        names = ("masks", "classes", "logits", "ratio")
        tensors = {name: torch.from_numpy(file[name]) if name in file else None for name in names}
        return file["target"], WindowPredictions(**tensors, num_classes=int(file["num_classes"]))

    return _read_file(folder, position, read)


def read_target(folder: Path, position: int) -> UInt8[np.ndarray, "H W"]:
    """Read the target of one frame of a set alone."""
    return _read_file(folder, position, lambda file: np.ascontiguousarray(file["target"]))


def _read_file(folder: Path, position: int, read: Callable[[Any], T]) -> T:
    path = folder / f"{position}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            return read(file)
    except Exception as error:  # zip, header and size each have their own
        raise InputError(f"{path}: no cached prediction: {error}") from None


def write_index(cache: Path, cached: CachedSet) -> None:
    """Write a set's index, when all its frames are there: a set without one is not finished."""
    write_atomically(cache / cached.folder / "index.json", to_json(cached))


def read_cache(cache: Path) -> tuple[CacheInfo, tuple[CachedSet, ...]]:
    """Read what a cache holds, of which at least one set must be finished."""
    try:
        info: CacheInfo = read_json(CacheInfo, cache / "cache.json")
        paths = sorted(cache.glob("*/index.json"))
        sets: tuple[CachedSet, ...] = tuple(read_json(CachedSet, path) for path in paths)
    except InputError as error:
        raise InputError(f"--cache {cache}: no cache of jobs.evaluate --cache: {error}") from None
    if not sets:
        raise InputError(f"--cache {cache}: no finished set in it; run jobs.evaluate --cache to its end")
    return info, sets


def read_frames(
    cache: Path, cached: CachedSet
) -> Iterator[tuple[UInt8[np.ndarray, "H W"], WindowPredictions]]:
    """Yield target and predictions of each frame of a set."""
    for position in range(len(cached.stems)):
        yield read_frame(cache / cached.folder, position)


class PredictionRecorder:
    """Collects the predictions of the windows of one frame until the frame is written.

    Whoever loads the network sets the classes of its closed set, its input size (h, w), entropic scale and
    how it `sees`.
    """

    def __init__(self, num_classes: int = 0, window: tuple[int, int] = (0, 0)) -> None:
        self.num_classes, self.window, self.entropic_scale, self.sees = num_classes, window, 0.0, ""
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, *prediction: Tensor) -> None:
        """Keep mask and class logits (and a ratio), or pixel logits, of a group of windows, as stored."""
        first = prediction[0].half().cpu()
        self._parts.append((first, *(part.float().cpu() for part in prediction[1:])))

    def take(self) -> WindowPredictions:
        """Return the frame's windows, and start the next frame."""
        first, *rest = (torch.cat(parts) for parts in zip(*self._parts, strict=True))
        self._parts = []
        if rest:
            return WindowPredictions(first, rest[0], None, self.num_classes, *rest[1:])
        return WindowPredictions(None, None, first, self.num_classes)


class PredictionCache:
    """A cache under construction; sets that an earlier run finished stay."""

    def __init__(self, folder: Path, info: CacheInfo, recorder: PredictionRecorder) -> None:
        """Use a folder that is new, empty, or of an evaluation of the same network.

        Args:
            recorder: that the network is loaded with.
        """
        self.folder, self._info, self._recorder = folder, info, recorder
        try:
            before: CacheInfo = read_json(CacheInfo, folder / "cache.json")
        except InputError:
            require_free(folder, "--cache")
            return
        if before.fingerprint != info.fingerprint:
            held = f"holds predictions of {before.checkpoint} with other weights, code or settings"
            raise InputError(f"--cache {folder}: {held}; choose another folder or empty it")

    def start(self, *, is_alone: bool) -> None:
        """Make the folder; `is_alone`: nobody else writes there now, so that a killed one's files go."""
        make_folder(self.folder, "--cache")
        if is_alone:
            remove_partials(self.folder)
        info = replace(self._info, entropic_scale=self._recorder.entropic_scale)
        write_atomically(self.folder / "cache.json", to_json(info))

    def has_set(self, name: str, fingerprint: str) -> bool:
        """Whether the set in folder `name` is complete, of this data."""
        try:
            cached: CachedSet = read_json(CachedSet, self.folder / name / "index.json")
            return cached.fingerprint == fingerprint
        except InputError:
            return False

    def has_frame(self, name: str, position: int) -> bool:
        """Whether a frame of a set was written, of any data."""
        return (self.folder / name / f"{position}.npz").is_file()

    def write_frame(self, name: str, position: int, target: UInt8[np.ndarray, "H W"]) -> None:
        """Write what the network said of the frame that it saw last."""
        (self.folder / name / "index.json").unlink(missing_ok=True)  # the set is unfinished from now on
        write_frame(self.folder / name, position, target, self._recorder.take())

    def finish_set(self, convention: Convention, stems: Sequence[str], fingerprint: str) -> None:
        """Write the index of a set, all of whose frames are there."""
        cached = CachedSet(
            folder=convention.folder,
            name=convention.name,
            is_benchmark=convention.is_benchmark,
            window=self._recorder.window,
            stems=tuple(stems),
            sees=self._recorder.sees,
            limit=self._info.limit,
            fingerprint=fingerprint,
        )
        write_index(self.folder, cached)
