"""The wheel, built and installed apart: it runs from any folder, beside packages of our folders' names."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("jobs", "trainer", "outlier_paste", "shards", "slurm", "eval", "models")
FILES = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", "--quiet")
IMPORTED = f"""
import importlib, pkgutil, sys
import eomt_anomaly
for module in pkgutil.walk_packages(eomt_anomaly.__path__, "eomt_anomaly."):
    importlib.import_module(module.name)
from eomt_anomaly.eval.metrics.curve import pixel_metrics
import numpy as np
assert pixel_metrics(np.float32([2, 3]), np.float32([0, 1])).ap == eval("1")
print(sorted(name for name in sys.modules if name.partition(".")[0] in {FOLDERS}))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="wheel")
def _wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, in which an earlier build has left something."""
    folder = tmp_path_factory.mktemp("build")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    (folder / "build/lib/jobs").mkdir(parents=True)
    (folder / "build/lib/jobs/old.py").write_text("")
    options = ("--no-build-isolation", "--no-deps", "--wheel-dir", str(folder / "dist"))
    subprocess.run([*PIP, "wheel", *options, str(folder)], check=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module", name="elsewhere")
def _elsewhere(wheel: Path) -> Path:
    """Install the wheel, and make a folder with packages of the same names that cannot be imported."""
    folder = wheel.parent.parent
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    for name in FOLDERS:
        (folder / "elsewhere" / name).mkdir(parents=True)
        (folder / "elsewhere" / name / "__init__.py").write_text(f"raise RuntimeError('foreign {name}')\n")
    return folder / "elsewhere"


def run(folder: Path, *words: str) -> str:
    """Run Python in `folder` with what is installed beside it."""
    variables = {**os.environ, "PYTHONPATH": str(folder.parent / "site"), "COLUMNS": "200"}
    found = subprocess.run(
        [sys.executable, *words], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_a_wheel_holds_one_package_with_its_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"eomt_anomaly"}
    sources = {path.relative_to(ROOT).as_posix() for name in FOLDERS for path in (ROOT / name).rglob("*")}
    wanted = {name for name in sources if name.endswith((".py", ".yaml", ".html", ".txt"))}
    assert {name.removeprefix("eomt_anomaly/") for name in names if ".dist-info/" not in name} >= wanted
    (top_level,) = (name for name in names if name.endswith("top_level.txt"))
    assert zipfile.ZipFile(wheel).read(top_level).split() == [b"eomt_anomaly"]


def test_the_lock_has_a_version_that_is_allowed_of_all_that_is_needed() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line[:1] != "#"]
    locked = dict(line.split("==") for line in lines)
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    asked = "\n".join([settings["options"]["install_requires"], settings["options.extras_require"]["test"]])
    for requirement in map(Requirement, filter(None, asked.split("\n"))):
        assert locked[requirement.name.lower().replace("_", "-")] in requirement.specifier


def test_every_module_is_imported_beside_foreign_ones_of_its_name(elsewhere: Path) -> None:
    assert run(elsewhere, "-c", IMPORTED) == "[]\n"


def test_programs_start_anywhere_and_name_themselves(elsewhere: Path) -> None:
    assert "python -m eomt_anomaly.jobs.evaluate" in run(
        elsewhere, "-m", "eomt_anomaly.jobs.evaluate", "--help"
    )


def test_a_sweep_of_an_example_starts_the_same_programs(elsewhere: Path) -> None:
    words = ("-m", "eomt_anomaly.jobs.submit", "slurm/examples/single_gpu.yaml", "--dry-run")
    started = set(re.findall(r"^[^#\n]* -m (\S+)", run(elsewhere, *words), flags=re.MULTILINE))
    assert {"eomt_anomaly.slurm.cell", "eomt_anomaly.jobs.collect"} <= started
    assert all(name.startswith("eomt_anomaly.") for name in started)
