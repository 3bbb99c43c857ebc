"""Weights on Hugging Face's hub: `hf:org/name` as a path, and uploads, where huggingface_hub is installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from shards.errors import InputError

SCHEME = "hf:"
NAME = r"[\w.-]+/[\w.-]+"
WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.bin", "*.pth", "*.pt", "*.ckpt", "*.md")


def localize(path: Path) -> Path:
    """Return a path as it is, or, of `hf:org/name` or `hf:org/name@REVISION`, the folder of its local copy.

    Where the hub cannot be reached, a copy that is whole already is taken; an InputError says there is none.
    """
    text = str(path)
    if not text.startswith(SCHEME):
        return path
    found = re.fullmatch(rf"{SCHEME}({NAME})(?:@([\w./-]+))?", text)
    if found is None:
        raise InputError(f"{text}: expected hf:org/name or hf:org/name@REVISION")
    options = {"revision": found[2], "allow_patterns": list(WANTED)}
    return Path(_ask("snapshot_download", text, found[1], **options))


def push_folder(folder: Path, name: str) -> str:
    """Upload a folder to the repository `name`, which is private where it is new; return its URL."""
    where = f"--push {name}: {folder} is complete, but not uploaded"
    url = str(_ask("create_repo", where, name, private=True, exist_ok=True))
    message = "Export of eomt-anomaly"
    _ask("upload_folder", where, repo_id=name, folder_path=str(folder), commit_message=message)
    return url


def require_repository(name: str) -> None:
    """Check the name of a repository that an export is to be uploaded to, and that it can be."""
    if not re.fullmatch(NAME, name):
        raise InputError(f"--push: got {name!r}; expected org/name")
    _import(f"--push {name}")


def _ask(function: str, where: str, *words: Any, **options: Any) -> Any:
    try:
        return getattr(_import(where), function)(*words, **options)
    except InputError:
        raise
    except Exception as error:  # of the hub, of the network, of the disk; each with its own class
        raise InputError(f"{where}: {' '.join(str(error).split())[:300] or type(error).__name__}") from None


def _import(where: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        missing = "huggingface_hub is not installed; pip install huggingface_hub"
        raise InputError(f"{where}: {missing}") from None
    return huggingface_hub
