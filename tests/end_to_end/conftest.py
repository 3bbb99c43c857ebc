"""Programs as a user runs them, in the process of the tests."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable

import pytest

from shards.program import run_program


@pytest.fixture(name="end")
def _end(monkeypatch, capsys) -> Callable[..., tuple[int, list[str]]]:
    """Run a program to its end; return its exit code and what it said on standard error."""

    def run(job: str, *arguments: object) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", [job, *map(str, arguments)])
        on_sigterm = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as stop:
            run_program(importlib.import_module(f"jobs.{job}").main)
        signal.signal(signal.SIGTERM, on_sigterm)
        assert isinstance(stop.value.code, int)
        return stop.value.code, capsys.readouterr().err.strip().splitlines()

    return run
