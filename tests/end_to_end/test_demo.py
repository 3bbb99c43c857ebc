"""The whole chain through the real programs, in miniature."""

from __future__ import annotations

import importlib
import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest

from jobs import demo
from jobs.demo import IN_DEMO, SCORES
from tests.support.forked import join, start_program


class ForkedStep:
    """A step of the chain as `subprocess.Popen` would start it, but without loading torch fourteen times."""

    def __init__(self, command: list[str], said: Path) -> None:
        assert command[:2] == [sys.executable, "-m"]
        main = importlib.import_module(command[2]).main
        self._process = start_program(main, command[3:], said, said)

    def wait(self) -> int:
        return join([self._process], 300)[0]


@pytest.mark.slow
def test_the_demo_goes_from_nothing_to_tables_and_pictures(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The world is drawn by a process that was really started, as all steps are for a user."""
    caplog.set_level(logging.INFO)
    out, said = tmp_path / "demo", tmp_path / "said.txt"

    def start(command: list[str]) -> ForkedStep | subprocess.Popen[bytes]:
        return subprocess.Popen(command) if "jobs.synthesize" in command else ForkedStep(command, said)

    monkeypatch.setattr(demo, "subprocess", SimpleNamespace(Popen=start))
    try:
        demo.main(["--out", str(out), "--smoke", "True"])
    except SystemExit as stop:
        pytest.fail(f"exit code {stop.code}: {said.read_text()[-3000:]}")
    for name in ("baseline", *IN_DEMO):
        run = out / "runs" / name
        records = json.loads((run / "eval" / "results.json").read_text())
        assert {record["model"] for record in records} == {name}
        assert len(records) == 5 * (len(SCORES) + (name == "isomax_plus"))  # MinDistance needs prototypes
        assert all(0 <= record["ap"] <= 1 and 0 <= record["fpr95"] <= 1 for record in records)
        assert all(0 <= record["miou"] <= 1 for record in records)
        assert list(run.glob("events*"))
    assert (out / "results.md").read_text() in capsys.readouterr().out
    assert "python -m jobs.finetune" in caplog.text
    picture = cv2.imread(str(out / "picture.png"))
    assert picture is not None
    assert picture.std() > 10
