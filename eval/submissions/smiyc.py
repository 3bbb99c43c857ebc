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
import math
import operator
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float16, Float32

from eval.predict.strips import PixelPrediction
from eval.sets.frames import Frame, files_by_ending, files_by_stem, numeric_key
from eval.sets.layouts import LOST_AND_FOUND, lost_and_found_images, lost_and_found_masks
from eval.sets.registry import EXTRA_SETS, TEST_SETS, Convention
from eval.submissions.benchmark import Benchmark, BenchmarkImage, Stored
from shards.errors import InputError
from shards.picture import MAX_PIXELS

LOG_SCORES = ("MSP", "MaxEntropy", "NormalizedMSP", "NormalizedEntropy")
"""Scores in [0, 1] that networks answer near 1, or near 0, by the thousand. float16 has steps of 0.0005 below
1; the logarithm moves 1 to 0, where they are finest, and keeps the ratio of small ones."""
_TINY = float(np.finfo(np.float32).tiny)
_DEFLATE = 1
_FILTERS = {_DEFLATE: "gzip", 2: "shuffle", 3: "fletcher32"}
"""Numbers of HDF5's own filters that packages are stored through."""
_MOST_CHUNKS = 10_000


def _find_pictures(root: Path, _parts: Sequence[str] = ()) -> tuple[BenchmarkImage, ...]:
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


def _encode(score: str, found: PixelPrediction) -> tuple[bytes, ...]:
    content = io.BytesIO()
    with require_h5py().File(content, "w") as file:
        file.create_dataset("value", data=to_half(score, found.scores[score]), compression=9)
    return (content.getvalue(),)


def _decode(contents: Sequence[bytes], names: Sequence[str]) -> Stored:
    (content,), (name,) = contents, names
    return Stored(read_hdf5(content, name, np.float16), None)


def read_hdf5(content: bytes, where: str, kind: type[np.floating] = np.floating) -> Float[np.ndarray, "H W"]:
    """Read dataset `value`, or the only one where any floating-point `kind` will do, of an HDF5 file.

    Its head is judged before HDF5 reads: by a link, external storage or a virtual dataset it would open other
    files of the machine, and it takes whatever memory a shape, a chunk or a compressed chunk asks for.
    """
    h5py = require_h5py()
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            names = list(file)
            name = names[0] if len(names) == 1 and kind is np.floating else "value"
            if name not in names:
                raise InputError(
                    f"{where}: holds {', '.join(names) or 'nothing'}; expected the dataset value"
                )
            is_own = isinstance(file.get(name, getlink=True), h5py.HardLink)
            values = file[name] if is_own else None
            if not isinstance(values, h5py.Dataset):
                raise InputError(f"{where}: {name} is a link or a group; a dataset is needed")
            if reason := _find_harm(values, kind):
                raise InputError(f"{where}: {name} {reason}")
            return np.asarray(values[()])
    except InputError:
        raise
    except Exception as error:  # what the C library meets becomes one of many
        raise InputError(f"{where}: cannot be read as HDF5: {' '.join(str(error).split())}") from None


def _find_harm(values: Any, kind: type[np.floating]) -> str:
    """Say why a dataset is not to be read; empty: it is."""
    shape = values.shape or ()
    if len(shape) != 2 or 0 in shape or not np.issubdtype(values.dtype, kind):
        wanted = "floating-point" if kind is np.floating else np.dtype(kind).name
        return f"is {values.dtype} of shape {shape}; expected {wanted} (H, W)"
    if math.prod(shape) > MAX_PIXELS:
        return f"has shape {shape}; at most {MAX_PIXELS:,} pixels are read"
    if values.external or values.is_virtual:
        return "lies in other files; a map holds its own numbers"
    if values.chunks is None:
        return ""
    storage = values.id.get_create_plist()
    filters = {storage.get_filter(i)[0] for i in range(storage.get_nfilters())}
    if not filters <= _FILTERS.keys():
        known = ", ".join(_FILTERS.values())
        return f"is stored through filter {min(filters - _FILTERS.keys())}; {known} or none is needed"
    if values.id.get_num_chunks() > _MOST_CHUNKS or any(map(operator.gt, values.chunks, shape)):
        return f"has chunks of {values.chunks}; at most {_MOST_CHUNKS:,}, none larger than the map, are read"
    num_bytes = math.prod(values.chunks) * values.dtype.itemsize
    for i in range(values.id.get_num_chunks() if _DEFLATE in filters else 0):
        _, packed = values.id.read_direct_chunk(values.id.get_chunk_info(i).chunk_offset)
        if len(zlib.decompressobj().decompress(packed, num_bytes + 1)) > num_bytes:
            return "unpacks to more than its shape says"
    return ""


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


SMIYC = Benchmark(
    name="smiyc",
    expects="dataset_AnomalyTrack, dataset_ObstacleTrack or LostAndFound",
    find_pictures=_find_pictures,
    files=("anomaly_p/{method}/{key}.hdf5",),
    file_pattern=re.compile(r"anomaly_p/(?P<method>[^/]+)/(?P<key>[^/]+/[^/]+)\.hdf5"),
    encode=_encode,
    decode=_decode,
    # as the toolkit expects them; of ObstacleTrack-all it names none (330 to 452)
    known_counts={"AnomalyTrack-all": 110, "LostAndFound-train": 1036, "LostAndFound-test": 1203},
    needs_classes=False,
)
