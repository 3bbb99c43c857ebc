"""What lies in a folder, and what is waited for there."""

from __future__ import annotations

import time
from pathlib import Path


def contents(folder: Path, left_out: str = "") -> dict[str, bytes]:
    """Return all files below a folder, and empty bytes of folders, without names that end in `left_out`."""
    paths = [path for path in folder.rglob("*") if not left_out or not path.name.endswith(left_out)]
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else b"" for p in paths}


def wait_for(path: Path, text: str = "", *, patience_s: float = 120) -> None:
    """Wait until a file is there and holds `text`; fail where it is not within so many seconds."""
    deadline = time.monotonic() + patience_s
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline, f"{path}: no {text!r}"
        time.sleep(0.01)
