"""Precomputed score maps, in place of a model: one file per image, matched by the image's name.

    FOLDER/{test set}/{stem}.npy           floating-point array (H, W)
    FOLDER/{test set}/{stem}.hdf5 (.h5)    the same, as dataset `value` or as the only one
    FOLDER/{test set}/{stem}.png           16 bits; v is the score low + (high - low) · v / 65535

A higher score is more anomalous. Test sets are named by their folder in the course's layout; SMIYC's own
names (AnomalyTrack-all, ...) are understood too, so that a package of `jobs.export --to smiyc` can be scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from eval.predict.score_names import DEFAULT_SCORES
from eval.predict.scores import SCORES
from eval.predict.windows import ModelSource
from eval.sets.frames import Frame, files_by_stem
from eval.sets.registry import TestSet, read_image
from eval.submissions.smiyc import read_hdf5
from shards.errors import InputError
from shards.files import require_name
from shards.picture import GREY16, MAX_PIXELS, decode_numbers
from shards.schema import CITYSCAPES

_MOST_BYTES = 8 * MAX_PIXELS + 2**20
SUFFIXES = (".npy", ".hdf5", ".h5", ".png")


class MapFolder:
    """Maps of a folder as a `Predictor`: an image is known again by its pixels."""

    sees = "score maps of the user's"
    has_evidence = False
    classes = CITYSCAPES

    def __init__(
        self,
        folder: Path,
        test_sets: Sequence[TestSet],
        *,
        scale: tuple[float, float] = (0.0, 1.0),
        is_limited: bool = False,
    ) -> None:
        """Match maps with images and read every map once, which takes seconds.

        An InputError says that a set has no folder, a map is missing, left over, of another size or type than
        its image needs, or not finite; or one image of two sets has two different maps.

        Args:
            scale: (low, high) scores of 0 and 65535 in PNG files.
            is_limited: the sets hold their first images only, so that maps may be left over.
        """
        self._scale = scale
        self._maps: dict[bytes, tuple[Path, str]] = {}
        pairs = [pair for test_set in test_sets for pair in _match(folder, test_set, is_limited)]
        for frame, path in pairs:
            image, values = read_image(frame), read_map(path, scale)
            if values.shape != image.shape[:2]:
                (rows, columns), (height, width) = values.shape, image.shape[:2]
                raise InputError(f"{path}: is {columns} x {rows}, its image {width} x {height}")
            key, content = _digest(image), hashlib.sha256(values.tobytes()).hexdigest()
            other, of_other = self._maps.setdefault(key, (path, content))
            if of_other != content:
                raise InputError(
                    f"{path}: another map than {other} of the same image; evaluate the sets apart"
                )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all maps and the images they belong to."""
        parts = sorted(key.hex() + content for key, (_, content) in self._maps.items())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def __call__(self, image: UInt8[np.ndarray, "H W 3"], scale: float = 1.0) -> Float[Tensor, "1 H W"]:
        assert scale == 1, "maps have no other scale"
        key = _digest(image)
        if key not in self._maps:
            rule = "maps are of native size, so without protocol course-512"
            raise InputError(f"--score_maps: asked for an image that no map belongs to; {rule}")
        return torch.from_numpy(read_map(self._maps[key][0], self._scale))[None]


def _name_score(scores: tuple[str, ...]) -> str:
    """Return the score's name in tables."""
    if scores == DEFAULT_SCORES:
        return "Score"
    if len(scores) != 1 or scores[0] in SCORES:
        given = f"got {', '.join(scores) or 'nothing'}; maps hold one score, of a name of your own"
        raise InputError(f"--scores: {given} (not {', '.join(SCORES)}, which are computed here)")
    require_name(scores[0], "--scores")
    return scores[0]


def require_map_folder(folder: Path, scores: tuple[str, ...]) -> None:
    """Check, before any file is read, that `folder` is there, and the name of its score."""
    if not folder.is_dir():
        raise InputError(f"--score_maps {folder}: no such folder")
    _name_score(scores)


def open_score_maps(
    folder: Path,
    test_sets: Sequence[TestSet],
    scores: tuple[str, ...],
    scale: tuple[float, float],
    *,
    is_limited: bool,
) -> ModelSource:
    """Read the maps of all images; `scores` may name the score, the others are those of `MapFolder`."""
    maps = MapFolder(folder, test_sets, scale=scale, is_limited=is_limited)
    return ModelSource(str(folder), maps.fingerprint, (_name_score(scores),), lambda: maps)


def _digest(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()


def _match(folder: Path, test_set: TestSet, is_limited: bool) -> list[tuple[Frame, Path]]:
    """Pair the frames of a set with their maps."""
    name, other = test_set.convention.folder, test_set.convention.smiyc
    place = next((folder / each for each in (name, other) if each and (folder / each).is_dir()), None)
    if place is None:
        raise InputError(f"--score_maps {folder}: no folder {name} in it, which --datasets has")
    found = files_by_stem(place, SUFFIXES)
    for frame in test_set.frames:
        if frame.stem not in found:
            raise InputError(f"{place}: no map for image {frame.stem}; expected suffix {', '.join(SUFFIXES)}")
    extra = sorted(found.keys() - {frame.stem for frame in test_set.frames})
    if extra and not is_limited and place.name == name:  # SMIYC's folders hold the hidden split too
        raise InputError(f"{found[extra[0]]}: map without image in {name}, {len(extra)} in all")
    return [(frame, found[frame.stem]) for frame in test_set.frames]


def read_map(path: Path, scale: tuple[float, float] = (0.0, 1.0)) -> Float32[np.ndarray, "H W"]:
    """Read one score map, finite; (low, high) of `scale` are the scores of 0 and 65535 in PNG files."""
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{path}: is no file of at most {_MOST_BYTES:,} bytes")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        values = _read_npy(path)
    elif suffix == ".png":  # of 256 levels whole regions would tie
        levels = decode_numbers(path.read_bytes(), str(path), (GREY16,)).astype(np.float64)
        values = scale[0] + (scale[1] - scale[0]) * (levels / 65535)
    else:
        values = read_hdf5(path.read_bytes(), str(path))
    is_map = values.ndim == 2 and np.issubdtype(values.dtype, np.floating)
    if not is_map or not 0 < values.size <= MAX_PIXELS:
        given = f"{values.dtype} of shape {values.shape}"
        raise InputError(f"{path}: {given}; expected floating-point (H, W), {MAX_PIXELS:,} pixels at most")
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{path}: holds {'NaN' if np.isnan(values).any() else 'infinity'}")
    return values


def _read_npy(path: Path) -> np.ndarray:
    """Map the file: no memory is taken, and a header that promises more than the file has is refused."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # the header is Python text, and its parsers have many errors
        raise InputError(f"{path}: cannot be read as an array: {' '.join(str(error).split())}") from None
    if not isinstance(values, np.ndarray):
        values.close()
        raise InputError(f"{path}: is an npz file; a single array is needed, as np.save writes it")
    return values
