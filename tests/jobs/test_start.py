"""The start of every program: its help page and its refusal of an option load nothing that takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

JOBS = sorted(path.stem for path in Path("jobs").glob("[!_]*.py"))
HEAVY = ("torch", "torchvision", "timm", "peft", "accelerate", "transformers", "matplotlib", "webdataset")
LISTED = """
import runpy, sys
sys.argv = ["jobs.NAME", *sys.argv[1:]]
try:
    runpy.run_module("jobs.NAME", run_name="__main__", alter_sys=True)
finally:
    print("loaded:", *(name for name in sys.modules if "." not in name), file=sys.stderr)
"""


def start(job: str, option: str) -> tuple[int, set[str], str]:
    """Start a program; return its exit code, the packages that it has loaded, and all that it said."""
    command = [sys.executable, "-c", LISTED.replace("NAME", job), option]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    said, _, loaded = found.stderr.partition("loaded: ")
    return found.returncode, set(loaded.split()), found.stdout + said


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("option", ["--help", "--no_such_option"])
def test_help_and_a_wrong_option_load_no_network(job: str, option: str) -> None:
    code, loaded, said = start(job, option)
    assert code == (0 if option == "--help" else 2), said
    assert ("usage: " if option == "--help" else "error: ") in said
    assert "tyro" in loaded
    assert not loaded & set(HEAVY)
    assert len(loaded) < 250
