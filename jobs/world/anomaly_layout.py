"""Five small anomaly sets in the folders, files and label values of the benchmarks they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8, UInt16

from jobs.world.canvas import SUPERSAMPLING, ellipse_points
from jobs.world.cityscapes_layout import town_of
from jobs.world.labels import EVALUATED, OBJECT_ID, LabelId, label_ids
from jobs.world.oddities import ODDITIES
from jobs.world.picture_file import write_labels, write_picture
from jobs.world.scene import finish_scene, set_stage
from jobs.world.sprite import Sprite, draw_sprite
from jobs.world.stage import Piece, SceneOptions, Stage

VOID = 255
_TOWNS = ("berlin", "leverkusen", "bielefeld", "mainz")  # of Cityscapes' own test split
_TYPICAL_FILL = 0.55  # share of its square that a sprite covers
_FEWEST_PIXELS = 12


@dataclass(frozen=True)
class AnomalySet:
    """What distinguishes one benchmark. Shares and sizes follow the originals."""

    folder: str
    """The name that existing evaluation scripts look for, misspelling included."""
    domain: int
    size: tuple[int, int]
    """(height, width) of the originals, where Cityscapes is 1024 high."""
    suffix: str
    anomaly_share: float
    """Typical share of a picture's pixels that an anomaly covers."""
    anomaly_value: int = 1
    normal: Literal["everything", "scored classes", "road"] = "scored classes"
    """What is labelled 0; the rest is void."""
    where: Literal["street", "road", "anywhere"] = "road"
    hood: float = 0.0
    traffic: float = 0.6


ANOMALY_SETS: dict[str, AnomalySet] = {
    "road_anomaly_21": AnomalySet("RoadAnomaly21", 11, (720, 1280), ".png", 0.143, where="street"),
    "road_obstacle_21": AnomalySet(
        "RoadObsticle21", 12, (1080, 1920), ".webp", 0.002, normal="road", traffic=0.15
    ),
    "lost_and_found": AnomalySet("FS_LostFound_full", 13, (1024, 2048), ".png", 0.002, hood=0.24),
    "static": AnomalySet("fs_static", 14, (1024, 2048), ".jpg", 0.012, where="anywhere", hood=0.15),
    "road_anomaly": AnomalySet(
        "RoadAnomaly", 15, (720, 1280), ".jpg", 0.098, anomaly_value=2, normal="everything", where="street"
    ),
}
"""By our own name; the folders carry the benchmarks'."""


@dataclass(frozen=True)
class AnomalyFrame:
    """One test picture to be drawn."""

    seed: int
    height: int
    """Rows of a Cityscapes picture of the same world; sets the scale."""
    kind: str
    index: int

    def write(self, root: Path) -> None:
        """Draw the picture and its mask under `root`/anomaly."""
        image, labels = self.draw()
        entry = ANOMALY_SETS[self.kind]
        folder = root / "anomaly" / entry.folder
        write_picture(folder / "images" / f"{self.index}{entry.suffix}", image)
        write_labels(folder / "labels_masks" / f"{self.index}.png", labels)

    def draw(self) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
        """Return the picture and its mask; draws again until an anomaly can be seen."""
        entry = ANOMALY_SETS[self.kind]
        for attempt in range(20):
            rng = np.random.default_rng([self.seed, entry.domain, self.index, attempt])
            image, identities = _draw_frame(entry, self.height, self.seed, rng)
            if (identities >= OBJECT_ID).sum() >= _FEWEST_PIXELS:
                break
        return image, anomaly_labels(identities, entry)


def plan_anomalies(seed: int, height: int, count: int) -> list[AnomalyFrame]:
    """List the pictures: `count` of every set."""
    return [AnomalyFrame(seed, height, kind, index) for kind in ANOMALY_SETS for index in range(count)]


def anomaly_labels(identities: UInt16[np.ndarray, "H W"], entry: AnomalySet) -> UInt8[np.ndarray, "H W"]:
    """Turn identities into the label values of a set."""
    odd = identities >= OBJECT_ID
    labels = label_ids(np.where(odd, 0, identities))
    if entry.normal == "everything":
        normal = np.ones(labels.shape, dtype=bool)
    elif entry.normal == "road":
        normal = labels == LabelId.ROAD
    else:
        normal = np.isin(labels, sorted(EVALUATED))
    return np.where(odd, entry.anomaly_value, np.where(normal, 0, VOID)).astype(np.uint8)


def scaled_size(entry: AnomalySet, height: int) -> tuple[int, int]:
    """Return (height, width) of a set's pictures, even numbers, where Cityscapes is `height` high."""
    rows, columns = (2 * round(side * height / 2048) for side in entry.size)
    return rows, columns


def _draw_frame(
    entry: AnomalySet, base: int, seed: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt16[np.ndarray, "H W"]]:
    height, width = scaled_size(entry, base)
    town = town_of(seed, str(rng.choice(_TOWNS)))
    options = SceneOptions(
        hood=entry.hood * rng.uniform(0.85, 1.15),
        frame=entry.hood > 0,
        traffic=entry.traffic,
        wide=entry.where == "road" and entry.normal != "road",
        unusual=True,
    )
    stage = set_stage(height, width, town, rng, options)
    share = entry.anomaly_share * float(np.exp(rng.normal(0, 0.35)))
    count = int(rng.choice([1, 2, 3], p=(0.6, 0.3, 0.1)))
    pieces = [_place(stage, entry, share / count * height * width) for _ in range(count)]
    return finish_scene(stage, pieces)


def _place(stage: Stage, entry: AnomalySet, area: float) -> Piece:
    """Prepare one anomaly of about `area` final pixels at a plausible place."""
    rng, camera = stage.rng, stage.camera
    name = str(rng.choice(list(ODDITIES)))
    side = max(6, round(np.sqrt(area / _TYPICAL_FILL)))
    sprite = draw_sprite(ODDITIES[name], side, rng, rng.normal(0, 0.12))
    if rng.random() < 0.5:
        sprite = Sprite(sprite.picture[:, ::-1], sprite.mask[:, ::-1])
    if entry.where == "anywhere":
        column, row = (
            rng.uniform(0.08, 0.92) * stage.canvas.width,
            rng.uniform(0.35, 0.85) * stage.canvas.height,
        )
        return 0.0, lambda: _stamp(stage, sprite, (column, row), 0.0, float(rng.uniform(0.85, 1.0)))
    metres = rng.uniform(0.35, 0.9) if entry.where == "road" else rng.uniform(1.2, 2.6)
    z = float(np.clip(metres * camera.focal / side, 3.4, 40))
    half_view = 0.8 * min(camera.column, stage.canvas.width - camera.column) * z / camera.focal
    road = stage.street.road
    spread = (road.left + 0.5, road.right - 0.5) if entry.where == "road" else (road.left - 1, road.right + 1)
    x = rng.uniform(max(spread[0], -half_view), min(spread[1], half_view))
    column, row = camera.project([(x, 0.0, z)])[0]
    return z, lambda: _stamp(stage, sprite, (float(column), float(row)), z, 1.0)


def _stamp(stage: Stage, sprite: Sprite, foot: tuple[float, float], depth: float, opacity: float) -> None:
    """Put a sprite with the middle of its lower edge at `foot`, over its shadow where it stands."""
    rows, columns = sprite.mask.shape
    if depth > 0:
        reach = columns / SUPERSAMPLING / 2
        stage.canvas.shadow(ellipse_points(foot, (1.05 * reach, 0.16 * reach)), 0.5, max(0.4, 0.06 * reach))
    top_left = (round(foot[1] * SUPERSAMPLING) - rows, round(foot[0] * SUPERSAMPLING) - columns // 2)
    stage.canvas.stamp(sprite.picture, sprite.mask, top_left, OBJECT_ID, depth=depth, opacity=opacity)
