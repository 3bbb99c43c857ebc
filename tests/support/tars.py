"""Tar files by the standard library, for tests of what reads shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from shards.cutout import Cutout, encode_cutout


def write_tar(path: Path, members: dict[str, bytes], kind: int = tarfile.USTAR_FORMAT) -> Path:
    """Write files by name."""
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_cutouts(path: Path, cutouts: Iterable[Cutout]) -> str:
    """Write a bank of objects."""
    members = {f"{c.key}.{suffix}": content for c in cutouts for suffix, content in encode_cutout(c).items()}
    return str(write_tar(path, members))
