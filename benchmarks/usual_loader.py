"""A data loader of the usual kind, as the yardstick: zip files, boolean masks, torchvision transforms.

It does what is common in recipes for mask classifiers on Cityscapes: decode a PNG out of a zip, make one
boolean mask per class, resize the picture and every mask with torchvision, jitter the colours one after the
other (hue in floats), and paste a COCO object by decoding its whole photograph and copying the whole frame.
"""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from shards.schema import CITYSCAPES_CLASSES, OUTLIER_ID

Scene = tuple[Tensor, Tensor, Tensor]
"""Picture (3, H, W), masks (K, H, W), class of each mask (K)."""
TRAIN_IDS = {entry.ids[0]: i for i, entry in enumerate(CITYSCAPES_CLASSES)} | {OUTLIER_ID: OUTLIER_ID}
JITTER = (
    (functional.adjust_brightness, 1 - 32 / 255, 1 + 32 / 255),
    (functional.adjust_contrast, 0.5, 1.5),
    (functional.adjust_saturation, 0.5, 1.5),
    (functional.adjust_hue, -18 / 360, 18 / 360),
)


class UsualLoader:
    """Loads scenes of Cityscapes' zip files, and pastes an object of COCO onto some of them."""

    def __init__(self, zips: Path, coco: Path, *, crop: int, probability: float) -> None:
        self.pictures = zipfile.ZipFile(zips / "leftImg8bit_trainvaltest.zip")
        self.ids = zipfile.ZipFile(zips / "gtFine_trainvaltest.zip")
        self.images = sorted(self.pictures.namelist())
        self.labels = sorted(name for name in self.ids.namelist() if name.endswith("_labelIds.png"))
        self.photos = coco / "train2017"
        self.coco = COCO(str(coco / "annotations/instances_train2017.json"))
        self.objects = sorted(self.coco.getAnnIds(iscrowd=False))
        self.probability = probability
        self.crop = crop
        scale = v2.ScaleJitter((crop, crop), scale_range=(0.5, 2.0), antialias=True)
        self.geometry = v2.Compose([v2.RandomHorizontalFlip(), scale])
        self.random_crop = v2.RandomCrop((crop, crop))

    def load(self, index: int) -> Scene:
        """Load one scene through the whole chain."""
        picture = np.array(Image.open(io.BytesIO(self.pictures.read(self.images[index]))).convert("RGB"))
        ids = np.array(Image.open(io.BytesIO(self.ids.read(self.labels[index]))))
        if random.random() < self.probability:
            picture, ids = self.paste(picture, ids)
        image = tv_tensors.Image(torch.from_numpy(picture).permute(2, 0, 1))
        masks, classes = self.split_masks(torch.from_numpy(ids))
        image, masks = self.geometry(self.jitter(image), masks)
        missing = [max(0, self.crop - side) for side in image.shape[-2:]]
        padding = [0, 0, missing[1], missing[0]]
        image, masks = self.random_crop(functional.pad(image, padding), functional.pad(masks, padding))
        seen = masks.flatten(1).any(1)
        return image, masks[seen], classes[seen]

    def paste(self, picture: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Paste a random object at its own size, anywhere; all arrays are copied whole."""
        annotation = self.coco.loadAnns(random.choice(self.objects))[0]
        entry = self.coco.loadImgs(annotation["image_id"])[0]
        photo = np.array(Image.open(self.photos / entry["file_name"]).convert("RGB"))
        mask = self.coco.annToMask(annotation).astype(bool)
        rows, columns = np.nonzero(mask)
        box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        photo, mask = photo[box], mask[box]
        top = random.randint(0, ids.shape[0] - mask.shape[0])
        left = random.randint(0, ids.shape[1] - mask.shape[1])
        placed = np.zeros(ids.shape, bool)
        placed[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        pasted = np.zeros_like(picture)
        pasted[top : top + mask.shape[0], left : left + mask.shape[1]] = photo
        return np.where(placed[..., None], pasted, picture), np.where(placed, np.uint8(OUTLIER_ID), ids)

    def split_masks(self, ids: Tensor) -> tuple[tv_tensors.Mask, Tensor]:
        """Make one boolean mask per class that occurs."""
        present = [value for value in ids.unique().tolist() if value in TRAIN_IDS]
        masks = tv_tensors.Mask(torch.stack([ids == value for value in present]))
        return masks, torch.tensor([TRAIN_IDS[value] for value in present])

    def jitter(self, image: Tensor) -> Tensor:
        """Change brightness, contrast, saturation and hue, each with probability 0.5."""
        for adjust, low, high in JITTER:
            if random.random() < 0.5:
                image = adjust(image, random.uniform(low, high))
        return image
