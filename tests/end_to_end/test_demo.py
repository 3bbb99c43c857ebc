"""The whole chain through the real programs, in miniature."""

from __future__ import annotations

import importlib
import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pytest

from jobs import demo
from jobs.demo import METHODS, SCORES
from jobs.work import steps
from jobs.work.study import BASELINE
from tests.support.forked import join, start_program

REALLY_STARTED = ("jobs.synthesize", "jobs.submit")


class ForkedStep:
    """A step of the chain as `subprocess.Popen` would start it, but without loading torch anew."""

    def __init__(self, command: list[str], said: Path) -> None:
        assert command[:2] == [sys.executable, "-m"]
        main = importlib.import_module(command[2]).main
        self._process = start_program(main, command[3:], said, said)

    def wait(self) -> int:
        return join([self._process], 300)[0]

    def terminate(self) -> None:
        self._process.terminate()


@pytest.mark.slow
def test_the_demo_goes_from_nothing_to_tables_and_pictures(
    tmp_path,
    monkeypatch,
    capsys,
    caplog,
):
    """The world and the sweep's cells are of processes that were really started, as all are for a user."""
    caplog.set_level(logging.INFO)
    out, said = tmp_path / "demo", tmp_path / "said.txt"

    def start(command: list[str], **how: Any) -> ForkedStep | subprocess.Popen[bytes]:
        is_started = command[2] in REALLY_STARTED
        return subprocess.Popen(command, **how) if is_started else ForkedStep(command, said)

    monkeypatch.setattr(steps, "subprocess", SimpleNamespace(Popen=start))
    try:
        demo.main(["--out", str(out), "--smoke", "True"])
    except SystemExit as stop:
        pytest.fail(f"exit code {stop.code}: {said.read_text()[-3000:]}")
    fine_tuned = [out / "sweeps" / "methods" / "runs" / f"{name},seed=0" for name in METHODS]
    for name, run in zip((BASELINE, *METHODS), (out / "runs" / BASELINE, *fine_tuned), strict=True):
        results = run / "eval" / "results.json"
        records = json.loads(results.read_text())
        assert {record["model"].partition(",")[0] for record in records} == {name}
        assert len(records) == 5 * len(SCORES)
        assert all(0 <= record["ap"] <= 1 and 0 <= record["fpr95"] <= 1 for record in records)
        assert all(0 <= record["miou"] <= 1 for record in records)
        assert list(results.parents[1].glob("events*"))
        assert results.with_name("report.html").exists()
    printed = capsys.readouterr().out
    assert (out / "results.md").read_text() in printed
    listed = [Path(line.split()[0]) for line in printed.partition("Look at\n")[2].splitlines()[:-1]]
    assert len(listed) == 5
    assert all(path.is_file() for path in listed)
    assert "python -m jobs.finetune" in caplog.text
    picture = cv2.imread(str(out / "picture.png"))
    assert picture is not None
    assert picture.std() > 10
