"""Two real processes over gloo: the same weights as one, every way they can be launched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "jobs.finetune"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--config_file", "docs/accelerate_two_processes.yaml"]
"""A saved `accelerate config`, as docs/training.md has it."""


def arguments(out: Path, scenes: str, cutouts: str, batch_size: int, *extra: str) -> list[str]:
    return [
        "--name", "run", "--out", str(out), "--data.shards", scenes, "--data.crop", "32", "32",
        "--data.batch_size", str(batch_size), "--data.workers", "0",
        "--model.size", "tiny", "--model.image_size", "32", "32", "--model.num_queries", "5",
        "--loss.classification", "logit_norm",
        "--loss.outlier", "rba", "energy", "mask2anomaly", "uno", "--model.outlier_class", "trained",
        "--loss.options.mask.num_points", "32",
        "--paste.bank", cutouts, "--paste.probability", "0.5",
        "--loop.steps", "4", "--loop.save_every", "2", "--loop.log_every", "1", "--optim.lr", "1e-3", *extra,
    ]  # fmt: skip


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def weights(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(out / "run" / "checkpoints" / f"step-{step:07d}" / "model.safetensors")


def test_two_processes_train_the_weights_of_one(tmp_path: Path, scene_shards: str, cutout_shard: str) -> None:
    """Half of the scenes are pasted, so some ranks have no outlier in some steps.

    Tolerance 1e-5 after four steps of rate 1e-3: sums in another order, enlarged by Adam's division.
    """
    one = run(["-m", "jobs.finetune", *arguments(tmp_path / "one", scene_shards, cutout_shard, 4)])
    assert one.returncode == 0, one.stderr
    two = run([*TORCHRUN, *arguments(tmp_path / "two", scene_shards, cutout_shard, 2)])
    assert two.returncode == 0, two.stderr
    launched = run(
        [*ACCELERATE, "-m", "jobs.finetune", *arguments(tmp_path / "three", scene_shards, cutout_shard, 2)],
        ACCELERATE_USE_CPU="true",
    )
    assert launched.returncode == 0, launched.stderr
    expected, actual, third = (weights(tmp_path / name, 4) for name in ("one", "two", "three"))
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=0, msg=name)
        assert torch.equal(actual[name], third[name])


def test_a_run_killed_outright_resumes_to_the_same_bits(
    tmp_path: Path, scene_shards: str, cutout_shard: str
) -> None:
    extra = ("--loop.steps", "40", "--loop.save_every", "5")
    whole = run(["-m", "jobs.finetune", *arguments(tmp_path / "a", scene_shards, cutout_shard, 2, *extra)])
    assert whole.returncode == 0, whole.stderr
    command = ["-m", "jobs.finetune", *arguments(tmp_path / "b", scene_shards, cutout_shard, 2, *extra)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the number of threads orders the sums
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    checkpoints = tmp_path / "b" / "run" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(checkpoints.glob("step-*"))
    assert not (checkpoints / "step-0000040").exists()
    resumed = run([*command, "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    assert "from step 0 " not in resumed.stderr
    expected, actual = weights(tmp_path / "a", 40), weights(tmp_path / "b", 40)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def kill_mid_epoch(command: list[str], checkpoints: Path) -> int:
    """Start a run, kill all its processes outright after two checkpoints; return the newest step."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the number of threads orders the sums
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(list(checkpoints.glob("step-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    family = psutil.Process(process.pid)
    for member in [family, *family.children(recursive=True)]:  # the launcher first, or it would tidy up
        member.kill()
    process.wait()
    return max(int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*"))


def test_two_processes_killed_outright_mid_epoch_resume_to_the_same_bits(
    tmp_path: Path, scene_shards: str, cutout_shard: str
) -> None:
    """Steps of 6 of 8 scenes, so that three of four checkpoints lie within an epoch; a loader worker each."""
    extra = ("--loop.steps", "30", "--loop.save_every", "1", "--loop.keep_checkpoints", "0")
    extra += ("--data.workers", "1")
    whole = run([*TORCHRUN, *arguments(tmp_path / "a", scene_shards, cutout_shard, 3, *extra)])
    assert whole.returncode == 0, whole.stderr
    command = [*TORCHRUN, *arguments(tmp_path / "b", scene_shards, cutout_shard, 3, *extra)]
    step = kill_mid_epoch(command, tmp_path / "b" / "run" / "checkpoints")
    assert step < 30
    while step * 6 % 8 == 0:  # a checkpoint between two epochs proves less: take the one before
        shutil.rmtree(tmp_path / "b" / "run" / "checkpoints" / f"step-{step:07d}")
        step -= 1
    resumed = run([*command, "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    assert f"from step {step} to 30 on 2 processes" in resumed.stderr
    expected, actual = weights(tmp_path / "a", 30), weights(tmp_path / "b", 30)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_a_resume_on_one_process_instead_of_two_keeps_the_weights(
    tmp_path: Path, scene_shards: str, cutout_shard: str
) -> None:
    """The global batch stays 4; tolerance as for two processes against one."""
    two = run([*TORCHRUN, *arguments(tmp_path / "two", scene_shards, cutout_shard, 2)])
    assert two.returncode == 0, two.stderr
    expected = weights(tmp_path / "two", 4)
    shutil.rmtree(tmp_path / "two" / "run" / "checkpoints" / "step-0000004")  # as if killed before it
    one = run(
        ["-m", "jobs.finetune", *arguments(tmp_path / "two", scene_shards, cutout_shard, 4), "--resume"]
    )
    assert one.returncode == 0, one.stderr
    assert "from step 2 to 4 on 1 processes" in one.stderr
    actual = weights(tmp_path / "two", 4)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=0, msg=name)


def test_a_resume_on_two_processes_instead_of_one_keeps_the_weights(
    tmp_path: Path, scene_shards: str, cutout_shard: str
) -> None:
    one = run(["-m", "jobs.finetune", *arguments(tmp_path / "one", scene_shards, cutout_shard, 4)])
    assert one.returncode == 0, one.stderr
    expected = weights(tmp_path / "one", 4)
    shutil.rmtree(tmp_path / "one" / "run" / "checkpoints" / "step-0000004")
    two = run([*TORCHRUN, *arguments(tmp_path / "one", scene_shards, cutout_shard, 2), "--resume"])
    assert two.returncode == 0, two.stderr
    assert "from step 2 to 4 on 2 processes" in two.stderr
    actual = weights(tmp_path / "one", 4)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=0, msg=name)


def test_a_signal_to_the_whole_job_saves_before_leaving(
    tmp_path: Path, scene_shards: str, cutout_shard: str
) -> None:
    """Schedulers signal every process of a job, loader workers too."""
    extra = ("--loop.steps", "100000", "--loop.save_every", "100000", "--data.workers", "2")
    command = ["-m", "jobs.finetune", *arguments(tmp_path, scene_shards, cutout_shard, 2, *extra)]
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    log, deadline = tmp_path / "run" / "log.txt", time.monotonic() + 120
    while not (log.exists() and "step 3/" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "Traceback" not in errors
    assert "asked to stop: saved at step" in log.read_text()
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 1


def test_more_readers_than_shards_train(tmp_path: Path, scene_shards: str, cutout_shard: str) -> None:
    extra = ("--data.workers", "5")  # 2 processes with 5 workers each over 8 shards
    result = run([*TORCHRUN, *arguments(tmp_path, scene_shards, cutout_shard, 1, *extra)])
    assert result.returncode == 0, result.stderr
    assert len(weights(tmp_path, 4)) > 0


def test_processes_that_did_not_find_each_other_are_an_error(
    tmp_path: Path, scene_shards: str, cutout_shard: str
) -> None:
    lonely = {"WORLD_SIZE": "2", "RANK": "0"}  # as of a launcher whose rendezvous got lost
    result = run(["-m", "jobs.finetune", *arguments(tmp_path, scene_shards, cutout_shard, 1)], **lonely)
    assert result.returncode == 2, result.stderr
    assert "error: launch of 2 processes in float32: " in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
