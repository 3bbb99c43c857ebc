"""What a network said of each frame, on disk, so that scores and temperatures need no second forward pass.

    CACHE/cache.json             model, checkpoint
    CACHE/{set}/index.json       name, window, frames
    CACHE/{set}/{position}.npz   target, and per window:
                                   of a mask model   masks (float16), classes (float32), num_classes
                                   of a pixel model  logits (float16)

Mask and pixel logits are rounded to half precision: 26 MB per frame of 2048×1024 in place of 80 to 160 MB.
Class logits, a few thousand numbers, stay float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from eval.predict.strips import resize_in_strips
from eval.predict.windows import segment_in_windows
from shards.errors import InputError
from shards.files import write_atomically

CLOSED_SET = "cityscapes"
"""Name of the set whose targets are train ids, not anomalies."""


@dataclass(frozen=True, kw_only=True)
class CacheInfo:
    """Whose predictions a cache holds."""

    model: str
    checkpoint: str
    fingerprint: str = ""
    """Of the network and all that its answers depend on."""


@dataclass(frozen=True, kw_only=True)
class CachedSet:
    """One set of a cache."""

    folder: str
    """As the test set's folder is called; `CLOSED_SET` for Cityscapes val."""
    name: str
    """As tables print it."""
    is_benchmark: bool
    """Whether numbers on it are reported as results, so that nothing may be chosen on it."""
    window: tuple[int, int]
    stems: tuple[str, ...]
    fingerprint: str = ""
    """Of the data."""


@dataclass(frozen=True)
class WindowPredictions:
    """What a network said of the windows of one frame, in the order in which `segment_in_windows` asks."""

    masks: Float[Tensor, "W Q h w"] | None
    classes: Float[Tensor, "W Q C1"] | None
    """Both for mask models."""
    logits: Float[Tensor, "W C _h _w"] | None
    """For pixel models, in place of both."""
    num_classes: int

    def evidence(
        self, size: tuple[int, int], window: tuple[int, int], query_temperature: float = 1.0
    ) -> Float[Tensor, "C H W"]:
        """Return the evidence of the frame at its own size.

        Args:
            size: (H, W) of the frame.
            window: (h, w), the input size of the network.
            query_temperature: T of softmax(class logits / T), before the sum over queries; mask models only.
        """
        return self.evidence_at(size, window, (query_temperature,))[0]

    def evidence_at(
        self, size: tuple[int, int], window: tuple[int, int], query_temperatures: Sequence[float]
    ) -> Float[Tensor, "T C H W"]:
        """Return the evidence at several query temperatures: masks are resized and squashed once for all."""
        position = 0

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
            return _contract(self.masks[part], torch.cat(shares, dim=-1), window)

        blank = torch.zeros(3, *size, dtype=torch.uint8)
        stacked = segment_in_windows(blank, replay, window, windows_at_once=1)
        return stacked.unflatten(0, (len(query_temperatures), -1))


def _contract(
    masks: Float[Tensor, "B Q _h _w"], shares: Float[Tensor, "B Q K"], size: tuple[int, int]
) -> Float[Tensor, "B K H W"]:
    """Return Σ_q shares_q · sigmoid(masks_q) at `size` in strips, as `pixel_evidence` does."""
    answer = torch.empty(len(masks), shares.shape[-1], *size)
    for rows, strip in resize_in_strips(masks, size):
        answer[:, :, rows] = torch.einsum("bqk,bqhw->bkhw", shares, strip.sigmoid())
    return answer


def write_frame(
    folder: Path, position: int, target: UInt8[np.ndarray, "H W"], predictions: WindowPredictions
) -> None:
    """Write one frame of a set."""
    arrays: dict[str, np.ndarray] = {"target": target, "num_classes": np.array(predictions.num_classes)}
    if predictions.logits is not None:
        arrays["logits"] = predictions.logits.half().cpu().numpy()
    else:
        assert predictions.masks is not None
        assert predictions.classes is not None
        arrays["masks"] = predictions.masks.half().cpu().numpy()
        arrays["classes"] = predictions.classes.float().cpu().numpy()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{position}.npz").open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_frame(folder: Path, position: int) -> tuple[UInt8[np.ndarray, "H W"], WindowPredictions]:
    """Read one frame of a set: its target, and what the network said.

    Raises:
        InputError: the file is missing or broken.
    """
    path = folder / f"{position}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            tensors = {
                name: torch.from_numpy(file[name]) if name in file else None
                for name in ("masks", "classes", "logits")
            }
            return file["target"], WindowPredictions(**tensors, num_classes=int(file["num_classes"]))
    except Exception as error:  # zip, header and size each have their own
        raise InputError(f"{path}: no cached prediction: {error}") from None


def write_index(cache: Path, cached: CachedSet) -> None:
    """Write a set's index, when all its frames are there: a set without one is not finished."""
    write_atomically(cache / cached.folder / "index.json", json.dumps(asdict(cached), indent=1) + "\n")


def remove_index(cache: Path, folder: str) -> None:
    """Declare a set unfinished."""
    (cache / folder / "index.json").unlink(missing_ok=True)


def write_info(cache: Path, info: CacheInfo) -> None:
    """Write whose predictions the cache holds."""
    write_atomically(cache / "cache.json", json.dumps(asdict(info), indent=1) + "\n")


def read_info(cache: Path) -> CacheInfo | None:
    """Read whose predictions a cache holds; None where it is none (yet)."""
    try:
        return CacheInfo(**json.loads((cache / "cache.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def read_index(cache: Path, folder: str) -> CachedSet | None:
    """Read the index of a set; None where it is not finished."""
    try:
        return _parse_index((cache / folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _parse_index(text: str) -> CachedSet:
    entry = json.loads(text)
    return CachedSet(**{**entry, "window": tuple(entry["window"]), "stems": tuple(entry["stems"])})


def read_cache(cache: Path, setting: str = "--cache") -> tuple[CacheInfo, tuple[CachedSet, ...]]:
    """Read what a cache holds.

    Raises:
        InputError: the folder is no cache, or no set in it is finished.
    """
    try:
        info = CacheInfo(**json.loads((cache / "cache.json").read_text(encoding="utf-8")))
        paths = sorted(cache.glob("*/index.json"))
        sets = tuple(_parse_index(path.read_text(encoding="utf-8")) for path in paths)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{setting} {cache}: no cache of jobs.evaluate --cache: {error}") from None
    if not sets:
        raise InputError(f"{setting} {cache}: no finished set in it; run jobs.evaluate --cache to its end")
    return info, sets


def read_frames(
    cache: Path, cached: CachedSet
) -> Iterator[tuple[UInt8[np.ndarray, "H W"], WindowPredictions]]:
    """Yield target and predictions of each frame of a set."""
    for position in range(len(cached.stems)):
        yield read_frame(cache / cached.folder, position)


class PredictionRecorder:
    """Collects what a network says of the windows of one frame until the frame is written."""

    def __init__(self, num_classes: int) -> None:
        """Start empty; `num_classes` counts the classes of the closed set."""
        self._num_classes = num_classes
        self._parts: list[tuple[Tensor, ...]] = []

    def add(self, *prediction: Tensor) -> None:
        """Keep mask and class logits, or pixel logits, of a group of windows, as they are stored."""
        first = prediction[0].half().cpu()
        self._parts.append((first, *(part.float().cpu() for part in prediction[1:])))

    def clear(self) -> None:
        """Forget the windows so far."""
        self._parts = []

    def take(self) -> WindowPredictions:
        """Return the frame's windows, and start the next frame."""
        joined: Sequence[Tensor] = [torch.cat(parts) for parts in zip(*self._parts, strict=True)]
        self.clear()
        if len(joined) == 1:
            return WindowPredictions(None, None, joined[0], self._num_classes)
        return WindowPredictions(joined[0], joined[1], None, self._num_classes)
