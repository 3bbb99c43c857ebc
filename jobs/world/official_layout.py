"""A few of the same test pictures under the names that the benchmarks' own downloads use.

Sources: SMIYC (road-anomaly-benchmark), Fishyscapes (its data builders, and pytorch-ood's readers of them),
Road Anomaly (Lis et al., ICCV 2019), Lost and Found (as SMIYC's toolkit reads it), BRAVO (its README). What
readers of those downloads are tested with.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Int16, UInt8

from jobs.world.anomaly_layout import VOID, AnomalyFrame
from jobs.world.canvas import SUPERSAMPLING
from jobs.world.cityscapes_layout import StreetFrame
from jobs.world.labels import EVALUATED, label_ids
from jobs.world.oddities import ODDITIES
from jobs.world.picture_file import write_labels, write_picture
from jobs.world.sprite import draw_sprite

NUM_OFFICIAL = 3
"""Labelled pictures per layout."""
HIDDEN_PLACES = {
    "road_anomaly_21": (
        "dataset_AnomalyTrack/images/zebra0000.jpg",
        "bravo_SMIYC/RoadAnomaly21/images/zebra0000.jpg",
        "bravo_synobjs/zebra/5.png",
    ),
    "road_obstacle_21": ("dataset_ObstacleTrack/images/curvy-street_1.webp",),
    "lost_and_found": (
        "bravo_ACDC/fog/test/GOPR0475/GOPR0475_frame_000247_rgb_anon.png",
        "bravo_outofcontext/frankfurt/frankfurt_000000_000576_leftImg8bit.png",
        "bravo_synflare/lindau/lindau_000000_000019_leftImg8bit.png",
        "bravo_synrain/munster/munster_000000_000019_leftImg8bit.png",
    ),
}
"""Files, by the kind of picture that is drawn once for all of them, whose labels are not published."""
_STATIC_DOMAIN = 20
_SEQUENCE = "04_Maurener_Weg_8"  # a sequence name of Lost & Found


@dataclass(frozen=True)
class OfficialFrame:
    """One picture of an anomaly set, to be written as the benchmark's own download has it."""

    frame: AnomalyFrame

    def write(self, root: Path) -> None:
        """Draw the picture and its mask under `root`/official."""
        image, labels = self.frame.draw()
        _WRITERS[self.frame.kind](root / "official", self.frame.index, image, labels)


@dataclass(frozen=True)
class HiddenFrame:
    """One picture without labels, in every place that wants one."""

    frame: AnomalyFrame

    def write(self, root: Path) -> None:
        """Draw the picture and write it under `root`/official."""
        image, _ = self.frame.draw()
        for place in HIDDEN_PLACES[self.frame.kind]:
            write_picture(root / "official" / place, image)


@dataclass(frozen=True)
class StaticOverlay:
    """One picture of Fishyscapes Static: what must be added to a frame of Cityscapes val."""

    base: StreetFrame
    index: int

    def write(self, root: Path) -> None:
        """Write overlay and mask under `root`/official/fs_val_v3, and the frame it belongs to beside that."""
        image, instances = self.base.draw()
        base = root / "official" / "cityscapes" / "leftImg8bit" / "val" / self.base.city
        write_picture(base / f"{self.base.stem}_leftImg8bit.png", image)
        rng = np.random.default_rng([self.base.seed, _STATIC_DOMAIN, self.index])
        overlay = draw_overlay(image, rng)
        known = np.where(np.isin(label_ids(instances), sorted(EVALUATED)), 0, VOID)
        labels = np.where((overlay != 0).any(axis=2), 1, known).astype(np.uint8)
        stem = root / "official" / "fs_val_v3" / f"{self.index:04d}_{self.base.stem}"
        write_labels(stem.with_name(f"{stem.name}_labels.png"), labels)
        np.savez_compressed(stem.with_name(f"{stem.name}_rgb.npz"), rgb=overlay)


def plan_official(
    seed: int, height: int, street: list[StreetFrame]
) -> list[OfficialFrame | HiddenFrame | StaticOverlay]:
    """List what to draw; `street` holds the Cityscapes frames that overlays may belong to."""
    frames = [AnomalyFrame(seed, height, kind, index) for kind in _WRITERS for index in range(NUM_OFFICIAL)]
    bases = [frame for frame in street if frame.split == "val"][:NUM_OFFICIAL]
    hidden = [AnomalyFrame(seed, height, kind, NUM_OFFICIAL) for kind in HIDDEN_PLACES]
    return [
        *(OfficialFrame(frame) for frame in frames),
        *(HiddenFrame(frame) for frame in hidden),
        *(StaticOverlay(base, index) for index, base in enumerate(bases)),
    ]


def write_frame_list(root: Path) -> None:
    """Write Road Anomaly's `frame_list.json`: the names of its pictures."""
    folder = root / "official" / "RoadAnomaly_jpg"
    names = sorted(path.name for path in (folder / "frames").glob("*.jpg"))
    (folder / "frame_list.json").write_text(json.dumps(names))


def draw_overlay(image: UInt8[np.ndarray, "H W 3"], rng: np.random.Generator) -> Int16[np.ndarray, "H W 3"]:
    """Draw the difference that blends an object into `image`; 0 outside the object."""
    height, width = image.shape[:2]
    sprite = draw_sprite(ODDITIES[str(rng.choice(list(ODDITIES)))], round(0.22 * height), rng)
    size = tuple(max(2, side // SUPERSAMPLING) for side in sprite.mask.shape[::-1])
    opacity = cv2.resize(sprite.mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)[..., None]
    colour = cv2.resize(sprite.picture, size, interpolation=cv2.INTER_AREA)
    top = int(rng.integers(height // 3, height - size[1] - height // 8))
    left = int(rng.integers(0, width - size[0]))
    part = np.s_[top : top + size[1], left : left + size[0]]
    blended = np.round(opacity * colour + (1 - opacity) * image[part]).astype(np.int16)
    overlay = np.zeros(image.shape, dtype=np.int16)
    overlay[part] = blended - image[part].astype(np.int16)
    return overlay


def _write_track(
    folder: Path, stem: str, suffix: str, image: UInt8[np.ndarray, "H W 3"], labels: UInt8[np.ndarray, "H W"]
) -> None:
    write_picture(folder / "images" / f"{stem}{suffix}", image)
    write_labels(folder / "labels_masks" / f"{stem}_labels_semantic.png", labels)


def _write_anomaly_track(
    root: Path, index: int, image: UInt8[np.ndarray, "H W 3"], labels: UInt8[np.ndarray, "H W"]
) -> None:
    _write_track(root / "dataset_AnomalyTrack", f"validation{index:04d}", ".jpg", image, labels)


def _write_obstacle_track(
    root: Path, index: int, image: UInt8[np.ndarray, "H W 3"], labels: UInt8[np.ndarray, "H W"]
) -> None:
    _write_track(root / "dataset_ObstacleTrack", f"validation_{index + 1}", ".webp", image, labels)


def _write_lost_and_found(
    root: Path, index: int, image: UInt8[np.ndarray, "H W 3"], labels: UInt8[np.ndarray, "H W"]
) -> None:
    stem = f"{_SEQUENCE}_000000_{10 * (index + 1):06d}"
    pictures = root / "LostAndFound" / "leftImg8bit" / "test" / _SEQUENCE
    write_picture(pictures / f"{stem}_leftImg8bit.png", image)
    write_labels(root / "fishyscapes_lostandfound" / f"{index:04d}_{stem}_labels.png", labels)
    own = np.select([labels == 0, labels == 1], [1, 2 + index], 0).astype(
        np.uint8
    )  # 0 void, 1 free, 2.. things
    truth = root / "LostAndFound" / "gtCoarse" / "test" / _SEQUENCE
    write_labels(truth / f"{stem}_gtCoarse_labelIds.png", own.astype(np.uint8))


def _write_road_anomaly(
    root: Path, index: int, image: UInt8[np.ndarray, "H W 3"], labels: UInt8[np.ndarray, "H W"]
) -> None:
    frames = root / "RoadAnomaly_jpg" / "frames"
    stem = f"obstacles{index + 1:02d}_synthetic"
    write_picture(frames / f"{stem}.jpg", image)
    write_labels(frames / f"{stem}.labels" / "labels_semantic.png", labels)


_Writer = Callable[[Path, int, UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]], None]
_WRITERS: dict[str, _Writer] = {
    "road_anomaly_21": _write_anomaly_track,
    "road_obstacle_21": _write_obstacle_track,
    "lost_and_found": _write_lost_and_found,
    "road_anomaly": _write_road_anomaly,
}
"""By the keys of `ANOMALY_SETS`; Fishyscapes Static differs, see `StaticOverlay`."""
