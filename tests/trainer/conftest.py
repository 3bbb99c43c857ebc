"""Every test here trains as in a process of its own and logs everything; deprecations are not its matter."""

import logging
from pathlib import Path

import pytest

from tests.trainer.small_run import _fresh_accelerator, train  # noqa: F401


def pytest_itemcollected(item: pytest.Item) -> None:
    ignored = ("ignore::DeprecationWarning", "ignore::FutureWarning")
    item.add_marker(pytest.mark.filterwarnings(*ignored))


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, scene_shards: str) -> Path:
    """The folder of a run of four steps with nothing set, for reading; who changes it takes a copy."""
    folder = tmp_path_factory.mktemp("finished")
    train(folder, scene_shards)
    return folder
