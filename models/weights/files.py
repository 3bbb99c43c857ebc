"""Weight files, read safely, and modules filled from them with a report."""

from __future__ import annotations

import contextlib
import logging
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from shards.errors import InputError
from shards.files import from_json, read_json

logger = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pth", ".pt")
INDEX_SUFFIX = ".safetensors.index.json"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """Read a `.safetensors` file (or its index of several), or a pickle that holds tensors by name.

    Weights inside `state_dict` (Lightning) or `model` (DINOv2, MAE) are found there. Files that hold code, or
    numbers that are no plain weights (quantised, complex, sparse), are refused with an InputError.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weight file")
    if path.name.endswith(INDEX_SUFFIX):
        return _read_parts(path)
    content = _read(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    is_named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not is_named or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path}: holds no weights by name")
    for name, value in content.items():
        # numbers as they are used; a counter of one integer is let through
        is_weight = value.dtype in FLOATS or (value.ndim == 0 and not value.dtype.is_complex)
        if not (is_weight and value.layout == torch.strided and value.device.type == "cpu"):
            layout = "" if value.layout == torch.strided else f", {value.layout}"
            numbers = f"{value.dtype}{layout}".replace("torch.", "")
            allowed = "only weights of float32, float16, bfloat16 or float64 are read"
            raise InputError(f"{path}: {name} holds {numbers} on {value.device}; {allowed}")
    return content


def _read_parts(index: Path) -> dict[str, Tensor]:
    content = {name: value for part in list_parts(index) for name, value in read_weight_file(part).items()}
    if lost := sorted(_read_index(index).keys() - content.keys()):
        raise InputError(f"{index}: lists {len(lost)} weights that no part has {_some(lost)}")
    return content


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts in the header of a `.safetensors` file; nothing for other files."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def _read(path: Path) -> Any:
    kind = "safetensors" if path.suffix == ".safetensors" else "weight"
    try:
        return load_file(path) if kind == "safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # zip reader, archive reader and unpickler each raise their own
        head = b""
        with contextlib.suppress(OSError), path.open("rb") as file:
            head = file.read(64)
        # as torch.save writes it: an archive, or a pickle of protocol 2 or later
        saved_by_torch = zipfile.is_zipfile(path) or head.startswith(b"\x80")
        if isinstance(error, pickle.UnpicklingError) and saved_by_torch:
            found = re.search(r"GLOBAL (\S+)", str(error))
            what = f" ({found[1]})" if found else ""
            wrong = f"a pickle with more than tensors in it{what}, which could run code, is not loaded"
            remedy = "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW)"
            trusted = f"where you trust it, save its state_dict alone: {remedy}"
            raise InputError(f"{path}: {wrong}; {trusted}") from None
        reason = f"truncated, or no {kind} file{_looks_like(path, head)}: {_first_line(error)}"
        raise InputError(f"{path}: {reason}") from None


def _looks_like(path: Path, head: bytes) -> str:
    """Name what is often found in place of weights."""
    if head.startswith(b"version https://git-lfs"):
        return " (a Git LFS pointer; `git lfs pull` fetches the file it stands for)"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return " (a web page)"
    if path.suffix == ".safetensors" and head.startswith(b"PK"):
        return " (an archive as torch.save writes it; name it .bin)"
    if path.suffix != ".safetensors" and head[8:9] == b"{":
        return " (a safetensors file; name it .safetensors)"
    return ""


def list_parts(path: Path) -> list[Path]:
    """List the files that hold the weights of `path`: itself, or what it indexes, in its own folder only."""
    if not path.name.endswith(INDEX_SUFFIX):
        return [path]
    parts = sorted(set(_read_index(path).values()))
    if any(Path(part).name != part for part in parts):
        raise InputError(f"{path}: names a file outside its folder")
    return [path.parent / part for part in parts]


def _read_index(path: Path) -> dict[str, str]:
    """Return the file of each weight."""
    places = read_json(dict[str, Any], path).get("weight_map")
    return from_json(dict[str, str], places, f"{path}: weight_map")


def _first_line(error: Exception) -> str:
    line = str(error).partition("\n")[0].partition(". ")[0]
    return line[:200] or type(error).__name__


Shapes = tuple[tuple[int, ...], tuple[int, ...]]
"""Shapes of one weight in the file and in the model."""


@dataclass(frozen=True)
class LoadReport:
    """Fate of every weight of a file and of every weight of the model it is loaded into."""

    loaded: tuple[str, ...] = ()
    """Model weights that were filled."""
    missing: tuple[str, ...] = ()
    """Model weights that the file does not have, and nobody asked to leave out."""
    unexpected: tuple[str, ...] = ()
    """Weights of the file that the model has no place for."""
    misshapen: dict[str, Shapes] = field(default_factory=dict)
    """Shapes that cannot be reconciled, by name."""
    resized: dict[str, Shapes] = field(default_factory=dict)
    """Shapes of what was resampled to fit, by name."""
    skipped: tuple[str, ...] = ()
    """Model weights left as initialised because the user, or the kind of file, says so."""

    @property
    def fits(self) -> bool:
        """Whether nothing is missing, left over or of another shape."""
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        kinds = ("loaded", "missing", "unexpected", "misshapen", "resized", "skipped")
        return ", ".join(f"{len(getattr(self, kind))} {kind}" for kind in kinds)

    def explain(self) -> str:
        """Say in one line what does not fit."""
        shapes = [f"{n} {render_shape(a)}, model {render_shape(b)}" for n, (a, b) in self.misshapen.items()]
        groups = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": shapes}
        return ", ".join(f"{len(names)} {kind} {_some(names)}" for kind, names in groups.items() if names)


def compare_weights(module: nn.Module, weights: Mapping[str, Tensor], skip: Sequence[str] = ()) -> LoadReport:
    """Say what loading `weights` into `module` would do, name by name.

    What `skip` names is not loaded: full names, or their first words up to a dot.
    """
    expected = module.state_dict()
    wanted = [name for name in expected if not is_under(name, skip)]
    shapes = {n: (tuple(weights[n].shape), tuple(expected[n].shape)) for n in wanted if n in weights}
    misshapen = {name: (theirs, ours) for name, (theirs, ours) in shapes.items() if theirs != ours}
    return LoadReport(
        loaded=tuple(n for n in shapes if n not in misshapen),
        missing=tuple(n for n in wanted if n not in shapes),
        unexpected=tuple(n for n in weights if n not in expected and not is_under(n, skip)),
        misshapen=misshapen,
        skipped=tuple(n for n in expected if is_under(n, skip)),
    )


def load_strictly(
    module: nn.Module, weights: Mapping[str, Tensor], where: str, skip: Sequence[str] = ()
) -> LoadReport:
    """Fill `module` from `weights`, which must have exactly its names and shapes, but for `skip`.

    What is missing, left over, of another shape, or not finite is an InputError, which names `where` they are
    from and leaves the module unchanged; `skip` is as for `compare_weights`.
    """
    report = compare_weights(module, weights, skip)
    if not report.fits:
        raise InputError(f"{where}: the weights do not fit the model: {report.explain()}")
    loaded = {name: weights[name] for name in report.loaded}
    if broken := find_not_finite(loaded):
        raise InputError(f"{where}: NaN or infinite values in {len(broken)} weights {_some(broken)}")
    if zero := find_all_zero(loaded):
        logger.warning("%s: only zeros in %d weights %s", where, len(zero), _some(zero))
    module.load_state_dict(loaded, strict=False)
    return report


def find_not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """List the tensors with a NaN or an infinite value."""
    return [name for name, value in weights.items() if not bool(value.isfinite().all())]


def find_all_zero(weights: Mapping[str, Tensor]) -> list[str]:
    """List the matrices and convolutions (two or more dimensions) without a value other than 0."""
    return [n for n, v in weights.items() if v.ndim > 1 and v.numel() and not bool(v.any())]


def is_under(name: str, prefixes: Sequence[str]) -> bool:
    """Say whether `name` is one of `prefixes`, or is below one: `class_head.bias` is below `class_head`."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _some(names: Sequence[str]) -> str:
    return f"[{', '.join(names[:3])}{', …' if len(names) > 3 else ''}]"


def render_shape(shape: Sequence[int]) -> str:
    """Write a shape as 3x128; that of a single number as scalar."""
    return "x".join(map(str, shape)) or "scalar"
