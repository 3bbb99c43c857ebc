"""What lies in a folder."""

from __future__ import annotations

from pathlib import Path


def contents(folder: Path, left_out: str = "") -> dict[str, bytes]:
    """Return all files below a folder, and empty bytes of folders, without names that end in `left_out`."""
    paths = [path for path in folder.rglob("*") if not left_out or not path.name.endswith(left_out)]
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else b"" for p in paths}
