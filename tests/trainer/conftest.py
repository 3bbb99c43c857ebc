"""Every test here trains as in a process of its own and logs everything; deprecations are not its matter."""

import logging

import pytest

from tests.trainer.small_run import _fresh_accelerator  # noqa: F401


def pytest_itemcollected(item: pytest.Item) -> None:
    ignored = ("ignore::DeprecationWarning", "ignore::FutureWarning")
    item.add_marker(pytest.mark.filterwarnings(*ignored))


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
