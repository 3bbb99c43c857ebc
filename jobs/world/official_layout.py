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
from jaxtyping import Int16

from jobs.world.anomaly_layout import AnomalyFrame
from jobs.world.canvas import SUPERSAMPLING, Picture
from jobs.world.cityscapes_layout import StreetFrame
from jobs.world.labels import EVALUATED, label_ids
from jobs.world.oddities import ODDITIES
from jobs.world.picture_files import write_labels, write_picture
from jobs.world.sprite import draw_sprite
from shards.schema import ANOMALY, NORMAL, VOID

NUM_OFFICIAL = 3
"""Labelled pictures per layout."""
_LAF_SEQUENCE = "04_Maurener_Weg_8"
_LAF_FRAME = _LAF_SEQUENCE + "_000000_0000{number}0"
_LAF_TRUTH = f"LostAndFound/gtCoarse/test/{_LAF_SEQUENCE}/{_LAF_FRAME}_gtCoarse_labelIds.png"
LABELLED_PLACES = {
    "RoadAnomaly21": (
        "dataset_AnomalyTrack/images/validation{index:04d}.jpg",
        "dataset_AnomalyTrack/labels_masks/validation{index:04d}_labels_semantic.png",
    ),
    "RoadObsticle21": (
        "dataset_ObstacleTrack/images/validation_{number}.webp",
        "dataset_ObstacleTrack/labels_masks/validation_{number}_labels_semantic.png",
    ),
    "FS_LostFound_full": (
        f"LostAndFound/leftImg8bit/test/{_LAF_SEQUENCE}/{_LAF_FRAME}_leftImg8bit.png",
        f"fishyscapes_lostandfound/{{index:04d}}_{_LAF_FRAME}_labels.png",
    ),
    "RoadAnomaly": (
        "RoadAnomaly_jpg/frames/obstacles{number:02d}_synthetic.jpg",
        "RoadAnomaly_jpg/frames/obstacles{number:02d}_synthetic.labels/labels_semantic.png",
    ),
}
"""Picture and mask by set; `index` counts from 0, `number` from 1. Fishyscapes Static differs."""
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


def plan_official(seed: int, height: int, street: Sequence[StreetFrame]) -> list[Callable[[Path], None]]:
    """List what to draw under a root; `street` holds the Cityscapes frames that overlays may belong to."""
    frames = [AnomalyFrame(seed, height, name, i) for name in LABELLED_PLACES for i in range(NUM_OFFICIAL)]
    bases = [frame for frame in street if frame.split == "val"][:NUM_OFFICIAL]
    return [
        *(partial(write_labelled, frame) for frame in frames),
        *(partial(_write_hidden, AnomalyFrame(seed, height, name, NUM_OFFICIAL)) for name in HIDDEN_PLACES),
        *(partial(_write_static, base, index) for index, base in enumerate(bases)),
    ]


def write_frame_list(root: Path) -> None:
    """Write Road Anomaly's `frame_list.json`: the names of its pictures."""
    folder = root / "official" / "RoadAnomaly_jpg"
    names = sorted(path.name for path in (folder / "frames").glob("*.jpg"))
    (folder / "frame_list.json").write_text(json.dumps(names))


def write_labelled(frame: AnomalyFrame, root: Path) -> None:
    """Write a picture and its mask under `root`/official, as the benchmark's own download has them."""
    image, labels = frame.draw()
    numbers = {"index": frame.index, "number": frame.index + 1}
    picture, mask = (place.format(**numbers) for place in LABELLED_PLACES[frame.folder])
    write_picture(root / "official" / picture, image)
    write_labels(root / "official" / mask, labels)
    if frame.folder == "FS_LostFound_full":  # Lost and Found's own masks: 0 void, 1 free, 2.. things
        own = np.select([labels == NORMAL, labels == ANOMALY], [1, 2 + frame.index], 0).astype(np.uint8)
        write_labels(root / "official" / _LAF_TRUTH.format(**numbers), own)


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


def _draw_overlay(image: Picture, rng: np.random.Generator) -> Int16[np.ndarray, "H W 3"]:
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
