"""Miniatures of the benchmarks' own downloads, with which their readers are tested.

Sources: SMIYC (road-anomaly-benchmark), Fishyscapes (its data builders, and pytorch-ood's readers of them),
Road Anomaly (Lis et al., ICCV 2019), Lost and Found (as SMIYC's toolkit reads it), BRAVO (its README).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Int16, UInt8

from jobs.world.anomaly_layout import AnomalyFrame
from jobs.world.canvas import SUPERSAMPLING
from jobs.world.cityscapes_layout import StreetFrame
from jobs.world.labels import EVALUATED, label_ids
from jobs.world.oddities import ODDITIES
from jobs.world.picture_files import write_labels, write_picture
from jobs.world.sprite import draw_sprite
from shards.schema import ANOMALY, NORMAL, VOID

NUM_OFFICIAL = 3
"""Labelled pictures per layout."""
HIDDEN_PLACES = {
    "RoadAnomaly21": (
        "dataset_AnomalyTrack/images/zebra0000.jpg",
        "bravo_SMIYC/RoadAnomaly21/images/zebra0000.jpg",
        "bravo_synobjs/zebra/5.png",
    ),
    "RoadObsticle21": ("dataset_ObstacleTrack/images/curvy-street_1.webp",),
    "FS_LostFound_full": (
        "bravo_ACDC/fog/test/GOPR0475/GOPR0475_frame_000247_rgb_anon.png",
        "bravo_outofcontext/frankfurt/frankfurt_000000_000576_leftImg8bit.png",
        "bravo_synflare/lindau/lindau_000000_000019_leftImg8bit.png",
        "bravo_synrain/munster/munster_000000_000019_leftImg8bit.png",
    ),
}
"""Files whose labels are not published, by the set of which one picture is drawn for all of them."""
_STATIC_DOMAIN = 20
_SEQUENCE = "04_Maurener_Weg_8"  # a sequence name of Lost & Found


def plan_official(seed: int, height: int, street: Sequence[StreetFrame]) -> list[Callable[[Path], None]]:
    """List what to draw under a root; `street` holds the Cityscapes frames that overlays may belong to."""
    frames = [AnomalyFrame(seed, height, folder, i) for folder in _WRITERS for i in range(NUM_OFFICIAL)]
    hidden = [AnomalyFrame(seed, height, folder, NUM_OFFICIAL) for folder in HIDDEN_PLACES]
    bases = [frame for frame in street if frame.split == "val"][:NUM_OFFICIAL]
    return [
        *(partial(write_labelled, frame) for frame in frames),
        *(partial(_write_hidden, frame) for frame in hidden),
        *(partial(_write_static, base, index) for index, base in enumerate(bases)),
    ]


def write_labelled(frame: AnomalyFrame, root: Path) -> None:
    """Write a picture and its mask under `root`/official, as the benchmark's own download has it."""
    image, labels = frame.draw()
    _WRITERS[frame.folder](root / "official", frame.index, image, labels)


def _write_hidden(frame: AnomalyFrame, root: Path) -> None:
    image, _ = frame.draw()
    for place in HIDDEN_PLACES[frame.folder]:
        write_picture(root / "official" / place, image)


def _write_static(base: StreetFrame, index: int, root: Path) -> None:
    """Write an overlay of Fishyscapes Static, its mask, and the frame of Cityscapes val it is added to."""
    image, instances = base.draw()
    folder = root / "official" / "cityscapes" / "leftImg8bit" / "val" / base.city
    write_picture(folder / f"{base.stem}_leftImg8bit.png", image)
    overlay = _draw_overlay(image, np.random.default_rng([base.seed, _STATIC_DOMAIN, index]))
    known = np.where(np.isin(label_ids(instances), EVALUATED), NORMAL, VOID)
    labels = np.where((overlay != 0).any(axis=2), ANOMALY, known).astype(np.uint8)
    stem = f"{index:04d}_{base.stem}"
    write_labels(root / "official" / "fs_val_v3" / f"{stem}_labels.png", labels)
    np.savez_compressed(root / "official" / "fs_val_v3" / f"{stem}_rgb.npz", rgb=overlay)


def write_frame_list(root: Path) -> None:
    """Write Road Anomaly's `frame_list.json`: the names of its pictures."""
    folder = root / "official" / "RoadAnomaly_jpg"
    names = sorted(path.name for path in (folder / "frames").glob("*.jpg"))
    (folder / "frame_list.json").write_text(json.dumps(names))


def _draw_overlay(image: UInt8[np.ndarray, "H W 3"], rng: np.random.Generator) -> Int16[np.ndarray, "H W 3"]:
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


_Image = UInt8[np.ndarray, "H W 3"]
_Labels = UInt8[np.ndarray, "H W"]


def _write_track(folder: Path, name: str, suffix: str, image: _Image, labels: _Labels) -> None:
    write_picture(folder / "images" / f"{name}{suffix}", image)
    write_labels(folder / "labels_masks" / f"{name}_labels_semantic.png", labels)


def _write_anomaly_track(root: Path, index: int, image: _Image, labels: _Labels) -> None:
    _write_track(root / "dataset_AnomalyTrack", f"validation{index:04d}", ".jpg", image, labels)


def _write_obstacle_track(root: Path, index: int, image: _Image, labels: _Labels) -> None:
    _write_track(root / "dataset_ObstacleTrack", f"validation_{index + 1}", ".webp", image, labels)


def _write_lost_and_found(root: Path, index: int, image: _Image, labels: _Labels) -> None:
    stem = f"{_SEQUENCE}_000000_{10 * (index + 1):06d}"
    pictures = root / "LostAndFound" / "leftImg8bit" / "test" / _SEQUENCE
    write_picture(pictures / f"{stem}_leftImg8bit.png", image)
    write_labels(root / "fishyscapes_lostandfound" / f"{index:04d}_{stem}_labels.png", labels)
    own = np.select([labels == NORMAL, labels == ANOMALY], [1, 2 + index], 0)  # 0 void, 1 free, 2.. things
    truth = root / "LostAndFound" / "gtCoarse" / "test" / _SEQUENCE
    write_labels(truth / f"{stem}_gtCoarse_labelIds.png", own.astype(np.uint8))


def _write_road_anomaly(root: Path, index: int, image: _Image, labels: _Labels) -> None:
    stem = root / "RoadAnomaly_jpg" / "frames" / f"obstacles{index + 1:02d}_synthetic"
    write_picture(stem.with_suffix(".jpg"), image)
    write_labels(stem.with_suffix(".labels") / "labels_semantic.png", labels)


_WRITERS: dict[str, Callable[[Path, int, _Image, _Labels], None]] = {
    "RoadAnomaly21": _write_anomaly_track,
    "RoadObsticle21": _write_obstacle_track,
    "FS_LostFound_full": _write_lost_and_found,
    "RoadAnomaly": _write_road_anomaly,
}
"""By the keys of `ANOMALY_SETS`; Fishyscapes Static differs, see `_write_static`."""
