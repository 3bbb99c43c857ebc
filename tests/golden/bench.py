"""What every part works with: programs, a folder of its own, and what other parts have made."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.golden.programs import ROOT, Programs
from tests.golden.record import Findings

CONFIGS = ROOT / "jobs" / "configs"
SMALL = ("--data.crop", 64, 64, "--model.image_size", 64, 64)
WORLD, SHARDS, CUTOUTS = "world/drawn", "world/cityscapes", "world/coco"
ANOMALY = f"{WORLD}/anomaly"
RUNS = "losses"
"""Folders in the work folder, as programs are given them."""


class Bench:
    """Runs parts in a work folder, each in a folder of its name."""

    def __init__(self, work: Path, parts: Mapping[str, Callable[[Bench], None]]) -> None:
        """Use a work folder, which may hold what an earlier call has made."""
        self.work = work
        self.programs = Programs(work)
        self.findings = Findings(work)
        self._parts = parts

    def make(self, part: str) -> None:
        """Run a part from nothing."""
        mark = self.work / f"{part}.made"
        mark.unlink(missing_ok=True)
        shutil.rmtree(self.work / part, ignore_errors=True)
        (self.work / part).mkdir()
        self._parts[part](self)
        mark.touch()

    def need(self, *parts: str) -> None:
        """Make parts that are not there yet, and forget what was found in them."""
        for part in parts:
            if not (self.work / f"{part}.made").is_file():
                before = self.findings
                self.findings = Findings(self.work)
                self.make(part)
                self.findings = before


def zip_folder(folder: Path, archive: Path) -> None:
    """Write a zip as the owners of data sets do: names from the folder's own on."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, path.relative_to(folder.parent).as_posix())
