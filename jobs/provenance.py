"""Where a run comes from: code, machine, command and data, as one JSON file."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.manifest import MANIFEST_NAME
from shards.staging import write_atomically

PROVENANCE_NAME = "provenance.json"
PACKAGES = ("torch", "accelerate", "timm", "numpy", "opencv-python", "webdataset", "eomt-anomaly")


def require_same_data(path: Path, data: Sequence[str]) -> None:
    """Check that a run which resumes reads the shards it was started with.

    Args:
        path: the run's provenance file; nothing is checked where it is missing.
        data: folders of shards.

    Raises:
        InputError: a manifest has changed, or the file is broken.
    """
    entries = _read_entries(path)
    recorded = entries[-1]["manifests"] if entries else {}
    for folder in data:
        now = _manifest_hash(Path(folder))
        if folder in recorded and recorded[folder] != now:
            raise InputError(
                f"--resume: {folder}/{MANIFEST_NAME} has changed since the run was started ({path}); "
                f"a resumed run keeps its data"
            )


def write_provenance(path: Path, *, seed: int, data: Sequence[str], num_processes: int) -> None:
    """Write what is needed to say, a year later, where a number came from.

    Args:
        path: the JSON file; an existing one (of a run that resumes) gets one more entry.
        data: folders of shards; the hash of each one's manifest is recorded.
        num_processes: training processes.
    """
    entries = _read_entries(path)
    entries.append(
        {
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": shlex.join([sys.executable, *sys.orig_argv[1:]]),
            "commit": _git("rev-parse", "HEAD"),
            "uncommitted_changes": bool(_git("status", "--porcelain")),
            "seed": seed,
            "num_processes": num_processes,
            "host": socket.gethostname(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "packages": {name: _version(name) for name in PACKAGES},
            "manifests": {folder: _manifest_hash(Path(folder)) for folder in data},
        }
    )
    write_atomically(path, json.dumps(entries, indent=2) + "\n")


def _read_entries(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        for entry in entries:
            dict(entry["manifests"])
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path}: is no provenance record; move it away to go on without") from None
    return entries


def _git(*arguments: str) -> str | None:
    """Ask git about the code's own folder; None where it is no checkout."""
    # without locks: a run that is killed meanwhile would leave one
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).resolve().parent), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _manifest_hash(folder: Path) -> str | None:
    manifest = folder / MANIFEST_NAME
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None
