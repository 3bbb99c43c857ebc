"""Every run of these tests looks like its own process."""

from tests.trainer.small_run import _fresh_accelerator  # noqa: F401
