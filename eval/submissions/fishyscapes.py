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

from eval.sets.frames import Frame
from eval.sets.registry import TEST_SETS
from eval.submissions.picture import Picture, PictureAnswer, Stored
from shards.errors import InputError
from shards.schema import NUM_CLASSES

NAME = "fishyscapes"
KNOWN_COUNTS = {"LostAndFound": 100, "Static": 30}
_VALIDATION = {"LostAndFound": "FS_LostFound_full", "Static": "fs_static"}
_INPUT = re.compile(r"(\d{4})_.*(?<!_labels)\.png")
_FILE = re.compile(r"(?P<key>\d{4})_(anomaly|segmentation)\.npy")
_ENDINGS = ("anomaly", "segmentation")


def find_pictures(root: Path, parts: Sequence[str] = ()) -> tuple[Picture, ...]:
    """List the images: `{number}_*.png` in `root` itself (part `input`), or the validation sets below it.

    Args:
        parts: those that are wanted, so that another one that is incomplete does not matter; (): all.

    Raises:
        InputError: two images have one number, or a validation set is incomplete.
    """
    numbered: dict[str, Path] = {}
    for path in sorted(root.glob("*.png")):
        if match := _INPUT.fullmatch(path.name):
            if match[1] in numbered:
                raise InputError(
                    f"{path}: two images of number {match[1]}; the other is {numbered[match[1]].name}"
                )
            numbered[match[1]] = path
    found = [Picture("input", number, path) for number, path in numbered.items()]
    for part, folder in _VALIDATION.items():
        layout = TEST_SETS[folder].official
        place = layout.find(root) if layout and (part in parts or not parts) else None
        for frame in layout.list_frames(place) if layout and place else ():
            found.append(_of_frame(part, frame, folder))
    return tuple(found)


def _of_frame(part: str, frame: Frame, folder: str) -> Picture:
    number = frame.stem.partition("_")[0]
    return Picture(part, number, frame.image, frame.overlay, (frame, TEST_SETS[folder]))


def name_files(key: str, _method: str) -> tuple[str, ...]:
    """Return the names of an image's files in a package."""
    return tuple(f"{key}_{ending}.npy" for ending in _ENDINGS)


def read_name(name: str) -> tuple[str, str] | None:
    """Return key and method ("": packages do not say) that a file is of; None: it is none of these."""
    match = _FILE.fullmatch(name)
    return (match["key"], "") if match else None


def encode(score: str, answer: PictureAnswer) -> tuple[bytes, ...]:
    """Return the contents of an image's files."""
    return _array_file(answer.score.astype(np.float32)), _array_file(answer.classes)


def _array_file(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def decode(contents: Sequence[bytes], names: Sequence[str]) -> Stored:
    """Read an image's files back.

    Raises:
        InputError: a file is not as the benchmark needs it.
    """
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
