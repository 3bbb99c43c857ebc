"""Pictures and videos of a user's, without labels: found by path or pattern, read frame by frame.

A video is read by FFmpeg through OpenCV, forwards only: jumps land elsewhere with some encodings. One frame
of it is in memory.
"""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from eval.sets.frames import IMAGE_SUFFIXES, numeric_key, read_file, read_picture
from shards.errors import InputError, StorageError
from shards.files import hash_file
from shards.picture import decode_picture, read_size, require_sane_size
from shards.source import list_visible

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET; OpenCV looks once, at its first video
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
_SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")
_STARTS = (*((4, box) for box in _BOXES), (0, b"\x1a\x45\xdf\xa3"), (8, b"AVI "))
"""Places and bytes by which MP4 and QuickTime, Matroska and AVI begin. FFmpeg believes no suffix, and some
kinds, such as playlists, would have it open other files and addresses."""


@dataclass(frozen=True)
class InputFrame:
    """A picture, or one frame of a video."""

    name: str
    """Of its outputs; no other frame has it."""
    path: Path
    number: int | None = None
    """Its place in the video, from 0; None: it is a picture."""


def find_frames(places: Sequence[str], every: int, left_out: Path, setting: str) -> tuple[InputFrame, ...]:
    """List the frames of pictures, folders, patterns (`*`, `?`, `[...]`, `**`) and videos, in their order.

    Pictures of one place are in numeric order. Every video is read once, to count its frames. An InputError
    says that a place holds no picture, a file is none, or two have the same name.

    Args:
        every: take every n-th frame of a video.
        left_out: folder whose files are no input: what is written.
    """
    found: dict[str, Path] = {}
    frames: list[InputFrame] = []
    for place in places:
        for path in _list_files(place, f"{setting} {place}"):
            if path.resolve().is_relative_to(left_out.resolve()):
                continue
            name = path.stem
            if not name.isprintable():
                raise InputError(f"{path.parent}: {name!r} holds control characters or is not UTF-8")
            if name not in found:
                found[name] = path
                frames += _frames_of(path, every)
            elif found[name] != path:
                told = "outputs are named by it; predict them apart, or rename one"
                raise InputError(f"{path}: has the name of {found[name]}; {told}")
    if not frames:
        raise InputError(f"{setting}: got {' '.join(places) or 'nothing'}; no picture and no video")
    return tuple(frames)


def _list_files(place: str, where: str) -> list[Path]:
    """List what a place names; files that are given by name are taken whatever their suffix."""
    path = Path(place)
    if path.is_dir():
        files = [file for file in list_visible(path, "*") if file.suffix.lower() in _SUFFIXES]
    elif path.exists():
        return [path]
    elif glob.has_magic(place):
        matches = map(Path, glob.glob(place, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute one
        files = [file for file in matches if file.suffix.lower() in _SUFFIXES and not file.is_dir()]
    else:
        raise InputError(f"{where}: no such file or folder")
    if not files:
        raise InputError(f"{where}: no picture and no video in it; suffixes are {', '.join(_SUFFIXES)}")
    return sorted(files, key=lambda file: (file.parent, numeric_key(file.stem)))


def _frames_of(path: Path, every: int) -> list[InputFrame]:
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        read_size(read_file(path), str(path))  # a picture, before a network runs
        return [InputFrame(path.stem, path)]
    numbers = range(0, count_frames(path), every)
    return [InputFrame(f"{path.stem}-{number:06d}", path, number) for number in numbers]


def count_frames(path: Path) -> int:
    """Count the frames of a video that can be decoded, at least one; what its header says may be wrong."""
    video, count = open_video(path), 0
    while video.grab():
        count += 1
    if not count:
        raise InputError(f"{path}: no frame of it can be decoded; it is damaged, or of an unknown encoding")
    return count


def open_video(path: Path) -> cv2.VideoCapture:
    """Open a video file of at most `MAX_PIXELS` a frame; FFmpeg's own lines are kept back."""
    if not path.is_file():
        raise InputError(f"{path}: is no plain file, as a video has to be")
    with path.open("rb") as file:
        head = file.read(12)
    is_video = any(head[place:].startswith(start) for place, start in _STARTS)
    video = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG) if is_video else None
    if video is None or not video.isOpened():
        known = ", ".join(VIDEO_SUFFIXES)
        raise InputError(f"{path}: cannot be opened as a video ({known}); it is damaged, or of another kind")
    size = int(video.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(video.get(cv2.CAP_PROP_FRAME_WIDTH))
    require_sane_size(size, str(path))
    return video


def frames_per_second(path: Path) -> float:
    """Return the rate of a video; 25 where it says none."""
    rate = float(open_video(path).get(cv2.CAP_PROP_FPS))
    return rate if 0 < rate < 1000 else 25.0


class FrameReader:
    """Decoder of frames, in the order in which they are listed or any other; one video is open at a time."""

    def __init__(self) -> None:
        self._path, self._next = Path(), 0
        self._video: cv2.VideoCapture | None = None

    def read(self, frame: InputFrame) -> UInt8[np.ndarray, "H W 3"]:
        """Decode a frame to RGB; an InputError says that it is damaged, or was changed since it was found."""
        if frame.number is None:
            return read_picture(frame.path)
        if self._video is None or self._path != frame.path or self._next > frame.number:
            self._video, self._path, self._next = open_video(frame.path), frame.path, 0
        while self._next < frame.number and self._video.grab():
            self._next += 1
        done, picture = self._video.read()
        if not done:
            raise InputError(f"{frame.path}: frame {frame.number} cannot be decoded")
        self._next = frame.number + 1
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def hash_inputs(frames: Sequence[InputFrame]) -> list[str]:
    """Return for each frame the SHA-256 of its file."""
    hash_once = functools.cache(hash_file)
    return [hash_once(frame.path) for frame in frames]


_LONGEST = 3840
"""Pixels of the longer side of a video that is written; larger ones play hardly anywhere."""


def write_video(path: Path, pictures: Iterable[Path], rate: float) -> None:
    """Write picture files as a video, MPEG-4 part 2 in MP4, all in the size of the first.

    Args:
        rate: frames per second.

    Raises:
        InputError: a picture is gone or damaged.
        StorageError: not every frame is in the file afterwards; OpenCV does not say why.
    """
    writer, size, count = cv2.VideoWriter(), (0, 0), 0
    for count, picture_path in enumerate(pictures, start=1):
        picture = limit_size(decode_picture(read_file(picture_path), str(picture_path)), _LONGEST)
        if count == 1:
            height, width = (max(2, side // 2 * 2) for side in picture.shape[:2])
            size = (width, height)
            writer.open(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        writer.write(picture if picture.shape[1::-1] == size else cv2.resize(picture, size))
    writer.release()
    if not path.is_file() or count_frames(path) != count:
        raise StorageError(f"{path}: cannot be written whole; the disk may be full")


def limit_size(picture: UInt8[np.ndarray, "_H _W 3"], longest: int) -> UInt8[np.ndarray, "_h _w 3"]:
    """Shrink a picture whose longer side has more than `longest` pixels."""
    factor = longest / max(picture.shape[:2])
    if factor >= 1:
        return picture
    size = [max(1, int(side * factor)) for side in picture.shape[1::-1]]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
