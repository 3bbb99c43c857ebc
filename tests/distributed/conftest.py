"""Two ranks that play all scenes once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from jobs.finetune import finetune
from slurm.launch import _free_port, rank_variables
from tests.distributed import scenes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory, scene_shards: str) -> Path:
    """The folder of the runs and of `outcomes-RANK.json`; runs `one-MODE` are those of one process."""
    out, port = tmp_path_factory.mktemp("ranks"), _free_port()
    usual = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    scenes.RUN.update(out=str(out), scenes=scene_shards)
    for mode in ("full", "lora", "gradual"):
        AcceleratorState._reset_state(reset_partial_state=True)
        extra = ("--data.batch_size", "2", "--adapt.mode", mode, *scenes.THAW)
        finetune(scenes.make_config(f"one-{mode}", *extra))
    AcceleratorState._reset_state(reset_partial_state=True)
    processes = [
        subprocess.Popen(
            [sys.executable, scenes.__file__, str(out), scene_shards],
            cwd=ROOT,
            env={**usual, **rank_variables(rank, 2, port)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return out
