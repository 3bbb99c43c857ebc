"""An evaluation that was interrupted or is repeated: what is kept, what is computed anew, what is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.report.record import parse_json
from eval.store import Worker
from jobs.evaluate import EvaluateOptions, main
from jobs.work.evaluate import evaluate
from shards.output import claimed
from tests.support.evaluation import options_for, write_val_shards
from tests.support.forked import join, start_program
from tests.support.refused import refused
from tests.support.tars import encode

QUICK = {"scores": ("MSP", "EAM"), "pictures": 1, "components": False}
BOTH = ["SMIYC RA-21", "Road Anomaly"]


@pytest.fixture(autouse=True)
def page(monkeypatch) -> None:
    """Replace the page, whose plots take five times as long as all the rest."""
    monkeypatch.setattr("eval.evaluate.render_page", lambda *_: "")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> EvaluateOptions:
    """A finished evaluation."""
    root = tmp_path_factory.mktemp("world")
    options = options_for(root, **QUICK, cityscapes=write_val_shards(root / "val"), cache=root / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.evaluate.render_page", lambda *_: "")
        evaluate(options)
    return options


@pytest.fixture
def done(world, tmp_path) -> EvaluateOptions:
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
def passes(caplog) -> Callable[[], list[str]]:
    """Return the names of the test sets that the network has seen since the last call."""
    caplog.set_level("INFO")

    def list_passes() -> list[str]:
        found = [re.fullmatch(r"(.*): \d+ images", message) for message in caplog.messages]
        caplog.clear()
        return [match[1] for match in found if match and match[1] in BOTH]

    return list_passes


def image_files(options: EvaluateOptions) -> dict[str, int]:
    """Return when the file of each image was written."""
    cells = options.out / "cells"
    return {path.relative_to(cells).as_posix(): path.stat().st_mtime_ns for path in cells.glob("*/*/*.npz")}


def test_an_evaluation_that_failed_goes_on_to_equal_files(done, passes):
    options = dataclasses.replace(done, out=done.out.with_name("again"), cache=done.out.with_name("saved"))
    photograph = options.datasets / "RoadAnomaly/images/1.png"
    content = spoil(photograph, "cut")
    passes()
    with refused("cannot be decoded as a picture"):
        evaluate(options)
    assert passes() == BOTH
    assert [path.name for path in options.out.iterdir()] == ["cells"]
    assert list(image_files(options)) == ["RoadAnomaly/native/0.npz"]
    photograph.write_bytes(content)
    evaluate(options)
    assert passes() == ["Road Anomaly"]
    assert files(options.out) == files(done.out)
    assert files(options.cache).keys() == files(done.cache).keys()


def test_a_repeated_evaluation_needs_no_network(done, caplog):
    before = files(done.out)
    caplog.clear()
    with caplog.at_level("INFO"):
        records = evaluate(done)
    assert "step-0000010 on cpu" not in caplog.text
    assert files(done.out) == before
    renamed = evaluate(dataclasses.replace(done, name="other"))
    assert renamed == [dataclasses.replace(record, model="other") for record in records]


def spoil(path: Path, fault: str) -> bytes:
    """Delete, cut or change a file, and return what it held."""
    content = path.read_bytes()
    if fault == "deleted":
        path.unlink()
    else:
        changed = content[:900] + bytes([content[900] ^ 1]) + content[901:]
        path.write_bytes(content[:-40] if fault == "cut" else changed)
    return content


def change_mask(options: EvaluateOptions) -> EvaluateOptions:
    mask = np.zeros((40, 64), np.uint8)
    mask[:9, :9] = 2
    (options.datasets / "RoadAnomaly/labels_masks/1.png").write_bytes(encode(mask))
    return options


def change_weights(options: EvaluateOptions) -> EvaluateOptions:
    path = options.checkpoint / "checkpoints/step-0000010/model.safetensors"
    save_file({name: value * 1.01 for name, value in load_file(path).items()}, path)
    return options


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
    with refused(rf"--out .*out: holds results of .* with other {part}; --earlier"):
        evaluate(options)
    assert passes() == []
    evaluate(dataclasses.replace(options, earlier="replace"))
    assert f"RoadAnomaly.native: kept with other {part}; computed anew" in caplog.text
    assert passes() == again
    evaluate(dataclasses.replace(options, out=options.out.with_name("fresh")))
    assert files(options.out) == files(options.out.with_name("fresh"))


def test_a_protocol_more_is_added_and_one_less_is_a_loss(done):
    done = dataclasses.replace(done, cache=None)
    assert len(evaluate(dataclasses.replace(done, protocol=("native", "rba")))) == 2 * 2 * 2
    with refused(r"holds results of RoadAnomaly.rba, which is not asked for now"):
        evaluate(done)
    evaluate(dataclasses.replace(done, earlier="replace"))
    kept = ["RoadAnomaly.native.npz", "RoadAnomaly21.native.npz", "cityscapes.npz"]
    assert sorted(path.name for path in (done.out / "cells").glob("*.npz")) == kept


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_cell_is_computed_anew_and_said(done, passes, caplog, damage):
    before = files(done.out)
    spoil(done.out / "cells/RoadAnomaly.native.npz", damage)
    passes()
    evaluate(done)
    assert "RoadAnomaly.native.npz: is damaged" in caplog.text
    assert passes() == ["Road Anomaly"]
    assert files(done.out) == before


def test_earlier_results_can_be_ignored(done, passes):
    before = files(done.out)
    passes()
    evaluate(dataclasses.replace(done, earlier="ignore"))
    assert passes() == BOTH
    assert files(done.out) == before


def test_results_that_are_being_replaced_are_gone_until_the_new_ones_are_there(done):
    spoil(done.datasets / "RoadAnomaly/images/1.png", "cut")
    with refused("cannot be decoded as a picture"):
        evaluate(dataclasses.replace(done, cache=None, scores=("RbA",), earlier="replace"))
    assert not (done.out / "results.json").exists()


def test_what_an_older_version_left_unfinished_is_computed_anew(done, passes):
    options = dataclasses.replace(done, out=done.out.with_name("old"), cache=None)
    (options.out / "cells").mkdir(parents=True)
    (options.out / ".scratch").mkdir()
    head = json.dumps({"format": 1, "key": {"code": "old"}, "content": {"cells": []}}).encode()
    np.savez(options.out / "cells/RoadAnomaly.native.npz", head=np.frombuffer(head, np.uint8))
    passes()
    evaluate(options)
    assert passes() == BOTH
    assert files(options.out) == files(done.out)


def test_saved_predictions_are_continued_and_never_mixed(done, passes):
    (done.cache / "RoadAnomaly" / "index.json").unlink()
    passes()
    evaluate(done)
    assert passes() == ["Road Anomaly"]
    assert (done.cache / "RoadAnomaly" / "index.json").is_file()
    change_weights(done)
    with refused("--cache .*cache: holds predictions of .* with other weights, code"):
        evaluate(dataclasses.replace(done, out=done.out.with_name("other")))


def test_tasks_write_the_files_of_one_process_whichever_is_last(done):
    whole = dataclasses.replace(done, out=done.out.with_name("one"), cache=None, protocol=("native", "smiyc"))
    evaluate(whole)
    options = dataclasses.replace(whole, out=done.out.with_name("tasks"))
    assert evaluate(dataclasses.replace(options, task="2/3")) == []
    assert evaluate(dataclasses.replace(options, task="0/3")) == []
    names = ["RoadAnomaly/native/0.npz", "RoadAnomaly21/native/0.npz", "cityscapes/native/0.npz"]
    times = image_files(options)
    assert sorted(times) == names
    assert evaluate(dataclasses.replace(options, task="0/3")) == []  # has nothing to do
    assert image_files(options) == times
    assert len(evaluate(dataclasses.replace(options, task="1/3"))) == 2 * 2 * 2
    assert files(options.out) == files(whole.out)
    assert [path.name for path in options.out.glob(".*")] == []
    assert image_files(options) == {}


@pytest.mark.parametrize("fault", ["deleted", "cut", "changed"])
def test_only_the_image_whose_file_is_lost_is_computed_again(done, caplog, fault):
    options = dataclasses.replace(done, out=done.out.with_name("tasks"), cache=None, task="0/2")
    evaluate(options)
    before, path = image_files(options), options.out / "cells/RoadAnomaly/native/0.npz"
    content = spoil(path, fault)
    evaluate(options)
    assert ("RoadAnomaly/native/0.npz: is damaged" in caplog.text) == (fault != "deleted")
    assert path.read_bytes() == content
    after = image_files(options)
    assert {name for name in after if after[name] != before.get(name)} == {"RoadAnomaly/native/0.npz"}


def test_an_image_of_other_data_is_not_measured(done):
    options = dataclasses.replace(done, out=done.out.with_name("tasks"), cache=None, cityscapes=None)
    assert evaluate(dataclasses.replace(options, task="1/2")) == []
    change_mask(options)  # of image 1
    assert evaluate(dataclasses.replace(options, task="0/2")) == []
    assert evaluate(dataclasses.replace(options, task="1/2")) != []


TASK_FAULTS = [
    ({"task": "2/2"}, 1, "--task: got '2/2'; I/N with I in 0..N-1 is needed"),
    ({"task": "0/2", "earlier": "ignore"}, 1, "--task: --earlier ignore would drop what other tasks did"),
    ({"task": "0/2"}, 2, "--task 0/2: tasks are single processes; under torchrun leave it"),
]


@pytest.mark.parametrize(("changes", "ranks", "message"), TASK_FAULTS)
def test_a_wrong_task_is_named(world, changes, ranks, message):
    with refused(message):
        evaluate(dataclasses.replace(world, **changes), Worker(0, ranks))


def test_two_evaluations_do_not_share_a_folder(done):
    with (
        claimed(done.out),
        refused("out: another program is writing there: .*lock is held by process"),
    ):
        evaluate(done)
    assert (done.out / "results.json").is_file()


def test_a_task_is_not_started_twice_and_a_cache_has_one_writer(done):
    task = dataclasses.replace(done, out=done.out.with_name("tasks"), cache=None, task="0/2")
    with (
        claimed(task.out, part="0-of-2"),
        refused("--out .*tasks, part 0-of-2: another program is writing there: "),
    ):
        evaluate(task)
    assert not task.out.exists()
    other = dataclasses.replace(done, out=done.out.with_name("other"))
    with (
        claimed(other.cache),
        refused("--cache .*: another program is writing there: "),
    ):
        evaluate(other)


def test_what_a_killed_evaluation_left_half_written_goes(done):
    left = [done.out / ".results.json.partial-x", done.out / "cells/.RoadAnomaly.native.npz.partial-x"]
    for path in left:
        path.write_text("half")
    evaluate(done)
    assert [path for path in left if path.exists()] == []


@pytest.mark.slow
def test_an_evaluation_that_is_killed_goes_on_to_equal_results(tmp_path, request):
    request.addfinalizer(functools.partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(1)  # as the program has
    options = options_for(tmp_path, **QUICK, protocol=("native", "course-512"), limit=1)
    evaluate(dataclasses.replace(options, out=tmp_path / "whole"))
    words = ["--checkpoint", options.checkpoint, "--datasets", options.datasets, "--out", options.out]
    words += ["--scores", *options.scores, "--pictures", 1, "--components", "False", "--limit", 1]
    words += ["--device", "cpu", "--protocol", *options.protocol]
    process = start_program(main, [*map(str, words)], tmp_path / "log", tmp_path / "log")
    deadline = time.monotonic() + 120
    while not image_files(options) and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert join([process], 60) == [-signal.SIGKILL], (tmp_path / "log").read_text()
    assert image_files(options)
    assert not (options.out / "results.json").exists()
    evaluate(options)
    assert files(options.out) == files(tmp_path / "whole")
    assert len(parse_json((options.out / "results.json").read_text(), "")) == 2 * 2 * 2
