"""A second writer in a run's folder, a full disk, a read-only one: said in a line, and nothing is lost."""

from __future__ import annotations

import errno
import fcntl
import resource
from pathlib import Path

import pytest
from tensorboard.compat.tensorflow_stub.io import gfile

import trainer.run
import trainer.run_folder
from jobs.work.finetune import finetune
from models.weights.run_files import list_checkpoints
from shards.errors import InputError, StorageError
from shards.files import hold_lock, is_held
from tests.support.files import contents
from tests.trainer.small_run import assert_equal, at_step, copy_killed, make_config, train, weights


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.run_folder, "WAIT_S", 0.0)


def test_a_run_that_somebody_writes_is_not_resumed(tmp_path: Path, scene_shards: str, finished: Path) -> None:
    copy_killed(finished, tmp_path, 4)
    with hold_lock(tmp_path / "run" / "lock", wait_s=0.0, owner="process 7 on node3"):
        before = contents(tmp_path / "run")
        message = "run: another run is writing there: .*lock is held by process 7 on"
        with pytest.raises(InputError, match=message):
            train(tmp_path, scene_shards, resume=True)
        assert contents(tmp_path / "run") == before
    assert not is_held(tmp_path / "run" / "lock")


def test_of_two_runs_that_start_together_one_trains(
    tmp_path: Path, scene_shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one takes the lock after both saw that the folder is free."""
    folder = tmp_path / "run"
    folder.mkdir()
    with (
        hold_lock(folder / "lock", wait_s=0.0, owner="the other"),
        pytest.raises(InputError, match="another run is writing there"),
    ):
        train(tmp_path, scene_shards)
    assert [path.name for path in folder.iterdir()] == ["lock"]

    def be_late(path: Path, setting: str) -> None:
        (path / "config.yaml").write_text("name: run\n")

    with monkeypatch.context() as patch:
        patch.setattr(trainer.run, "make_folder", be_late)
        with pytest.raises(InputError, match="run: another run wrote there while this one was starting"):
            train(tmp_path, scene_shards)
    (folder / "config.yaml").rename(folder / ".config.yaml.half")  # as if killed while it was written

    held: list[bool] = []
    with at_step(2, lambda: held.append(is_held(folder / "lock"))):
        train(tmp_path, scene_shards, "--loop.steps", "2")  # this is nobody's run
    assert len(list_checkpoints(folder / "checkpoints")) == 1
    assert held == [True]  # to its end


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, scene_shards: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    train(tmp_path, scene_shards, "--loop.steps", "1")
    assert "this file system has no locks; see that no second run is started there" in caplog.text


def test_a_full_disk_ends_the_run_in_one_line_and_leaves_what_is_there(
    tmp_path: Path, scene_shards: str, finished: Path
) -> None:
    """The kernel refuses files above 200 kB, which the first large one of a checkpoint is; root's too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = tmp_path / "run" / "checkpoints"
    config = make_config(tmp_path, scene_shards)
    fill = at_step(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1])))
    try:
        with fill, pytest.raises(StorageError) as stop:
            finetune(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{checkpoints}/step-0000004: cannot be saved; older checkpoints stay, " in str(stop.value)
    assert "\n" not in str(stop.value)
    assert stop.value.exit_code == 74
    assert [path.name for path in checkpoints.iterdir()] == ["step-0000002"]  # and no half of another
    finetune(config, resume=True)
    assert_equal(weights(tmp_path), weights(finished))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's writer
def test_a_log_and_tensorboard_on_a_full_disk_are_warned_of_and_do_not_end_the_run(
    tmp_path: Path, scene_shards: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def make_on_full_disk(folder: Path, _setting: str) -> None:
        folder.mkdir()
        (folder / "log.txt").symlink_to("/dev/full")

    monkeypatch.setattr(trainer.run, "make_folder", make_on_full_disk)
    with at_step(1, lambda: monkeypatch.setattr(gfile.GFile, "write", refuse)):
        train(tmp_path, scene_shards, "--loop.steps", "3")
    assert [message for message in caplog.messages if "cannot be written" in message] == [
        f"{tmp_path}/run/log.txt: cannot be written; the run goes on without: No space left on device",
        f"{tmp_path}/run: cannot be written; the run goes on without TensorBoard: No space left on device",
    ]
    assert len(weights(tmp_path, 3)) > 0


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, scene_shards: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_killed(finished, tmp_path, 4)
    (tmp_path / "run" / "lock").unlink()
    (tmp_path / "run" / "lock").mkdir()
    before = contents(tmp_path / "run")

    def refuse(path: Path, **_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    for reason in ("Is a directory", "Read-only file system"):
        with pytest.raises(StorageError, match=f"run: cannot be written: {reason} .*lock") as stop:
            train(tmp_path, scene_shards, resume=True)
        assert stop.value.exit_code == 74
        assert contents(tmp_path / "run") == before
        monkeypatch.setattr(trainer.run_folder, "hold_lock", refuse)
