"""The start of every program: its help page and its refusal of an option load nothing that takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

JOBS = sorted(path.stem for path in Path("jobs").glob("[!_]*.py"))
HEAVY = {"torch", "torchvision", "timm", "peft", "accelerate", "transformers", "matplotlib", "webdataset"}
STARTS = """
import os, runpy, sys
import tyro, numpy, shards.program  # of all of them
folder, *jobs = sys.argv[1:]
for job in jobs:
    for option in "--help", "--no_such_option":
        if child := os.fork():
            print(job, option, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        said = os.open(f"{folder}/{job}{option}", os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1), os.dup2(said, 2)
        sys.argv = [f"jobs.{job}", option]
        try:
            runpy.run_module(f"jobs.{job}", run_name="__main__", alter_sys=True)
        finally:
            print("loaded:", *(name for name in sys.modules if "." not in name), file=sys.stderr)
"""
"""Starts each program twice, from a process that has loaded what all of them load."""


@pytest.fixture(scope="module", name="started")
def _started(tmp_path_factory) -> tuple[Path, list[str]]:
    """The folder of what each start said, and all of them with their exit codes."""
    folder = tmp_path_factory.mktemp("started")
    command = [sys.executable, "-c", STARTS, str(folder), *JOBS]
    variables = {**os.environ, "PYTHONIOENCODING": "ascii"}  # text survives a terminal without UTF-8
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    return folder, done.stdout.splitlines()


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(
    ("option", "code", "text"), [("--help", 0, "usage: "), ("--no_such_option", 2, "error: ")]
)
def test_help_and_a_wrong_option_load_no_network(started, job, option, code, text):
    folder, codes = started
    said, _, names = (folder / f"{job}{option}").read_text().partition("loaded: ")
    loaded = set(names.split())
    assert f"{job} {option} {code}" in codes
    assert text in said
    assert "tyro" in loaded
    assert not loaded & HEAVY
    assert len(loaded) < 250
