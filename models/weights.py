"""Reading weight files, and filling modules from them without silence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from shards.errors import InputError


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """Read a `.safetensors` file, or a `.pth`/`.bin`/`.pt` pickle that holds tensors only.

    Raises:
        InputError: no such file, it is truncated or no weight file, or it holds code.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weight file")
    try:
        content = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        )
    except Exception as error:  # safetensors, zipfile and pickle each raise their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: not a readable weight file (truncated, or a pickle with code): {reason}"
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(v, Tensor) for v in content.values())
    ):
        raise InputError(f"{path}: holds no weights by name")
    return content


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Fill `module` from `weights`, which must have exactly its names and shapes.

    Args:
        where: what the weights come from, for the message.

    Raises:
        InputError: something is missing, left over or of another shape; the module is unchanged.
    """
    expected = module.state_dict()
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "of another shape": sorted(
            name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape
        ),
    }
    if any(problems.values()):
        told = ", ".join(f"{len(names)} {kind} {names[:3]}" for kind, names in problems.items() if names)
        raise InputError(f"{where}: the weights do not fit the model: {told}")
    module.load_state_dict(weights)
