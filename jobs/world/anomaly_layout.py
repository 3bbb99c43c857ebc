"""Five small anomaly sets in the folders, files and label values of the benchmarks they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from eval.sets.registry import TEST_SETS, Known
from jobs.world.canvas import SUPERSAMPLING, Identities, Picture, Sprite, ellipse_points
from jobs.world.cityscapes_layout import town_of
from jobs.world.labels import EVALUATED, OBJECT_ID, LabelId, label_ids
from jobs.world.oddities import ODDITIES
from jobs.world.picture_files import write_labels, write_picture
from jobs.world.scene import finish_scene, set_stage
from jobs.world.sprite import draw_sprite
from jobs.world.street import Piece, SceneOptions, Stage
from shards.schema import ANOMALY, NORMAL, VOID

_TOWNS = ("berlin", "leverkusen", "bielefeld", "mainz")  # of Cityscapes' own test split
_TYPICAL_FILL = 0.55  # share of its square that a sprite covers
_FEWEST_PIXELS = 12


@dataclass(frozen=True)
class AnomalySet:
    """Look of one benchmark; its sizes, label values and share of anomaly stand in `TEST_SETS`."""

    domain: int
    suffix: str
    normal: Literal["everything", "scored classes", "road"] = "scored classes"
    """Pixels that are labelled normal; the rest is void."""
    where: Literal["street", "road", "anywhere"] = "road"
    """Places of anomalies."""
    hood: float = 0.0
    traffic: float = 0.6


ANOMALY_SETS: dict[str, AnomalySet] = {
    "RoadAnomaly21": AnomalySet(11, ".png", where="street"),
    "RoadObsticle21": AnomalySet(12, ".webp", normal="road", traffic=0.15),
    "FS_LostFound_full": AnomalySet(13, ".png", hood=0.24),
    "fs_static": AnomalySet(14, ".jpg", where="anywhere", hood=0.15),
    "RoadAnomaly": AnomalySet(15, ".jpg", normal="everything", where="street"),
}
"""By folder, as `TEST_SETS`."""


@dataclass(frozen=True)
class AnomalyFrame:
    """One test picture to be drawn."""

    seed: int
    height: int
    """Rows of a Cityscapes picture of the same world; sets the scale."""
    folder: str
    """Name of the set."""
    index: int

    def write(self, root: Path) -> None:
        """Draw the picture and its mask under `root`/anomaly."""
        image, labels = self.draw()
        folder = root / "anomaly" / self.folder
        write_picture(folder / "images" / f"{self.index}{ANOMALY_SETS[self.folder].suffix}", image)
        write_labels(folder / "labels_masks" / f"{self.index}.png", labels)

    def draw(self) -> tuple[Picture, UInt8[np.ndarray, "H W"]]:
        """Return the picture and its mask; draws again until an anomaly can be seen."""
        for attempt in range(20):
            seeds = [self.seed, ANOMALY_SETS[self.folder].domain, self.index, attempt]
            image, identities = self._draw(np.random.default_rng(seeds))
            if (identities >= OBJECT_ID).sum() >= _FEWEST_PIXELS:
                break
        return image, anomaly_labels(identities, self.folder)

    def _draw(self, rng: np.random.Generator) -> tuple[Picture, Identities]:
        entry = ANOMALY_SETS[self.folder]
        height, width = scaled_size(self.folder, self.height)
        town = town_of(self.seed, str(rng.choice(_TOWNS)))
        options = SceneOptions(
            hood=entry.hood * rng.uniform(0.85, 1.15),
            traffic=entry.traffic,
            wide=entry.where == "road" and entry.normal != "road",
            unusual=True,
        )
        stage = set_stage(height, width, town, rng, options)
        share = _known(self.folder).anomalous
        assert share is not None, f"{self.folder}: no known share of anomalous pixels"
        share *= float(np.exp(rng.normal(0, 0.35)))
        count = int(rng.choice([1, 2, 3], p=(0.6, 0.3, 0.1)))
        return finish_scene(stage, [_place(stage, entry, share / count) for _ in range(count)])


def anomaly_labels(identities: Identities, folder: str) -> UInt8[np.ndarray, "H W"]:
    """Turn identities into the label values of a set."""
    normal = ANOMALY_SETS[folder].normal
    values = {target: value for value, target in TEST_SETS[folder].values.items()}
    odd = identities >= OBJECT_ID
    labels = label_ids(np.where(odd, 0, identities))
    targets = np.full(labels.shape, NORMAL if normal == "everything" else VOID)
    targets[np.isin(labels, [LabelId.ROAD] if normal == "road" else EVALUATED)] = NORMAL
    targets[odd] = ANOMALY
    return np.select([targets == target for target in values], list(values.values())).astype(np.uint8)


def scaled_size(folder: str, height: int) -> tuple[int, int]:
    """Return (height, width) of a set's pictures, even numbers, where Cityscapes is `height` high."""
    rows, columns = (2 * round(side * height / 2048) for side in _known(folder).size)
    return rows, columns


def _known(folder: str) -> Known:
    known = TEST_SETS[folder].known
    assert known is not None, f"{folder}: nothing known of the original"
    return known


def _place(stage: Stage, entry: AnomalySet, share: float) -> Piece:
    """Prepare one anomaly that covers about `share` of the picture, at a plausible place."""
    rng, camera, canvas = stage.rng, stage.camera, stage.canvas
    name = str(rng.choice(list(ODDITIES)))
    side = max(6, round(np.sqrt(share * canvas.height * canvas.width / _TYPICAL_FILL)))
    sprite = draw_sprite(ODDITIES[name], side, rng, rng.normal(0, 0.12))
    if rng.random() < 0.5:
        sprite = sprite.mirrored()
    if entry.where == "anywhere":
        column, row = rng.uniform(0.08, 0.92) * canvas.width, rng.uniform(0.35, 0.85) * canvas.height
        return 0.0, lambda: _stamp(stage, sprite, (column, row), 0.0, float(rng.uniform(0.85, 1.0)))
    metres, beyond = (rng.uniform(0.35, 0.9), -0.5) if entry.where == "road" else (rng.uniform(1.2, 2.6), 1)
    z = float(np.clip(metres * camera.focal / side, 3.4, 40))
    half_view = 0.8 * min(camera.column, canvas.width - camera.column) * z / camera.focal
    road = stage.street.road
    x = rng.uniform(max(road.left - beyond, -half_view), min(road.right + beyond, half_view))
    column, row = camera.project([(x, 0.0, z)])[0]
    return z, lambda: _stamp(stage, sprite, (float(column), float(row)), z, 1.0)


def _stamp(stage: Stage, sprite: Sprite, foot: tuple[float, float], depth: float, opacity: float) -> None:
    """Put a sprite with the middle of its lower edge at `foot`, over its shadow where it stands."""
    rows, columns = sprite.mask.shape
    if depth > 0:
        reach = columns / SUPERSAMPLING / 2
        stage.canvas.shadow(ellipse_points(foot, (1.05 * reach, 0.16 * reach)), 0.5, max(0.4, 0.06 * reach))
    top_left = (round(foot[1] * SUPERSAMPLING) - rows, round(foot[0] * SUPERSAMPLING) - columns // 2)
    stage.canvas.stamp(sprite, top_left, OBJECT_ID, depth=depth, opacity=opacity)
