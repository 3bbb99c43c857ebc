"""SegmentMeIfYouCan: one HDF5 file per image, where the official toolkit looks for it.

    anomaly_p/{method}/{AnomalyTrack-all,ObstacleTrack-all}/{stem}.hdf5
    anomaly_p/{method}/{LostAndFound-test,LostAndFound-train}/{frame}.hdf5

Each file has one dataset, `value`: float16 (H, W), higher = more anomalous, gzip level 9. The folder that
holds `anomaly_p` is what the toolkit calls DIR_OUTPUTS. Its other splits (validation, test, per scene,
testNoKnown) are subsets that it reads from these files.

Source: `evaluation.py` and `datasets/` of road-anomaly-benchmark at 1c7804e (2023-08).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32

from eval.sets.frames import Frame, files_by_ending, files_by_stem, numeric_key
from eval.sets.layouts import LOST_AND_FOUND, lost_and_found_images, lost_and_found_masks
from eval.sets.registry import EXTRA_SETS, TEST_SETS, Convention
from eval.submissions.picture import BenchmarkImage, PictureAnswer, Stored
from shards.errors import InputError
from shards.picture import MAX_PIXELS

NAME = "smiyc"
LOG_SCORES = ("MSP", "MaxEntropy", "NormalizedMSP", "NormalizedEntropy")
"""Scores in [0, 1] that networks answer near 1, or near 0, by the thousand. float16 has steps of 0.0005 below
1; the logarithm moves 1 to 0, where they are finest, and keeps the ratio of small ones."""
_TINY = float(np.finfo(np.float32).tiny)
KNOWN_COUNTS = {"AnomalyTrack-all": 110, "LostAndFound-train": 1036, "LostAndFound-test": 1203}
"""Images of each split, as the toolkit expects them; of ObstacleTrack-all it names none (330 to 452)."""
FILES = ("anomaly_p/{method}/{key}.hdf5",)
FILE_PATTERN = re.compile(r"anomaly_p/(?P<method>[^/]+)/(?P<key>[^/]+/[^/]+)\.hdf5")


def find_pictures(root: Path, _parts: Sequence[str] = ()) -> tuple[BenchmarkImage, ...]:
    """List all images of the tracks below `root`, labelled and hidden ones.

    Lost and Found is a track where its own labels lie beside the images; images alone are there for
    Fishyscapes.
    """
    found: list[BenchmarkImage] = []
    for convention in TEST_SETS.values():
        folder = root / convention.official.places[0] if convention.official else root
        if convention.smiyc and (folder / "images").is_dir():
            images = files_by_stem(folder / "images")
            images = {stem: images[stem] for stem in sorted(images, key=numeric_key)}
            masks = files_by_ending(folder / "labels_masks", "_labels_semantic.png")
            found += _list_part(convention.smiyc, images, masks, convention)
    for name in LOST_AND_FOUND:
        if not (root / name / "gtCoarse").is_dir():
            continue
        for split in ("test", "train"):
            images = lost_and_found_images(root / name, split)
            masks = lost_and_found_masks(root / name, split)
            found += _list_part(f"LostAndFound-{split}", images, masks, EXTRA_SETS["lost_and_found_test"])
    return tuple(found)


def _list_part(
    part: str, images: dict[str, Path], masks: dict[str, Path], convention: Convention
) -> Iterator[BenchmarkImage]:
    for stem, image in images.items():
        truth = (Frame(stem, image, masks[stem]), convention) if stem in masks else None
        yield BenchmarkImage(part, f"{part}/{stem}", image, truth=truth)


def encode(score: str, answer: PictureAnswer) -> tuple[bytes, ...]:
    """Return the contents of an image's files."""
    content = io.BytesIO()
    with require_h5py().File(content, "w") as file:
        file.create_dataset("value", data=to_half(score, answer.score), compression=9)
    return (content.getvalue(),)


def decode(contents: Sequence[bytes], names: Sequence[str]) -> Stored:
    """Read an image's files back; one that is not as the toolkit needs it is an InputError."""
    (content,), (name,) = contents, names
    try:
        with require_h5py().File(io.BytesIO(content), "r") as file:
            if "value" not in file:
                raise InputError(f"{name}: holds {', '.join(file) or 'nothing'}; expected the dataset value")
            variable = file["value"]
            shape, kind = tuple(variable.shape), variable.dtype
            if len(shape) != 2 or kind != np.float16 or np.prod(shape) > MAX_PIXELS:
                raise InputError(f"{name}: value is {kind} of shape {shape}; expected float16 (H, W)")
            return Stored(variable[:], None)
    except (OSError, RuntimeError, AttributeError) as error:
        raise InputError(f"{name}: cannot be read as HDF5: {error}") from None


def spread(score: str, values: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """Return `values` in the same order on a scale that half precision resolves.

    log(s) for `LOG_SCORES` (0 becomes -87.3), others as they are. No metric that only compares scores changes
    by it, but for fewer ties.
    """
    if score not in LOG_SCORES:
        return values
    assert np.nanmin(values) >= -1e-4, f"{score} is not in [0, 1], so its logarithm is not its order"
    return np.log(np.maximum(values, np.float32(_TINY)))


def to_half(score: str, values: Float32[np.ndarray, "H W"]) -> Float16[np.ndarray, "H W"]:
    """Return `spread(score, values)` in float16, which has to hold them."""
    moved = spread(score, values)
    largest = float(np.abs(moved).max())
    if largest > float(np.finfo(np.float16).max):
        limit = "does not fit into float16, whose largest number is 65504"
        raise InputError(f"score {score}: {largest:g} {limit}")
    return moved.astype(np.float16)


def require_h5py() -> Any:
    """Return the module h5py; an InputError says how to install it."""
    try:
        import h5py
    except ImportError:
        raise InputError(
            'packages of SMIYC are HDF5 files, which need h5py: pip install "eomt-anomaly[submission]"'
        ) from None
    return h5py
