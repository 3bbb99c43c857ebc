"""Times the loader of tue-mps/eomt itself, from a copy of its repository; started by `benchmarks/loader.py`.

    python upstream_loader.py FOLDER ZIPS CROP

A program of its own, because upstream's packages are called `datasets` and `models`, too. For every number
that is read from the standard input, so many scenes are loaded, and the processor seconds are printed.
"""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path

import torch


def main(folder: str, zips: str, crop: int) -> None:
    """Answer until the standard input ends."""
    sys.path.insert(0, folder)
    # Lightning is imported for its base class alone, which the data set itself does not need.
    sys.modules["lightning"] = types.ModuleType("lightning")
    sys.modules["lightning"].LightningDataModule = object  # type: ignore[attr-defined]
    from datasets.cityscapes_semantic import CityscapesSemantic  # type: ignore[import-not-found]
    from datasets.dataset import Dataset  # type: ignore[import-not-found]
    from datasets.transforms import Transforms  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    torch.manual_seed(0)
    scenes = Dataset(
        img_suffix=".png",
        target_suffix=".png",
        img_stem_suffix="leftImg8bit",
        target_stem_suffix="gtFine_labelIds",
        zip_path=Path(zips, "leftImg8bit_trainvaltest.zip"),
        target_zip_path=Path(zips, "gtFine_trainvaltest.zip"),
        target_parser=CityscapesSemantic.target_parser,
        check_empty_targets=False,
        transforms=Transforms(img_size=(crop, crop), color_jitter_enabled=True, scale_range=(0.5, 2.0)),
        img_folder_path_in_zip=Path("leftImg8bit/train"),
        target_folder_path_in_zip=Path("gtFine/train"),
    )
    number = 0
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.process_time()
        for _ in range(int(line)):
            scenes[number % len(scenes)]
            number += 1
        print(time.process_time() - began, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
