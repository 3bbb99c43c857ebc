"""A second writer in a run's folder, a full disk, a read-only one: said in a line, and nothing is lost."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

import jobs.finetune
import jobs.run_lock
from jobs.finetune import finetune
from models.checkpoint import list_checkpoints
from shards.errors import InputError
from slurm.lock import hold_lock, is_held
from tests.trainer.test_loop import make_config

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _fresh_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(jobs.run_lock, "WAIT_S", 0.0)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_run_that_somebody_writes_is_not_resumed(tmp_path: Path, scene_shards: str) -> None:
    finetune(make_config(tmp_path, scene_shards, "--loop.steps", "2"))
    AcceleratorState._reset_state(reset_partial_state=True)
    with hold_lock(tmp_path / "run" / "lock", wait_s=0, owner="process 7 on node3"):
        before = contents(tmp_path / "run")
        with pytest.raises(
            InputError, match="run: another run is writing there: .*lock is held by process 7 on"
        ):
            finetune(make_config(tmp_path, scene_shards, "--loop.steps", "2"), resume=True)
        assert contents(tmp_path / "run") == before
    assert not is_held(tmp_path / "run" / "lock")


def test_of_two_runs_that_start_together_one_trains(
    tmp_path: Path, scene_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one takes the lock after both saw that the folder is free."""
    folder = tmp_path / "run"
    folder.mkdir()
    with (
        hold_lock(folder / "lock", wait_s=0, owner="the other"),
        pytest.raises(InputError, match="another run is writing there"),
    ):
        finetune(make_config(tmp_path, scene_shards))
    assert [path.name for path in folder.iterdir()] == ["lock"]

    def be_late(path: Path, setting: str) -> None:
        (path / "config.yaml").write_text("name: run\n")

    AcceleratorState._reset_state(reset_partial_state=True)
    with monkeypatch.context() as patch:
        patch.setattr(jobs.finetune, "make_folder", be_late)
        with pytest.raises(InputError, match="run: another run wrote there while this one was starting"):
            finetune(make_config(tmp_path, scene_shards))
    (folder / "config.yaml").unlink()

    AcceleratorState._reset_state(reset_partial_state=True)
    finetune(make_config(tmp_path, scene_shards, "--loop.steps", "2"))  # a lock alone is nobody's run
    assert len(list_checkpoints(folder / "checkpoints")) == 1


def test_a_training_holds_its_lock_to_its_end(
    tmp_path: Path, scene_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    train = jobs.finetune.train
    monkeypatch.setattr(
        jobs.finetune, "train", lambda *a: (held.append(is_held(tmp_path / "run" / "lock")), train(*a))[1]
    )
    finetune(make_config(tmp_path, scene_shards, "--loop.steps", "1"))
    assert held == [True]
    assert not is_held(tmp_path / "run" / "lock")


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, scene_shards: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    finetune(make_config(tmp_path, scene_shards, "--loop.steps", "1"))
    assert "this file system has no locks; see that no second run is started there" in caplog.text
