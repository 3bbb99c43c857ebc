"""Weight files: pickles and safetensors, read without running code, and written to the same bytes twice."""

from __future__ import annotations

import json
import logging
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from shards.errors import InputError
from shards.files import from_json, hash_file, read_json

logger = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pth", ".pt")
INDEX_SUFFIX = ".index.json"
"""End of the name of a file that lists the files of one model, `.safetensors` or `.bin`."""
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "teacher", "student")
"""Keys below which programs put weights. Where a file has several of them, the first one counts."""
_RANKS = {key: rank for rank, key in enumerate(WRAPPERS)}
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def write_weight_file(
    weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a `.safetensors` file: equal weights and `metadata` give equal bytes, in every process."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
    with path.open("r+b") as file:  # the library sorts tensors, but not metadata
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(content) != length:
            raise ValueError(f"{path}: the header changed its length")
        file.seek(8)
        file.write(content)


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """Read a `.safetensors` file, a pickle that holds tensors by name, or the index of several of them.

    Weights below other keys, such as those of `WRAPPERS`, are found there. Files that hold code, or numbers
    that are no plain weights (quantised, complex, sparse), are refused with an InputError.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weight file")
    if path.name.endswith(INDEX_SUFFIX):
        return _read_parts(path)
    content = _unwrap(_read(path), path)
    for name, value in content.items():
        # numbers as they are used; a counter of one integer is let through
        is_weight = value.dtype in FLOATS or (value.ndim == 0 and not value.dtype.is_complex)
        if not (is_weight and value.layout == torch.strided and value.device.type == "cpu"):
            layout = "" if value.layout == torch.strided else f", {value.layout}"
            numbers = f"{value.dtype}{layout}".replace("torch.", "")
            allowed = "only weights of float32, float16, bfloat16 or float64 are read"
            raise InputError(f"{path}: {name} holds {numbers} on {value.device}; {allowed}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            repeated = f"is {render_shape(value.shape)}, and the file holds fewer numbers"
            raise InputError(f"{path}: {name} {repeated}; save it with .contiguous()")
    return content


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors by name that `content` is, or holds below its keys."""
    found = dict(_find_named_tensors(content))
    ranks = {place: [_RANKS.get(key, len(_RANKS)) for key in place.split(".")] for place in found}
    places = [place for place, rank in ranks.items() if rank == min(ranks.values())]
    if len(places) == 1:
        if others := [place for place in found if place not in places]:
            logger.info("%s: weights are taken from %s, not from %s", path, places[0], some(others))
        return found[places[0]]
    keys = (
        f"its keys are {some(list(map(str, content)))}"
        if isinstance(content, dict)
        else "it is no dictionary"
    )
    if places:
        several = f"holds weights {len(places)} times, below {some(places)}"
        raise InputError(f"{path}: {several}; save one of them alone with torch.save")
    remedy = "save the network's state_dict() alone with torch.save"
    raise InputError(f"{path}: holds no weights by name, {keys}; {remedy}")


def _find_named_tensors(
    content: Any, place: str = "", depth: int = 4
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each dictionary of nothing but tensors by name, and the keys that lead there."""
    if not isinstance(content, dict) or not content or not all(isinstance(key, str) for key in content):
        return
    if all(isinstance(value, Tensor) for value in content.values()):
        yield place, content
    elif depth:
        for key, value in content.items():
            yield from _find_named_tensors(value, f"{place}.{key}".lstrip("."), depth - 1)


def _read_parts(index: Path) -> dict[str, Tensor]:
    content = {name: value for part in list_parts(index) for name, value in read_weight_file(part).items()}
    if lost := sorted(_read_index(index).keys() - content.keys()):
        raise InputError(f"{index}: lists {len(lost)} weights that no part has {some(lost)}")
    return content


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts in the header of a `.safetensors` file; nothing for others, and for broken ones."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):  # which whoever reads the weights says
        return {}


def _read(path: Path) -> Any:
    kind = "safetensors" if path.suffix == ".safetensors" else "weight"
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        if kind == "safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):
            _require_stored(path)
        return torch.load(path, "cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # zip reader, archive reader and unpickler each raise their own
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


def _require_stored(path: Path) -> None:
    """Check that an archive does not unpack to more than it is; torch.save compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        total = sum(entry.file_size for entry in archive.infolist())
    if total > path.stat().st_size:
        raise InputError(
            f"{path}: an archive that unpacks to {total} bytes; as torch.save writes it, it is larger"
        )


def _looks_like(path: Path, head: bytes) -> str:
    """Name what is often found in place of weights."""
    if head.startswith(b"version https://git-lfs"):
        return " (a Git LFS pointer; `git lfs pull` fetches the file it stands for)"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return " (a web page)"
    if path.suffix == ".onnx" or (head[:1] == b"\x08" and head[2:3] == b"\x12"):
        return (
            " (an ONNX graph, whose weights cannot be told apart; give the checkpoint it was exported from)"
        )
    if head.startswith(b"\x89HDF"):
        return " (an HDF5 file, such as Keras writes)"
    if path.suffix == ".safetensors" and head.startswith(b"PK"):
        return " (an archive as torch.save writes it; name it .bin)"
    if path.suffix != ".safetensors" and head[8:9] == b"{":
        return " (a safetensors file; name it .safetensors)"
    if head.startswith(b"PK"):
        return " (a zip archive; TorchScript's and NumPy's are not read: save the network's state_dict())"
    return ""


def hash_part(path: Path) -> str:
    """Return the SHA-256 of a file of a checkpoint; an InputError says why it cannot be read."""
    try:
        return hash_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def hash_weights(path: Path) -> str:
    """Return the SHA-256 of a weight file; of the files that an index lists, joined by +."""
    return "+".join(hash_part(part) for part in list_parts(path))


def list_parts(path: Path) -> list[Path]:
    """List the files that hold the weights of `path`: itself, or what it indexes, in its own folder only."""
    if not path.name.endswith(INDEX_SUFFIX):
        return [path]
    parts = sorted(set(_read_index(path).values()))
    for part in parts:
        if Path(part).name != part or not part.isprintable() or not part.endswith(WEIGHT_SUFFIXES):
            allowed = f"names ending in {', '.join(WEIGHT_SUFFIXES)} in its own folder are read"
            raise InputError(f"{path}: names {part!r:.80}; {allowed}")
    return [path.parent / part for part in parts]


def _read_index(path: Path) -> dict[str, str]:
    """Return the file of each weight."""
    places = read_json(dict[str, Any], path).get("weight_map")
    return from_json(dict[str, str], places, f"{path}: weight_map")


def _first_line(error: Exception) -> str:
    line = str(error).partition("\n")[0].partition(". ")[0]
    return line[:200] or type(error).__name__


def some(names: Sequence[str]) -> str:
    """List the first three names."""
    return f"[{', '.join(names[:3])}{', …' if len(names) > 3 else ''}]"


def render_shape(shape: Sequence[int]) -> str:
    """Write a shape as 3x128; that of a single number as scalar."""
    return "x".join(map(str, shape)) or "scalar"
