"""Street scenes in the folders and files of the official Cityscapes download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jobs.world.canvas import Identities, Picture
from jobs.world.labels import label_ids
from jobs.world.picture_files import write_labels, write_picture
from jobs.world.scene import finish_scene, set_stage
from jobs.world.street import RARE, SceneOptions, TownStyle, draw_town

Split = Literal["train", "val"]
CITIES: dict[Split, tuple[str, ...]] = {
    "train": ("aachen", "bochum", "bremen", "cologne", "hamburg", "zurich"),
    "val": ("frankfurt", "lindau", "munster"),
}
_DOMAINS: dict[Split, int] = {"train": 1, "val": 2}
_TOWN_DOMAIN = 90
_FRAME = 19  # the annotated frame of every official 30-frame snippet of most cities


@dataclass(frozen=True)
class StreetFrame:
    """One frame to be drawn."""

    seed: int
    height: int
    split: Split
    index: int
    """Number in its split."""

    @property
    def city(self) -> str:
        """Name of the city; frames are shared out evenly over those of the split."""
        return CITIES[self.split][self.index % len(CITIES[self.split])]

    @property
    def stem(self) -> str:
        """Beginning of the names of all files of the frame."""
        return f"{self.city}_{self.index // len(CITIES[self.split]):06d}_{_FRAME:06d}"

    def write(self, root: Path) -> None:
        """Draw the frame; write picture, label ids and instance ids under `root`/cityscapes."""
        image, instances = self.draw()
        folder = Path(self.split) / self.city
        truth = root / "cityscapes" / "gtFine" / folder
        write_picture(root / "cityscapes/leftImg8bit" / folder / f"{self.stem}_leftImg8bit.png", image)
        write_labels(truth / f"{self.stem}_gtFine_labelIds.png", label_ids(instances))
        write_labels(truth / f"{self.stem}_gtFine_instanceIds.png", instances)

    def draw(self) -> tuple[Picture, Identities]:
        """Return the picture and its instance ids."""
        rng = np.random.default_rng([self.seed, _DOMAINS[self.split], self.index])
        options = SceneOptions(feature=RARE[self.index % len(RARE)], hood=rng.uniform(0.06, 0.12))
        town = town_of(self.seed, self.city)
        return finish_scene(set_stage(self.height, 2 * self.height, town, rng, options), [])


def town_of(seed: int, city: str) -> TownStyle:
    """Return the palette of a city; the same for all its frames."""
    return draw_town(np.random.default_rng([seed, _TOWN_DOMAIN, *city.encode()]))
