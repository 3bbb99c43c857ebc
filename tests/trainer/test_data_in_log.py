"""Time lost to data and samples that could not be read are told in log and TensorBoard."""

from __future__ import annotations

import logging
import shutil
import tarfile
from pathlib import Path

import pytest

from shards.errors import InputError
from tests.trainer.small_run import read_events, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_log_and_tensorboard_show_speed_waiting_and_decode_errors(
    tmp_path: Path, scene_shards: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One of eight scenes is damaged; four steps of two scenes are one epoch and meet it once."""
    caplog.set_level(logging.INFO)
    shards = tmp_path / "shards"
    shutil.copytree(Path(scene_shards).parent, shards)
    damaged = shards / "scenes-000003.tar"
    with tarfile.open(damaged) as tar:
        place = tar.getmember("scene3.label.png").offset_data
    content = bytearray(damaged.read_bytes())
    content[place : place + 20] = bytes(20)
    damaged.write_bytes(content)
    train(tmp_path, f"{shards}/*.tar", "--data.max_errors", "1")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("unreadable, 1 of 1 allowed: sample scene3: label.png") == 1
    last = next(line for line in log.splitlines() if "step 4/4" in line)
    assert "data/errors 1" in last
    assert "speed/images_per_s" in last
    events = read_events(tmp_path / "run")
    errors = [point.value for point in events.Scalars("data/errors")]
    assert errors == sorted(errors)
    assert errors[-1] == 1
    assert all(0 <= point.value <= 1 for point in events.Scalars("speed/data_wait_share"))
    assert all(point.value > 0 for point in events.Scalars("speed/images_per_s"))


def test_a_run_is_not_resumed_on_other_samples(tmp_path: Path, scene_shards: str) -> None:
    """No manifest speaks of these shards; one that is missing would shift the whole sequence."""
    shards = tmp_path / "shards"
    shutil.copytree(Path(scene_shards).parent, shards)
    train(tmp_path, f"{shards}/*.tar", "--loop.save_every", "2")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-0000004")
    hidden = shards / "scenes-000003.tar"
    hidden.rename(tmp_path / "hidden.tar")
    with pytest.raises(
        InputError, match="--resume: data.shards hold 7 samples, but not those that the run was"
    ):
        train(tmp_path, f"{shards}/*.tar", "--loop.save_every", "2", resume=True)
    (tmp_path / "hidden.tar").rename(hidden)
    assert train(tmp_path, f"{shards}/*.tar", "--loop.save_every", "2", resume=True).step == 4
