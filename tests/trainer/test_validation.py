"""Validation inside a run: the numbers of `jobs.evaluate`, and no way to choose on a benchmark."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from eval.sets.benchmarks import find_benchmark
from jobs.evaluate import EvaluateOptions
from jobs.work.evaluate import evaluate
from outlier_paste.config import PasteConfig
from outlier_paste.validation_set import RECORD_NAME, hash_files, require_unseen
from shards.errors import InputError
from tests.conftest import draw_scene
from tests.support.evaluation import write_set
from tests.trainer.small_run import assert_equal, at_step, read_scalars, train, weights
from trainer.config import ValidationConfig
from trainer.validation import open_validation

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def write_pasted(root: Path, bank: str = "bank", held_out: float = 0.1, count: int = 3) -> Path:
    """Write what `jobs.paste_validation` writes: frames with a square each."""
    frames = []
    for i in range(count):
        image, _ = draw_scene(i)
        mask = np.zeros(image.shape[:2], np.uint8)
        image[10:22, 8:20], mask[10:22, 8:20] = (250, 20, 250), 1
        frames.append((image, mask))
    write_set(root / "PastedVal", frames)
    record = {"bank": bank, "held_out": held_out, "files": hash_files(root)}
    (root / RECORD_NAME).write_text(json.dumps(record))
    return root


def test_a_run_is_measured_as_jobs_evaluate_measures_it(
    tmp_path: Path, scene_shards: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers, but images are resampled for intervals in an evaluation alone."""
    caplog.set_level(logging.INFO)
    pasted = write_pasted(tmp_path / "val")
    extra = ("--validation.shards", scene_shards, "--validation.pasted", str(pasted))
    with monkeypatch.context() as without:
        without.delattr("eval.metrics.bootstrap.draw_weights")
        train(tmp_path, scene_shards, *extra, "--loop.eval_every", "2", "--tracking.probes", "0")
    found = read_scalars(tmp_path / "run")
    assert [step for step, _ in found["Validation/miou"]] == [2, 4]
    places = {"checkpoint": tmp_path / "run", "datasets": pasted, "out": tmp_path / "eval"}
    settings = {"scores": ("MSP", "RbA"), "device": "cpu", "components": False, "pictures": 0}
    for record in evaluate(EvaluateOptions(**places, **settings)):  # type: ignore[arg-type]
        assert record.ap_ci is not None
        for metric in ("ap", "fpr95"):
            expected = getattr(record, metric)
            assert found[f"Validation/{metric}/{record.score}"][-1][1] == pytest.approx(expected, abs=1e-7)
    log = (tmp_path / "run" / "log.txt").read_text()
    numbers = re.search(
        r"validation at step 4: miou [\d.]+ %  ap/MSP ([\d.]+) %  fpr95/MSP [\d.]+ %  gap/MSP -?[\d.]+  ", log
    )
    assert numbers
    assert float(numbers[1]) == pytest.approx(100 * found["Validation/ap/MSP"][-1][1], abs=0.006)
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


BENCHMARKS = {
    "RoadAnomaly21": "RoadAnomaly21",
    "fs_static": "fs_static",
    "lost_and_found": "LostAndFound",
    "dataset_ObstacleTrack": "dataset_ObstacleTrack",
    "BRAVO": "bravo",
    "LostAndFound/train-*.tar": "LostAndFound",
    "cityscapes": None,
    "val-{000000..000003}.tar": None,
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_are_known_by_their_names(tmp_path: Path, name: str) -> None:
    assert find_benchmark(tmp_path / "data" / name) == BENCHMARKS[name]


def test_nothing_is_chosen_on_a_benchmark(tmp_path: Path) -> None:
    (tmp_path / "sets" / "fs_static").mkdir(parents=True)
    message = "on which nothing may be chosen; validation takes Cityscapes val, or what"
    with pytest.raises(InputError, match=f"validation.pasted .*sets: fs_static is a benchmark, {message}"):
        open_validation(ValidationConfig(pasted=str(tmp_path / "sets")), PasteConfig())
    with pytest.raises(InputError, match="validation.shards data/BRAVO: bravo is a benchmark"):
        open_validation(ValidationConfig(shards=("data/BRAVO",)), PasteConfig())


def test_a_benchmark_under_another_name_is_refused_too(tmp_path: Path) -> None:
    pasted = write_pasted(tmp_path / "val")
    (pasted / RECORD_NAME).unlink()
    with pytest.raises(InputError, match="no paste_validation.json that names its files is in it; a "):
        require_unseen(pasted, PasteConfig(), "validation.pasted")
    shutil.rmtree(write_pasted(tmp_path / "other") / "PastedVal")
    with pytest.raises(InputError, match="validation.pasted .*other: no folder PastedVal in it"):
        require_unseen(tmp_path / "other", PasteConfig(), "validation.pasted")


@pytest.mark.parametrize("change", ["changed", "added", "removed"])
def test_a_pasted_set_is_bound_to_its_files(tmp_path: Path, change: str) -> None:
    pasted = write_pasted(tmp_path / "val")
    images = pasted / "PastedVal" / "images"
    if change == "removed":
        (images / "1.png").unlink()
    else:
        name = "1.png" if change == "changed" else "7.png"
        (images / name).write_bytes((images / "2.png").read_bytes())
    with pytest.raises(InputError, match=r"PastedVal/images/[17].png is not the file that paste_valid"):
        require_unseen(pasted, PasteConfig(), "validation.pasted")


def test_objects_that_training_pastes_measure_nothing(tmp_path: Path) -> None:
    pasted = write_pasted(tmp_path / "val", bank=str(tmp_path / "bank"), held_out=0.2)
    paste = PasteConfig(bank=str(tmp_path / "bank"), probability=0.5, held_out=0.1)
    with pytest.raises(InputError, match=r"the 0.2 of .*bank that were held out, but this run holds out 0.1"):
        require_unseen(pasted, paste, "validation.pasted")
    require_unseen(pasted, dataclasses.replace(paste, held_out=0.2), "validation.pasted")
    require_unseen(pasted, dataclasses.replace(paste, bank="elsewhere"), "validation.pasted")
    record = json.loads((pasted / RECORD_NAME).read_text())
    (pasted / RECORD_NAME).write_text(json.dumps(record | {"held_out": 0}))
    with pytest.raises(InputError, match="its objects are those of .*bank, which this run pastes in train"):
        require_unseen(pasted, dataclasses.replace(paste, held_out=0.2), "validation.pasted")


def test_a_score_that_the_model_cannot_answer_is_refused(tmp_path: Path, scene_shards: str) -> None:
    extra = ("--validation.pasted", str(write_pasted(tmp_path / "val")), "--validation.scores", "MinDistance")
    with pytest.raises(InputError, match="validation.scores: the model has no class distances, which Min"):
        train(tmp_path, scene_shards, *extra)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", [2, 4])
def test_a_validation_that_is_given_up_is_made_up_for(tmp_path: Path, scene_shards: str, step: int) -> None:
    """Asked to stop at the log of a validated step, before the first image; the last step among them."""
    extra = ["--validation.shards", scene_shards, "--validation.select", "miou", "--loop.eval_every", "2"]
    extra += ["--validation.limit", "2", "--tracking.probes", "0"]
    train(tmp_path / "whole", scene_shards, *extra)
    with at_step(step, lambda: os.kill(os.getpid(), signal.SIGUSR1)):
        state = train(tmp_path, scene_shards, *extra, "--loop.save_every", "100")
    log = tmp_path / "run" / "log.txt"
    assert (state.step, state.validation_due) == (step, True)
    assert f"asked to stop: saved at step {step}" in log.read_text()
    assert f"validation at step {step}" not in log.read_text()
    assert not (tmp_path / "run" / "finished.json").exists()
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith((".", "tmp"))]
    train(tmp_path, scene_shards, *extra, "--loop.save_every", "100", resume=True)
    assert_equal(weights(tmp_path), weights(tmp_path / "whole"))
    assert log.read_text().count(f"validation at step {step}") == 1
    for name in ("finished.json", "checkpoints/step-0000004/training.json"):
        ends = [json.loads((folder / "run" / name).read_text()) for folder in (tmp_path, tmp_path / "whole")]
        assert ends[0].get("state", ends[0]) == ends[1].get("state", ends[1])
