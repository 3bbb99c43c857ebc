"""Settings of a stream of scenes: which are read, how they vary, how they become batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from shards.errors import InputError
from shards.files import Location

MOST_SCENES, MOST_WORKERS = 4096, 256
Recipe = Literal["ours", "upstream"]
RECIPE_SCALES: dict[Recipe, tuple[float, float]] = {"ours": (1.0, 2.0), "upstream": (0.5, 2.0)}
"""Range of the zoom where `data.augment.scale` does not say."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How scenes vary. `scale: [1, 1]`, `flip: 0` and `color: 0` leave the window's random place only."""

    recipe: Recipe = "ours"
    """ours: at zoom 1 the frame just covers the crop, and content smaller than the crop lies anywhere in it.
    upstream: tue-mps/eomt's; at zoom 1 the frame just fits into the crop (its "0.5 to 2.0" is our 0.25 to 1.0
    on Cityscapes with a square crop, and 40 % of the pixels are void), content lies at the upper left, and
    colours change as torchvision changes them; a crop without any class is drawn anew."""
    scale: tuple[float, float] = (0.0, 0.0)
    """Range of the zoom, drawn uniformly; 0 0: the recipe's own, 1 to 2 for ours and 0.5 to 2 for upstream.
    With ours, Cityscapes keeps its own resolution at 1 for a crop of 1024 rows; 2 shows half as much, twice
    as large. Where the frame does not fill the crop, void pixels are added."""
    flip: float = 0.5
    """Probability of a mirror image, 0 to 1."""
    color: float = 0.5
    """Strength of the colour jitter, 0 (none) to 1. At 0.5: brightness +-32 of 255, contrast and saturation
    times 0.5 to 1.5, hue +-18 degrees, each with probability 0.5."""
    max_class_share: float = 1.0
    """Look for a window in which no class fills more than this share of what is not void; 1: any window."""
    class_balance: float = 0.0
    """Probability that the window shows a random pixel of a random class of the frame, each class as likely
    as any other; 0: windows are uniform, and small classes as rare as they are."""

    def __post_init__(self) -> None:
        if self.scale == (0, 0):
            object.__setattr__(self, "scale", RECIPE_SCALES[self.recipe])  # a saved configuration says it
        low, high = self.scale
        if not 0.05 <= low <= high <= 20:
            given = list(self.scale)
            raise InputError(f"data.augment.scale: got {given}; two numbers in 0.05..20, smaller first")
        for name in ("flip", "color", "class_balance"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise InputError(f"data.augment.{name}: got {value}; a number in 0..1 is needed")
        if not 0 < (share := self.max_class_share) <= 1:
            raise InputError(f"data.augment.max_class_share: got {share}; more than 0, at most 1 is needed")


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Which scenes are read, and how they become batches."""

    shards: tuple[Location, ...] = ()
    """Folders written by `jobs.prepare`, tar files, or patterns such as `data/train-{000000..000031}.tar`; or
    URLs of these (`https://`, `s3://`, ...), whose shards are copied into `cache` when first read."""
    split: str = "train"
    """Which part of the folders to read."""
    crop: tuple[int, int] = (0, 0)
    """(height, width) of what the network sees, in pixels. 0 0: as model.image_size, which follows the crop
    where it is left out itself; 1024 1024 without both."""
    batch_size: int = 4
    """Scenes per process and micro-batch."""
    workers: int = 2
    """Loader processes per training process; 0 decodes in the training process itself."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    cache: Location = ""
    """Folder for copies of remote shards, which many processes may share; empty: ~/.cache/eomt-anomaly."""
    max_errors: int = 0
    """How many unreadable shards, and then how many unreadable samples, a process tolerates. Each is told in
    the log; such a shard is left out, and in place of such a sample comes the next one of its epoch that can
    be read. 0: the first is an error."""

    def __post_init__(self) -> None:
        if min(self.crop) < 1 and any(self.crop):
            raise InputError(f"data.crop: got {list(self.crop)}; height and width of at least 1 are needed")
        if not 1 <= self.batch_size <= MOST_SCENES:
            raise InputError(f"data.batch_size: got {self.batch_size}; 1..{MOST_SCENES} are allowed")
        if not 0 <= self.workers <= MOST_WORKERS:
            raise InputError(f"data.workers: got {self.workers}; 0..{MOST_WORKERS} are allowed")
        if self.max_errors < 0:
            raise InputError(f"data.max_errors: got {self.max_errors}; 0 or more are needed")
