"""Two real processes over gloo: the same weights as one, every way they can be launched."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest

import jobs.work.finetune
from jobs import finetune
from shards.batch import Batch
from tests.support.files import wait_for
from tests.support.forked import join, read_said, run_ranks, start_ranks
from tests.trainer.small_run import assert_close, assert_equal, copy_killed, make_arguments, weights
from trainer.loop import Run, train
from trainer.runtime import STOPPED

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--config_file", "docs/accelerate_two_processes.yaml"]
"""A saved `accelerate config`, as docs/training.md has it."""


Arguments = Callable[..., list[str]]


@pytest.fixture(scope="module", name="arguments")
def _arguments(scene_shards: str, cutout_shard: str) -> Arguments:
    """Half of the scenes are pasted, so some ranks have no outlier in some steps."""
    losses = ["--loss.classification", "logit_norm", "--loss.outlier", "rba", "energy", "mask2anomaly", "uno"]
    losses += ["--model.outlier_class", "trained", "--paste.bank", cutout_shard, "--paste.probability", "0.5"]

    def make(out: Path, batch_size: int, *extra: str) -> list[str]:
        return make_arguments(out, scene_shards, "--data.batch_size", str(batch_size), *losses, *extra)

    return make


def launch(command: list[str], **environment: str) -> None:
    """Run to the end what a user would launch."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def finetune_noting_samples(arguments: Sequence[str]) -> None:
    """Be `jobs.finetune`, and write into the run's folder which samples each step of this rank takes."""

    def noted(run: Run) -> Iterator[Batch]:
        ranks, rank = run.accelerator.num_processes, run.accelerator.process_index
        for batch in run.batches:
            with (run.folder / f"samples-{ranks}-{rank}.txt").open("a") as file:
                print(run.state.step, *batch.keys, file=file)
            yield batch

    jobs.work.finetune.train = lambda run, config: train(dataclasses.replace(run, batches=noted(run)), config)
    finetune.main(arguments)


def samples_of(run: Path, ranks: int) -> dict[str, list[str]]:
    """Return the samples of each step, in order, as so many ranks took them."""
    taken = defaultdict[str, list[str]](list)
    for rank in range(ranks):
        for line in (run / f"samples-{ranks}-{rank}.txt").read_text().splitlines():
            step, *keys = line.split()
            taken[step] += keys
    return taken


@pytest.fixture(scope="module", name="ended")
def _ended(tmp_path_factory: pytest.TempPathFactory, arguments: Arguments) -> Path:
    """The folder of two runs of four steps: of one process, and of two."""
    folder = tmp_path_factory.mktemp("ended")
    for name, ranks in (("one", 1), ("two", 2)):
        words = arguments(folder / name, 4 // ranks)
        run_ranks(finetune_noting_samples, words, folder / f"told-{name}", ranks)
    return folder


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_train_the_weights_of_one(
    ended: Path, tmp_path: Path, arguments: Arguments, launcher: list[str]
) -> None:
    """However they are launched."""
    launch([*launcher, "-m", "jobs.finetune", *arguments(tmp_path, 2)], ACCELERATE_USE_CPU="true")
    assert_equal(weights(tmp_path), weights(ended / "two"))
    assert_close(weights(tmp_path), weights(ended / "one"))


def kill_after(checkpoints: Path, count: int, processes: Sequence[BaseProcess]) -> int:
    """Kill all processes of a run outright once it has so many checkpoints; return the newest step."""
    deadline = time.monotonic() + 120
    while len(list(checkpoints.glob("step-*"))) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    family = [psutil.Process(process.pid) for process in processes]
    for member in [*family, *(child for rank in family for child in rank.children(recursive=True))]:
        member.kill()
    assert join(processes, 30) == [-signal.SIGKILL] * len(processes)
    return max(int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*"))


def test_two_processes_killed_outright_mid_epoch_resume_to_the_same_bits(
    tmp_path: Path, arguments: Arguments
) -> None:
    """Steps of 6 of 8 scenes, so that three of four checkpoints lie within an epoch; a loader worker each."""
    extra = ("--loop.steps", "16", "--loop.save_every", "1", "--loop.keep_checkpoints", "0")
    extra += ("--data.workers", "1")
    run_ranks(finetune.main, arguments(tmp_path / "a", 3, *extra), tmp_path / "whole", 2)
    options = arguments(tmp_path / "b", 3, *extra)
    checkpoints = tmp_path / "b" / "run" / "checkpoints"
    step = kill_after(checkpoints, 2, start_ranks(finetune.main, options, tmp_path / "killed", 2))
    assert step < 16
    while step * 6 % 8 == 0:  # a checkpoint between two epochs proves less: take the one before
        shutil.rmtree(checkpoints / f"step-{step:07d}")
        step -= 1
    told = run_ranks(finetune.main, [*options, "--resume"], tmp_path / "resumed", 2)
    assert f"from step {step} to 16 on 2 processes" in told
    assert_equal(weights(tmp_path / "b", 16), weights(tmp_path / "a", 16))


@pytest.mark.parametrize(("name", "ranks"), [("two", 1), ("one", 2)])
def test_a_resume_on_another_number_of_processes_keeps_samples_and_weights(
    ended: Path, tmp_path: Path, arguments: Arguments, name: str, ranks: int
) -> None:
    """The global batch stays 4, cut anew; tolerance as for two processes against one."""
    copy_killed(ended / name, tmp_path / name, 2)
    words = [*arguments(tmp_path / name, 4 // ranks), "--resume"]
    told = run_ranks(finetune_noting_samples, words, tmp_path / "told", ranks)
    cut = f"{ranks} processes, {4 // ranks} x 1 images each, {3 - ranks} before"
    assert f"from step 2 to 4 on {cut}: the same samples in each step, sums in another order" in told
    before = samples_of(ended / name / "run", 3 - ranks)
    assert samples_of(tmp_path / name / "run", ranks) == {step: before[step] for step in ("2", "3")}
    assert len({key for step in ("0", "1") for key in before[step]}) == 8  # an epoch, in steps of 4
    assert_close(weights(tmp_path / name), weights(ended / name))


def finetune_in_a_session(arguments: Sequence[str]) -> None:
    """Be `jobs.finetune`, and the leader of a job's processes."""
    os.setsid()
    finetune.main(arguments)


def test_a_signal_to_the_whole_job_saves_before_leaving(tmp_path: Path, arguments: Arguments) -> None:
    """Schedulers signal every process of a job, loader workers too."""
    extra = ("--loop.steps", "100000", "--loop.save_every", "100000", "--data.workers", "2")
    (process,) = start_ranks(finetune_in_a_session, arguments(tmp_path, 2, *extra), tmp_path / "said")
    log = tmp_path / "run" / "log.txt"
    wait_for(log, "step 3/")
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGTERM)
    codes, errors = join([process], 60), read_said(tmp_path / "said")
    assert codes == [STOPPED], errors
    assert "Traceback" not in errors
    assert "asked to stop: saved at step" in log.read_text()
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 1
