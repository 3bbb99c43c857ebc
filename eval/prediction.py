"""Predictions of pictures and videos in a folder: score maps, overlays, alarms; no labels.

OUT/maps/NAME.npy        score map of a frame, as `jobs.evaluate --score_maps` reads them
OUT/overlays/NAME.jpg    heat and alarms on the frame, and its classes
OUT/cells/frames/        alarms of each frame with the key of what it was made from; gone at the end
OUT/alarms.jsonl         all alarms, a line each
OUT/sheet.png            a few frames beside each other
OUT/videos/NAME.mp4      overlays of a video
OUT/cells/predictions.npz    key and counts, written last
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from eval.alarms import draw_overlay, find_alarms
from eval.key import hash_key, hash_texts
from eval.predict.footage import (
    FrameReader,
    InputFrame,
    frames_per_second,
    hash_inputs,
    limit_size,
    write_video,
)
from eval.predict.strips import PixelPrediction, predict_image
from eval.predict.windows import ModelSource, Predictor
from eval.protocol import Protocol
from eval.report.panels import Example, add_title, choose_examples, draw_panels, encode_png, scale_ends
from eval.result import CELLS, ResultFolder, open_folder
from eval.store import SUFFIX, ImageStore, Key, Worker, read_cached, write_cached
from shards.errors import InputError
from shards.files import PARTIAL, partial_file, remove_partials, write_atomically

logger = logging.getLogger(__name__)

MAPS, OVERLAYS, VIDEOS, ALARMS, SHEET = "maps", "overlays", "videos", "alarms.jsonl", "sheet.png"
FINISHED, FRAMES = "predictions", "frames"
NAMES = (CELLS, MAPS, OVERLAYS, ALARMS, SHEET, VIDEOS, FRAMES, FINISHED + SUFFIX)
"""Of what lies in the folder and in its cells."""
_LONGEST = 60_000
"""Pixels of the longer side of an overlay; JPEG ends at 65,535."""


@dataclass(frozen=True)
class PredictionCounts:
    """What a finished prediction holds."""

    frames: int
    alarms: int
    alarmed: int
    """Frames with an alarm."""


@dataclass(frozen=True, kw_only=True)
class PredictionRun:
    """A model, looked up and checked, and the frames that it is to see."""

    out: Path
    model: ModelSource
    """Built for one score."""
    network: Key
    """As of `eval.evaluate.Evaluation`."""
    frames: tuple[InputFrame, ...]
    protocol: Protocol
    """Of its fields only those that change a score map."""
    threshold: float
    """Of alarms; infinity: none is raised."""
    smallest: int
    """Pixels of the smallest alarm."""
    heat: tuple[float, float] | None
    """Scores at which colours begin and end; None: ends of the first frame, and the threshold."""
    maps: bool
    """Whether score maps are kept."""
    pictures: int
    """Frames on the sheet."""
    worker: Worker
    _reader: FrameReader = field(default_factory=FrameReader)

    def run(self) -> PredictionCounts | None:
        """Predict what is not finished yet, and write; None: another worker does, or frames are missing.

        An InputError says that a frame is damaged, the model answers NaN, or the folder holds other
        predictions.
        """
        worker = self.worker
        with open_folder(self.out, "continue", worker) as folder:
            counts, store = self._read_finished(folder), self._open_store()
            if counts is None:
                _ = self._predictor  # before anything is written: a broken checkpoint ends here
            worker.wait()
            if counts is not None:
                return counts if worker.leads or worker.is_task else None
            for name in (OVERLAYS, MAPS):
                (folder.path / name).mkdir(exist_ok=True)
            store.fill(self._make, worker, "frames", self._has_files)
            worker.wait()
            if worker.is_task:
                with folder.locked():  # another task may have been first
                    return self._read_finished(folder) or self._finish(store, folder)
            return self._finish(store, folder) if worker.leads else None

    @cached_property
    def _predictor(self) -> Predictor:
        return self.model.load()

    @property
    def _score(self) -> str:
        return self.model.scores[0]

    @cached_property
    def _keys(self) -> list[Key]:
        """Keys of all frames."""
        settings = {"score": self._score, "protocol": self.protocol.maps, "threshold": str(self.threshold)}
        settings |= {"smallest": str(self.smallest), "heat": str(self.heat), "maps": str(self.maps)}
        common = {**self.network, **settings, "pictures": str(self.pictures)}
        names = [f"{frame.name} {frame.number}" for frame in self.frames]
        hashes = hash_inputs(self.frames)
        common["first"] = hashes[0]  # of which the colours are
        return [{**common, "image": hash_texts(pair)} for pair in zip(names, hashes, strict=True)]

    def _open_store(self) -> ImageStore:
        return ImageStore(self.out.absolute() / CELLS / FRAMES, self._keys)

    def _read_finished(self, folder: ResultFolder) -> PredictionCounts | None:
        cached = read_cached(folder.file(FINISHED))
        if cached is None:
            return None
        if cached.key != self._key:
            names = [name for name, value in self._key.items() if cached.key.get(name) != value]
            advice = "choose another folder, or empty it"
            raise InputError(
                f"--out {self.out}: holds predictions with other {' and '.join(names)}; {advice}"
            )
        return PredictionCounts(**cached.content)

    @cached_property
    def _key(self) -> Key:
        """Key of the whole."""
        common = {name: value for name, value in self._keys[0].items() if name not in ("image", "first")}
        return {**common, "images": hash_texts(map(hash_key, self._keys))}

    @cached_property
    def _chosen(self) -> frozenset[int]:
        return choose_examples(len(self.frames), self.pictures)

    @cached_property
    def _ends(self) -> tuple[float, float]:
        if self.heat is not None:
            return self.heat
        low, high = scale_ends(self._first[1].scores[self._score])
        return low, max(high, self.threshold) if math.isfinite(self.threshold) else high

    @cached_property
    def _first(self) -> tuple[UInt8[np.ndarray, "H W 3"], PixelPrediction]:
        return self._predict(0)

    def _predict(self, position: int) -> tuple[UInt8[np.ndarray, "H W 3"], PixelPrediction]:
        frame = self.frames[position]
        image = self._reader.read(frame)
        predicted = predict_image(self._predictor, image, (self._score,), self.protocol)
        if not np.isfinite(predicted.scores[self._score]).all():
            kind = "NaN" if np.isnan(predicted.scores[self._score]).any() else "infinity"
            raise InputError(f"{frame.path}: the model answers {kind} as {self._score}")
        return image, predicted

    def _files(self, frame: InputFrame) -> list[Path]:
        names = [f"{OVERLAYS}/{frame.name}.jpg", *([f"{MAPS}/{frame.name}.npy"] if self.maps else [])]
        return [self.out.absolute() / name for name in names]

    def _has_files(self, position: int) -> bool:
        return all(path.is_file() for path in self._files(self.frames[position]))

    def _make(self, position: int) -> Mapping[str, np.ndarray]:
        """Write the files of a frame, and return its alarms, and what the sheet shows of it."""
        ends, (image, predicted) = self._ends, self._predict(position) if position else self._first
        frame, scores = self.frames[position], predicted.scores[self._score]
        alarms = find_alarms(scores, self.threshold, self.smallest)
        overlay = draw_overlay(image, scores, predicted.classes, alarms.mask, ends, self._predictor.classes)
        overlay_file, *map_files = self._files(frame)
        write_atomically(overlay_file, _encode_jpeg(overlay))
        for path in map_files:
            with partial_file(path) as partial, partial.open("wb") as file:
                np.save(file, scores)
        head = {"name": frame.name, "file": str(frame.path), "frame": frame.number}
        lines = [json.dumps(head | dataclasses.asdict(region)) for region in alarms.regions]
        arrays = {"alarms": np.frombuffer("\n".join(lines).encode(), np.uint8)}
        if position in self._chosen:
            mask = alarms.mask.astype(np.uint8)
            shown = Example(frame.name, image, mask, predicted.classes, {"score": scores}).shrink()
            arrays |= {"image": shown.image, "target": shown.target, "prediction": shown.prediction}
            arrays |= shown.scores
        return arrays

    def _finish(self, store: ImageStore, folder: ResultFolder) -> PredictionCounts | None:
        """Write what is made of all frames, if they are there."""
        if not all(store.has(i) and self._has_files(i) for i in range(len(store))):
            number = f"{self.worker.number}/{self.worker.count}"
            logger.info("%s: task %s is done; others are not yet", self.out, number)
            return None
        remove_partials(folder.path)
        counts = self._write_alarms(store, folder.path / ALARMS)
        if self._chosen:
            write_atomically(folder.path / SHEET, self._draw_sheet(store))
        for path in dict.fromkeys(frame.path for frame in self.frames if frame.number is not None):
            of_video = [frame for frame in self.frames if frame.path == path]
            overlays = (self._files(frame)[0] for frame in of_video)
            step = (of_video[1].number or 1) if len(of_video) > 1 else 1
            with tempfile.TemporaryDirectory(prefix=f".video{PARTIAL}", dir=folder.path) as scratch:
                made = Path(scratch) / f"{path.stem}.mp4"
                write_video(made, overlays, frames_per_second(path) / step)
                (folder.path / VIDEOS).mkdir(exist_ok=True)
                made.replace(folder.path / VIDEOS / made.name)
        self._remove_others(folder.path)
        write_cached(folder.file(FINISHED), self._key, dataclasses.asdict(counts), {})
        store.remove()
        return counts

    def _write_alarms(self, store: ImageStore, path: Path) -> PredictionCounts:
        found = []
        with partial_file(path) as partial, partial.open("w", encoding="utf-8") as file:
            for position in range(len(store)):
                lines = store.read(position, "alarms").tobytes().decode().splitlines()
                file.writelines(f"{line}\n" for line in lines)
                found.append(len(lines))
        return PredictionCounts(len(found), sum(found), sum(map(bool, found)))

    def _draw_sheet(self, store: ImageStore) -> bytes:
        examples = []
        for i in sorted(self._chosen):
            image, target, prediction, scores = (
                store.read(i, name) for name in ("image", "target", "prediction", "score")
            )
            frame = self.frames[i]
            examples.append(Example(frame.name, image, target, prediction, {self._score: scores}))
        limit = f" above {self.threshold:.4g}" if math.isfinite(self.threshold) else ", no threshold"
        return encode_png(
            add_title(f"{self._score}{limit}", draw_panels(examples, self._predictor.classes, "alarms"))
        )

    def _remove_others(self, folder: Path) -> None:
        """Remove files of frames that an earlier, unfinished call was given."""
        known = {path for frame in self.frames for path in self._files(frame)}
        for path in (*(folder / MAPS).iterdir(), *(folder / OVERLAYS).iterdir()):
            if path not in known:
                path.unlink()
        if not self.maps:
            (folder / MAPS).rmdir()


def _encode_jpeg(picture: UInt8[np.ndarray, "H W 3"]) -> bytes:
    done, data = cv2.imencode(".jpg", cv2.cvtColor(limit_size(picture, _LONGEST), cv2.COLOR_RGB2BGR))
    assert done, picture.shape
    return data.tobytes()
