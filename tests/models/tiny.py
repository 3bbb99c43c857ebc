"""Tiny models, their checkpoint folders, and an image for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.config import ModelConfig
from models.eomt import EoMT
from models.weights.checkpoint import write_description

IMAGE = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
over_both_trunks = pytest.mark.parametrize("size", ["tiny", "dinov3-tiny"])
"""Learned positions, as DINOv2, and rotary ones, as DINOv3."""


def make_model(**changes: object) -> EoMT:
    torch.manual_seed(0)
    settings = {"size": "tiny", "image_size": (32, 32), "num_queries": 3, **changes}
    return EoMT(ModelConfig(**settings)).eval()  # type: ignore[arg-type]


def save(model: EoMT, folder: Path, state: dict[str, torch.Tensor] | None = None) -> Path:
    """Write a checkpoint folder, with other weights than the model's where `state` is given."""
    folder.mkdir(parents=True, exist_ok=True)
    write_description(model, folder)
    save_file(model.state_dict() if state is None else state, folder / "model.safetensors")
    return folder
