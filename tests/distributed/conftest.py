"""Two ranks that play all scenes once."""

from __future__ import annotations

import logging
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
def played(tmp_path_factory: pytest.TempPathFactory, scene_shards: str, cutout_shard: str) -> Path:
    """The folder of `outcomes-RANK.json` and of the runs: of two processes, and of one (one-*, plain-*)."""
    out, port = tmp_path_factory.mktemp("ranks"), _free_port()
    scenes.RUN.update(out=str(out), scenes=scene_shards, cutouts=cutout_shard)
    logging.getLogger().setLevel(logging.INFO)
    for name, extra in runs_of_one():
        AcceleratorState._reset_state(reset_partial_state=True)
        finetune(scenes.make_config(name, "--data.batch_size", "2", *extra))
    logging.getLogger().setLevel(logging.WARNING)
    AcceleratorState._reset_state(reset_partial_state=True)
    usual = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, scenes.__file__, str(out), scene_shards, cutout_shard],
            cwd=ROOT,
            env={**usual, **rank_variables(rank, 2, port)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return out


def runs_of_one() -> list[tuple[str, list[str]]]:
    """Name the runs of one process to which those of two are compared, with their options."""
    plain = [
        (f"plain-{mode}", ["--adapt.mode", mode, *scenes.THAW, *scenes.VALIDATED, scenes.RUN["scenes"]])
        for mode in ("full", "lora", "gradual")
    ]
    return [*plain, *((f"one-{mode}", scenes.adaptation(mode)) for mode in scenes.MODES)]
