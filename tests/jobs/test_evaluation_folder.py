"""An evaluation that was interrupted or is repeated: what is kept, what is computed anew, what is refused."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.ranks import ALONE, Ranks
from eval.report.record import parse_json
from jobs import evaluate as program
from jobs import evaluation_parts, result_files
from jobs.evaluate import evaluate
from jobs.evaluate_options import EvaluateOptions
from jobs.evaluation_folder import evaluation_folder
from shards.errors import InputError
from tests.jobs.test_evaluate import encode, options_for, write_val_shards

ROOT = Path(__file__).resolve().parents[2]


QUICK = {"scores": ("MSP", "EAM"), "pictures": 1, "components": False}


@pytest.fixture(autouse=True)
def page(monkeypatch) -> None:
    """Leave the page out, whose plots take five times as long as all the rest."""
    monkeypatch.setattr(result_files, "render_page", lambda *_: "")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> EvaluateOptions:
    """A finished evaluation."""
    root = tmp_path_factory.mktemp("world")
    options = options_for(root, **QUICK, cityscapes=write_val_shards(root / "val"), cache=root / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(result_files, "render_page", lambda *_: "")
        evaluate(options)
    return options


@pytest.fixture
def done(world: EvaluateOptions, tmp_path) -> EvaluateOptions:
    """A copy of the finished evaluation that a test may change."""
    root = shutil.copytree(world.out.parent, tmp_path / "world")
    places = ("checkpoint", "datasets", "out", "cityscapes", "cache")
    moved = {name: root / getattr(world, name).relative_to(world.out.parent) for name in places}
    options = dataclasses.replace(world, **moved)
    evaluate(options)  # nothing but paths in records
    return options


def files(folder: Path) -> dict[str, bytes]:
    """What an evaluation wrote, without what it keeps."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "cells" not in path.parts
    }


@pytest.fixture
def passes(monkeypatch) -> list[str]:
    """Names of the test sets that the network sees."""
    seen: list[str] = []
    run = evaluation_parts.evaluate_test_set

    def count(segment, test_set, *arguments, **options):
        seen.append(test_set.name)
        return run(segment, test_set, *arguments, **options)

    monkeypatch.setattr(evaluation_parts, "evaluate_test_set", count)
    return seen


def test_an_interrupted_evaluation_goes_on_to_equal_files(done, passes, monkeypatch):
    options = dataclasses.replace(done, out=done.out.with_name("again"), cache=done.out.with_name("saved"))
    keep = evaluation_parts.keep_set

    def keep_first(work, test_set, *rest):
        if test_set.convention.folder != "RoadAnomaly21":
            raise KeyboardInterrupt
        keep(work, test_set, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation_parts, "keep_set", keep_first)
        with pytest.raises(KeyboardInterrupt):
            evaluate(options)
    assert [path.name for path in options.out.iterdir()] == ["cells"]
    assert passes == ["SMIYC RA-21", "Road Anomaly"]
    passes.clear()
    evaluate(options)
    assert passes == ["Road Anomaly"]
    assert files(options.out) == files(done.out)


def test_a_repeated_evaluation_needs_no_network(done, monkeypatch):
    before = files(done.out)
    monkeypatch.delattr(program, "wrap_checkpoint")
    records = evaluate(done)
    assert files(done.out) == before
    renamed = evaluate(dataclasses.replace(done, name="other"))
    assert renamed == [dataclasses.replace(record, model="other") for record in records]


def change_mask(options: EvaluateOptions) -> EvaluateOptions:
    mask = np.zeros((40, 64), np.uint8)
    mask[:9, :9] = 2
    (options.datasets / "RoadAnomaly/labels_masks/1.png").write_bytes(encode(mask))
    return options


def change_weights(options: EvaluateOptions) -> EvaluateOptions:
    path = options.checkpoint / "checkpoints/step-0000010/model.safetensors"
    weights = load_file(path)
    save_file({name: value * 1.01 for name, value in weights.items()}, path)
    return options


BOTH = ["SMIYC RA-21", "Road Anomaly"]


@pytest.mark.parametrize(
    ("change", "part", "again"),
    [
        (change_mask, "data", ["Road Anomaly"]),
        (change_weights, "checkpoint", BOTH),
        (lambda options: dataclasses.replace(options, scores=("MSP",)), "scores", BOTH),
    ],
    ids=["data", "weights", "scores"],
)
def test_what_changed_is_computed_anew_and_finished_results_are_lost_only_if_asked(
    done, passes, caplog, change, part, again
):
    options = dataclasses.replace(change(done), cache=None)
    with pytest.raises(InputError, match=rf"--out .*out: holds results of .* with other {part}; --earlier"):
        evaluate(options)
    assert passes == []
    with caplog.at_level("INFO"):
        evaluate(dataclasses.replace(options, earlier="replace"))
    assert passes == again
    assert f"RoadAnomaly.native: kept with other {part}; computed anew" in caplog.text
    evaluate(dataclasses.replace(options, out=options.out.with_name("fresh")))
    assert files(options.out) == files(options.out.with_name("fresh"))


def test_a_protocol_more_is_added_and_one_less_is_a_loss(done, passes):
    done = dataclasses.replace(done, cache=None)
    assert len(evaluate(dataclasses.replace(done, protocol=("native", "rba")))) == 2 * 2 * 2
    with pytest.raises(InputError, match=r"holds results of RoadAnomaly.rba, which is not asked for now"):
        evaluate(done)
    evaluate(dataclasses.replace(done, earlier="replace"))
    assert sorted(path.name for path in (done.out / "cells").glob("*.npz")) == [
        "RoadAnomaly.native.npz",
        "RoadAnomaly21.native.npz",
        "cityscapes.npz",
    ]


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_cell_is_computed_anew_and_said(done, passes, caplog, damage):
    before = files(done.out)
    path = done.out / "cells/RoadAnomaly.native.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    evaluate(done)
    assert passes == ["Road Anomaly"]
    assert "RoadAnomaly.native.npz: is damaged" in caplog.text
    assert files(done.out) == before


def test_earlier_results_can_be_ignored(done, passes):
    evaluate(dataclasses.replace(done, earlier="ignore"))
    assert passes == BOTH


def test_results_that_are_being_replaced_are_gone_until_the_new_ones_are_there(done, monkeypatch):
    monkeypatch.setattr(evaluation_parts, "keep_set", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(dataclasses.replace(done, cache=None, scores=("RbA",), earlier="replace"))
    assert not (done.out / "results.json").exists()


def test_saved_predictions_are_continued_and_never_mixed(done, passes):
    (done.cache / "RoadAnomaly" / "index.json").unlink()
    evaluate(done)
    assert passes == ["Road Anomaly"]
    assert (done.cache / "RoadAnomaly" / "index.json").is_file()
    change_weights(done)
    with pytest.raises(InputError, match="--cache .*cache: holds predictions of .* with other weights, code"):
        evaluate(dataclasses.replace(done, out=done.out.with_name("other")))


def test_tasks_write_the_files_of_one_process_whichever_is_last(done, passes):
    whole = dataclasses.replace(done, out=done.out.with_name("one"), cache=None, protocol=("native", "smiyc"))
    evaluate(whole)
    options = dataclasses.replace(whole, out=done.out.with_name("tasks"))
    assert evaluate(dataclasses.replace(options, task="2/3")) == []
    assert evaluate(dataclasses.replace(options, task="0/3")) == []
    shares = options.out / ".shares"
    names = ["RoadAnomaly.native", "RoadAnomaly21.native", "cityscapes"]
    assert sorted(path.name for path in shares.iterdir()) == names
    times = {path: path.stat().st_mtime_ns for path in shares.rglob("key.json")}
    assert evaluate(dataclasses.replace(options, task="2/3")) == []  # has nothing to do
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert len(evaluate(dataclasses.replace(options, task="1/3"))) == 2 * 2 * 2
    assert files(options.out) == files(whole.out)
    assert [path.name for path in options.out.glob(".*")] == []


def test_a_share_of_other_data_is_not_merged(done):
    options = dataclasses.replace(done, out=done.out.with_name("tasks"), cache=None, cityscapes=None)
    assert evaluate(dataclasses.replace(options, task="0/2")) == []
    change_mask(options)
    assert evaluate(dataclasses.replace(options, task="1/2")) == []
    assert evaluate(dataclasses.replace(options, task="0/2")) != []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "2/2"}, "--task: got '2/2'; I/N with I in 0..N-1 is needed"),
        ({"task": "0/2", "earlier": "ignore"}, "--task: --earlier ignore would drop what other tasks did"),
    ],
)
def test_a_wrong_task_is_named(done, changes, message):
    with pytest.raises(InputError, match=message):
        evaluate(dataclasses.replace(done, **changes))
    with pytest.raises(InputError, match="--task 0/2: tasks are single processes; under torchrun leave it"):
        evaluate(dataclasses.replace(done, task="0/2"), Ranks(0, 2))


def test_two_evaluations_do_not_share_a_folder(tmp_path):
    with evaluation_folder(tmp_path / "out", "continue", ALONE) as folder:
        (folder.path / "cells" / "x.npz").write_bytes(b"")
        with (
            pytest.raises(InputError, match="--out .*out: another evaluation is writing to it"),
            evaluation_folder(tmp_path / "out", "continue", ALONE),
        ):
            pass


@pytest.mark.slow
def test_an_evaluation_that_is_killed_goes_on_to_equal_results(tmp_path):
    options = options_for(tmp_path, **QUICK, protocol=("native", "course-512"), limit=1)
    evaluate(dataclasses.replace(options, out=tmp_path / "whole"))
    command = [
        sys.executable, "-m", "jobs.evaluate", "--checkpoint", str(options.checkpoint), "--datasets",
        str(options.datasets), "--out", str(options.out), "--scores", *options.scores, "--pictures", "1",
        "--components", "False", "--limit", "1", "--device", "cpu", "--protocol", *options.protocol,
    ]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stderr=log, env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        )
        deadline = time.monotonic() + 120
        while not list(options.out.glob("cells/*.npz")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert (options.out / ".scratch").exists()
    assert not (options.out / "results.json").exists()
    evaluate(options)
    assert files(options.out) == files(tmp_path / "whole")
    assert len(parse_json((options.out / "results.json").read_text(), "")) == 2 * 2 * 2
