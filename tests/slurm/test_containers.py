"""The recipes of containers, and the sweep whose programs run in one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs.submit import main

RECIPES = Path("slurm/containers")
INSTALLED = {"setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "requirements.lock"}
FOLDERS = {"jobs", "trainer", "outlier_paste", "shards", "slurm", "eval", "models"}
INSTALL = "pip install --no-cache-dir -c /suite/requirements.lock /suite"


def test_both_recipes_install_the_same_sources_on_the_same_base() -> None:
    docker = re.sub(r"\\\n\s*", "", (RECIPES / "Dockerfile").read_text())
    lines = [line.split() for line in docker.splitlines() if line and not line.startswith("#")]
    assert {line[0] for line in lines} == {"FROM", "RUN", "COPY", "WORKDIR"}
    assert all(line[-1].startswith("/suite/") for line in lines if line[0] == "COPY")
    copied = {source for line in lines if line[0] == "COPY" for source in line[1:-1]}
    recipe = (RECIPES / "apptainer.def").read_text()
    head, files, post = re.split(r"^%(?:files|post)\n", recipe, flags=re.MULTILINE)
    base = dict(line.split(": ") for line in head.splitlines() if line and not line.startswith("#"))
    pairs = [line.split() for line in files.splitlines() if line]
    assert base == {"Bootstrap": "docker", "From": lines[0][1]}
    assert all(place == f"/suite/{source}" for source, place in pairs)
    assert {source for source, _ in pairs} == copied == INSTALLED | FOLDERS
    assert all(Path(source).exists() for source in copied)
    assert INSTALL in docker
    assert INSTALL in post


def test_a_sweep_runs_its_programs_in_the_container(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"out: {tmp_path}\n" + Path("slurm/examples/container.yaml").read_text())
    main([str(sweep), "--dry-run"])
    script = capsys.readouterr().out
    assert "apptainer exec suite.sif python -m jobs.collect" in script
    assert re.search(r"exec \S+python\S* -m slurm.cell", script)  # outside
    assert "apptainer exec --nv" not in script  # in tasks.json, which is not written now
