"""Two ranks that play all scenes once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from jobs.work.finetune import finetune
from tests.distributed import scenes
from tests.support.forked import run_ranks


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory, scene_shards: str, cutout_shard: str) -> Path:
    """The folder of `outcomes-RANK.json` and of the runs: of two processes, and of one (one-*, plain-*)."""
    out = tmp_path_factory.mktemp("ranks")
    scenes.RUN.update(out=str(out), scenes=scene_shards, cutouts=cutout_shard)
    logging.getLogger().setLevel(logging.INFO)
    for name, extra in runs_of_one():
        AcceleratorState._reset_state(reset_partial_state=True)
        finetune(scenes.make_config(name, "--data.batch_size", "2", *extra))
    logging.getLogger().setLevel(logging.WARNING)
    AcceleratorState._reset_state(reset_partial_state=True)
    run_ranks(scenes.main, [str(out), scene_shards, cutout_shard], out, 2, patience_s=600)
    return out


def runs_of_one() -> list[tuple[str, list[str]]]:
    """Name the runs of one process to which those of two are compared, with their options."""
    plain = [
        (f"plain-{mode}", [*scenes.adapt(mode), *scenes.VALIDATED, scenes.RUN["scenes"]])
        for mode in ("full", "lora", "gradual")
    ]
    return [*plain, *((f"one-{mode}", scenes.adaptation(mode)) for mode in scenes.MODES)]
