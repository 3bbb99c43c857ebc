"""Fishyscapes: two arrays per image, as its validation reads them from a container's output folder.

    {number}_anomaly.npy        float32 (H, W), higher = more anomalous
    {number}_segmentation.npy   uint8 (H, W), train ids 0..18

What is submitted is a Singularity container that reads `/input/{number}_*.png` and writes these files to
`/output`; `jobs.export --to fishyscapes` is what runs inside it, and what checks the output beforehand.

Source: fishyscapes.com/submission, and `eval.py` of hermannsblum/fishyscapes at d78502b (2023-06).
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.predict.strips import PixelPrediction
from eval.sets.registry import TEST_SETS
from eval.submissions.benchmark import Benchmark, BenchmarkImage, Stored
from shards.errors import InputError
from shards.schema import NUM_CLASSES

_VALIDATION = {"LostAndFound": "FS_LostFound_full", "Static": "fs_static"}
_INPUT = re.compile(r"(\d{4})_.*(?<!_labels)\.png")


def _find_pictures(root: Path, parts: Sequence[str] = ()) -> tuple[BenchmarkImage, ...]:
    """List the images: `{number}_*.png` in `root` itself (part `input`), or the validation sets below it.

    Args:
        parts: those that are wanted, so that another one that is incomplete does not matter; (): all.
    """
    numbered: dict[str, Path] = {}
    for path in sorted(root.glob("*.png")):
        if match := _INPUT.fullmatch(path.name):
            if match[1] in numbered:
                other = numbered[match[1]].name
                raise InputError(f"{path}: two images of number {match[1]}; the other is {other}")
            numbered[match[1]] = path
    found = [BenchmarkImage("input", number, path) for number, path in numbered.items()]
    for part, folder in _VALIDATION.items():
        convention = TEST_SETS[folder]
        layout = convention.official
        place = layout.find(root) if layout and (part in parts or not parts) else None
        for frame in layout.list_frames(place) if layout and place else ():
            number = frame.stem.partition("_")[0]
            found.append(BenchmarkImage(part, number, frame.image, frame.overlay, (frame, convention)))
    return tuple(found)


def _encode(score: str, found: PixelPrediction) -> tuple[bytes, ...]:
    return _array_file(found.scores[score].astype(np.float32)), _array_file(found.classes)


def _array_file(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def _decode(contents: Sequence[bytes], names: Sequence[str]) -> Stored:
    arrays = []
    for content, name in zip(contents, names, strict=True):
        try:
            arrays.append(np.load(io.BytesIO(content), allow_pickle=False))
        except (ValueError, EOFError, OSError) as error:
            raise InputError(f"{name}: cannot be read as an array: {error}") from None
    (anomaly, classes), (anomaly_name, classes_name) = arrays, names
    for array, kind, allowed, name in (
        (anomaly, np.floating, "floating-point numbers", anomaly_name),
        (classes, np.integer, "integers", classes_name),
    ):
        if array.ndim != 2 or not np.issubdtype(array.dtype, kind):
            raise InputError(f"{name}: {array.dtype} of shape {array.shape}; expected {allowed} (H, W)")
    if classes.size and not 0 <= int(classes.min()) <= int(classes.max()) < NUM_CLASSES:
        low, high = int(classes.min()), int(classes.max())
        raise InputError(f"{classes_name}: classes {low} to {high}; allowed are 0 to {NUM_CLASSES - 1}")
    return Stored(anomaly, classes.astype(np.uint8))


FISHYSCAPES = Benchmark(
    name="fishyscapes",
    expects="NNNN_*.png, fishyscapes_lostandfound or fs_val_v3",
    find_pictures=_find_pictures,
    files=("{key}_anomaly.npy", "{key}_segmentation.npy"),
    file_pattern=re.compile(r"(?P<key>\d{4})_(anomaly|segmentation)\.npy"),
    encode=_encode,
    decode=_decode,
    known_counts={"LostAndFound": 100, "Static": 30},
    together=False,
)
