"""Calibration of the threshold of alarms on a declared validation set, in a folder.

OUT/cells/images/{image}.npz    score maps of an image; gone at the end
OUT/calibration.md              table
OUT/calibration.json            what `jobs.predict` and `jobs.export` read; written last
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool

from eval.alarms import raise_mask
from eval.conformal import RiskBound, choose_threshold
from eval.key import hash_frames, hash_key
from eval.metrics.components import number_segments
from eval.part import TestSetPart
from eval.predict.windows import ModelSource
from eval.protocol import Protocol, get_protocol
from eval.result import CELLS, ResultFolder, open_folder
from eval.store import ImageStore, Key, Worker
from shards.errors import InputError
from shards.files import read_json, to_json, write_atomically
from shards.progress import Progress
from shards.schema import ANOMALY, NORMAL

CALIBRATION, TABLE, IMAGES = "calibration.json", "calibration.md", "images"
NAMES = (CELLS, CALIBRATION, TABLE, IMAGES)
"""Of what lies in the folder and in its cells."""
Unit = Literal["pixels", "objects"]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A threshold, and what is promised of it."""

    threshold: float
    """Pixels with a larger score are alarms."""
    score: str
    protocol: str
    smallest: int
    """Pixels of the smallest alarm."""
    risk: Unit
    """What is missed: of a frame with an anomaly, the share of anomalous pixels that no alarm covers, or of
    objects that no alarm touches."""
    alpha: float
    delta: float | None
    """As of `eval.conformal.RiskBound`."""
    n: int
    """Calibration frames with an anomaly."""
    frames: int
    """All calibration frames."""
    missed: float
    """Mean share of them that was missed at the threshold."""
    false_alarms: float
    """Alarms per frame that touch normal pixels and no anomaly."""
    dataset: str
    model: str
    fingerprint: str
    """Hash of the model."""
    key: str
    """Hash of all that it was made from."""

    def __post_init__(self) -> None:
        numbers = (self.threshold, self.alpha, self.missed, self.false_alarms)
        if not all(map(math.isfinite, numbers)) or self.smallest < 1:
            raise InputError("holds numbers that no calibration has")

    def describe(self) -> str:
        """Say what is promised, and what it costs, in one line."""
        sure = f"with confidence {1 - self.delta:g}" if self.delta is not None else "in the mean over draws"
        promised = f"at most {100 * self.alpha:g} % of anomalous {self.risk} missed {sure}"
        cost = f"{self.false_alarms:.3g} false alarms per frame there"
        return f"{promised}, on frames like the {self.n} with anomalies of {self.dataset}; {cost}"

    def require_of(self, model: ModelSource, protocol: Protocol, where: str) -> None:
        """Check that it is of this model, score and protocol."""
        for name, own, given in (
            ("score", self.score, model.scores[0]),
            ("protocol", get_protocol(self.protocol).maps, protocol.maps),
        ):
            if own != given:
                raise InputError(f"{where}: is of {name} {own}; got {given}")
        if self.fingerprint != model.fingerprint:
            told = f"is of another model than {model.name}, {self.model}; run jobs.calibrate for this one"
            raise InputError(f"{where}: {told}")


def read_calibration(path: Path, setting: str = "--calibration") -> Calibration:
    """Read calibration.json; an InputError says what is wrong with it."""
    try:
        found: Calibration = read_json(Calibration, path)
        get_protocol(found.protocol, f"{path}: protocol")
    except InputError as error:
        raise InputError(f"{setting} {error}; a calibration of jobs.calibrate is needed") from None
    return found


@dataclass(frozen=True, kw_only=True)
class CalibrationRun:
    """A model, looked up and checked, and the validation set that its threshold is to be calibrated on."""

    out: Path
    model: ModelSource
    """Built for one score."""
    network: Key
    """As of `eval.evaluate.Evaluation`."""
    part: TestSetPart
    bound: RiskBound
    risk: Unit
    smallest: int
    worker: Worker

    def run(self) -> Calibration | None:
        """Predict what is not finished, calibrate, and write; None: another worker does.

        An InputError says that too few frames have an anomaly, or the folder holds another calibration.
        """
        worker = self.worker
        with open_folder(self.out, "continue", worker) as folder:
            images = hash_frames(self.part.test_set)
            scores = {"scores": " ".join(self.part.scores)}
            keys = [{**self.network, **scores, "image": image} for image in images]
            key = hash_key({str(i): hash_key(each) for i, each in enumerate(keys)} | self._settings())
            finished = self._read_finished(folder, key)
            worker.wait()
            if finished is not None:
                return finished if worker.leads or worker.is_task else None
            store = ImageStore(folder.path / CELLS / IMAGES, keys)
            predictor = self.model.load()
            make = self.part.predict
            store.fill(lambda image: make(predictor, image)[1], worker, self.part.convention.name)
            worker.wait()
            if worker.is_task:
                with folder.locked():
                    is_whole = all(store.has(image) for image in range(len(store)))
                    return self._read_finished(folder, key) or (
                        self._write(store, folder, key) if is_whole else None
                    )
            return self._write(store, folder, key) if worker.leads else None

    def _settings(self) -> dict[str, str]:
        settings = {"maps": self.part.maps, "risk": self.risk, "smallest": str(self.smallest)}
        return settings | {"alpha": str(self.bound.alpha), "delta": str(self.bound.delta)}

    def _read_finished(self, folder: ResultFolder, key: str) -> Calibration | None:
        path = folder.path / CALIBRATION
        if not path.is_file():
            return None
        found = read_calibration(path, "--out")
        if found.key != key:
            raise InputError(f"--out {path}: is another calibration; choose another folder, or empty it")
        return found

    def _write(self, store: ImageStore, folder: ResultFolder, key: str) -> Calibration:
        found = self._calibrate(store, key)
        write_atomically(folder.path / TABLE, render_table(found))
        write_atomically(folder.path / CALIBRATION, to_json(found))
        store.remove()
        return found

    def _calibrate(self, store: ImageStore, key: str) -> Calibration:
        score, risk = self.part.scores[0], _LOSSES[self.risk]
        frames = [i for i in range(len(store)) if (store.read(i, "target") == ANOMALY).any()]
        ends = _find_ends(store, score, frames)
        bar = Progress(desc="thresholds", unit="threshold")

        def mean_loss(threshold: float) -> float:
            bar.update()
            losses = []
            for i in frames:
                mask = raise_mask(store.scores(i, score), threshold, self.smallest)[0]
                losses.append(risk(mask, store.read(i, "target") == ANOMALY))
            return math.fsum(losses) / len(losses)

        threshold = choose_threshold(mean_loss, len(frames), self.bound, ends)
        if threshold is None:
            told = f"frames of fewer than {self.smallest} pixels have no alarm at all"
            raise InputError(f"--smallest: got {self.smallest}; {told}, so that the risk is never low")
        return Calibration(
            threshold=threshold,
            score=score,
            protocol=self.part.protocols[0].name,
            smallest=self.smallest,
            risk=self.risk,
            alpha=self.bound.alpha,
            delta=self.bound.delta,
            n=len(frames),
            frames=len(store),
            missed=mean_loss(threshold),
            false_alarms=float(np.mean(list(self._count_false(store, threshold)))),
            dataset=self.part.convention.name,
            model=self.model.name,
            fingerprint=self.model.fingerprint,
            key=key,
        )

    def _count_false(self, store: ImageStore, threshold: float) -> Iterator[int]:
        """Yield the number of alarms of each frame that touch normal pixels and no anomaly."""
        for i in range(len(store)):
            target = store.read(i, "target")
            mask, labels, stats = raise_mask(store.scores(i, self.part.scores[0]), threshold, self.smallest)
            touching = [
                np.bincount(labels[mask & (target == v)], minlength=len(stats)) > 0 for v in (NORMAL, ANOMALY)
            ]
            yield int((touching[0] & ~touching[1]).sum())


def _find_ends(store: ImageStore, score: str, frames: list[int]) -> tuple[float, float]:
    """Return a threshold below all scores of frames with an anomaly, and the largest score of an anomaly."""
    low, high = math.inf, -math.inf
    for i in frames:
        scores = store.scores(i, score)
        if not np.isfinite(scores).all():
            raise InputError(f"{store.path(i)}: the model answers NaN or infinity as {score}")
        low = min(low, float(scores.min()))
        high = max(high, float(scores[store.read(i, "target") == ANOMALY].max()))
    return float(np.nextafter(np.float32(low), np.float32(-np.inf))), high


def missed_pixels(mask: Bool[np.ndarray, "H W"], is_anomaly: Bool[np.ndarray, "H W"]) -> float:
    """Return the share of anomalous pixels that no alarm covers."""
    return float(1 - mask[is_anomaly].mean())


def missed_objects(mask: Bool[np.ndarray, "H W"], is_anomaly: Bool[np.ndarray, "H W"]) -> float:
    """Return the share of 8-connected anomalous regions that no alarm touches."""
    numbers = number_segments(is_anomaly)
    return float(1 - np.unique(numbers[mask & is_anomaly]).size / numbers.max())


_LOSSES: dict[Unit, Callable[[np.ndarray, np.ndarray], float]] = {
    "pixels": missed_pixels,
    "objects": missed_objects,
}


def render_table(found: Calibration) -> str:
    """Render a calibration as Markdown."""
    sure = "mean over draws" if found.delta is None else f"{1 - found.delta:g}"
    cells = {
        "model": found.model,
        "score": found.score,
        "threshold": f"{found.threshold:.6g}",
        f"missed {found.risk}, at most": f"{100 * found.alpha:g} %",
        "confidence": sure,
        "missed here": f"{100 * found.missed:.2f} %",
        "false alarms per frame": f"{found.false_alarms:.3g}",
        "frames with anomalies": f"{found.n} of {found.frames}",
    }
    rows = ("| " + " | ".join(row) + " |" for row in (cells, ["---"] * len(cells), cells.values()))
    alarms = f"Alarms are regions of {found.smallest} pixels or more, protocol {found.protocol}."
    return "\n".join(rows) + f"\n\n{alarms} Promised: {found.describe()}.\n"
