"""On a real Slurm: a training over two machines, stopped, killed, resumed, scored, collected."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import psutil
import pytest
import yaml

from jobs import collect, evaluate, finetune, status, submit
from jobs.status import read_progress
from slurm.tasks import read_state
from tests.support.forked import run_ranks
from tests.trainer.small_run import assert_equal, weights

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STEPS = 80


def write_sweep(path: Path, out: Path, scenes: str, test_set: Path) -> Path:
    """A sweep of one cell on two machines: one rank each."""
    base = path.with_name("base.yaml")
    config = {
        "data": {"shards": [scenes], "crop": [32, 32], "batch_size": 1, "workers": 0},
        "model": {"size": "tiny", "image_size": [32, 32], "num_queries": 5},
        "loss": {"name": "mask", "options": {"mask": {"num_points": 32}}},
        "optim": {"lr": 1e-3},
        "loop": {"steps": STEPS, "save_every": 10, "log_every": 1, "keep_checkpoints": 0},
        "tracking": {"tensorboard": False},
    }
    base.write_text(yaml.safe_dump(config))
    sweep = {
        "name": "two nodes",
        "out": str(out),
        "config": str(base),
        "resources": {"nodes": 2, "ranks_per_node": 1, "environment": {"GLOO_SOCKET_IFNAME": "lo"}},
        "evaluation": {"datasets": str(test_set), "options": {"scores": ["MSP"], "pictures": 0}},
    }
    path.write_text(yaml.safe_dump(sweep))
    return path


def write_test_set(root: Path) -> Path:
    folder = root / "RoadAnomaly21"
    mask = np.zeros((32, 32))
    mask[8:16, 8:16] = 1
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    for name, pixels in {"images": image, "labels_masks": mask}.items():
        (folder / name).mkdir(parents=True)
        cv2.imwrite(str(folder / name / "0.png"), pixels.astype(np.uint8))
    return root


@pytest.fixture(name="job")
def _job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Callable[..., str]:
    """Run a program in this process, which has loaded torch already, and return what it said."""
    monkeypatch.chdir(ROOT)
    caplog.set_level(logging.INFO)

    def run(program: ModuleType, *arguments: object) -> str:
        caplog.clear()
        program.main([str(argument) for argument in arguments])
        return capsys.readouterr().out + caplog.text

    return run


def kill_second_rank(run: Path) -> None:
    for process in psutil.process_iter(["cmdline", "environ"]):
        words, variables = process.info["cmdline"] or [""], process.info["environ"] or {}
        is_program = words[0].endswith("python") and "jobs.finetune" in words
        if is_program and variables.get("RANK") == "1" and f"{run.name}/config.yaml" in " ".join(words):
            process.kill()


def test_a_training_over_two_machines_resumes_exactly_and_ends_in_a_table(
    cluster, tmp_path: Path, scene_shards: str, job: Callable[..., str]
) -> None:
    """Stopped by a signal and queued again by itself; then a rank killed outright, and retried as asked."""
    test_set = write_test_set(tmp_path / "sets")
    sweep = write_sweep(tmp_path / "sweep.yaml", tmp_path / "a", scene_shards, test_set)
    job(submit, sweep)
    folder = tmp_path / "a" / "two nodes"
    run, control = folder / "runs" / "seed=0", folder / "cells" / "seed=0"
    queue = cluster.run("squeue", "-h", "-o", "%A %j").splitlines()
    (training,) = [line.split()[0] for line in queue if line.endswith("two nodes-finetune")]

    def step() -> int:
        return int(read_progress(run / "log.txt").step.partition("/")[0] or 0)

    cluster.until(lambda: step() > 2, 240, "the first steps")
    cluster.run("scancel", "--batch", "--signal=USR1", f"{training}_0")
    cluster.until(lambda: read_state(control, "finetune").state == "stopped", 60, "the stop")
    stopped_at = step()
    assert (run / "checkpoints" / f"step-{stopped_at:07d}").is_dir()
    assert stopped_at < STEPS
    assert "from step 0 to" in (run / "log.txt").read_text()

    cluster.until(lambda: step() > stopped_at + 12, 240, "steps after the requeue")
    assert f"from step {stopped_at} to {STEPS} on 2 processes" in (run / "log.txt").read_text()
    assert "finetune running" in job(status, sweep)
    kill_second_rank(run)
    cluster.until(lambda: read_state(control, "finetune").state == "failed", 240, "the failure")
    cluster.until(lambda: not cluster.run("squeue", "-h"), 60, "an empty queue")
    told = job(status, sweep)
    assert "finetune failed" in told
    assert "exit code" in told

    assert "1 have failed and are left out" in job(submit, sweep)
    assert not cluster.run("squeue", "-h")
    job(submit, sweep, "--retry-failed")
    options = [str(run / "config.yaml"), "--out", str(tmp_path)]
    run_ranks(finetune.main, options, tmp_path / "said", 2)  # meanwhile, on this machine and never stopped
    whole, scored, table = tmp_path / "seed=0", tmp_path / "scored", tmp_path / "table"
    measured = ("--datasets", test_set, "--scores", "MSP", "--pictures", 0)
    job(evaluate, "--checkpoint", whole, *measured, "--out", scored)
    job(collect, scored / "results.json", "--names", "seed=0", "--out", table)
    cluster.until(lambda: not cluster.run("squeue", "-h"), 240, "the end of all jobs")
    assert "1 done" in job(status, sweep)
    assert_equal(weights(run.parent, STEPS, run.name), weights(tmp_path, STEPS, whole.name))
    scores, cost = (folder / "table" / "results.md").read_text().split("## Cost")
    assert re.search(r"\| seed=0 \| 0.00 \| \d+.\d\d \| 2 \| \d \|", cost)
    (row,) = re.findall(r"\| seed=0 \| MSP \|.*", scores)
    assert row in (table / "results.md").read_text()
    assert "1 cells, 1 done, 0 to run" in job(submit, sweep)
