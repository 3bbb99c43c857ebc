"""Inputs that are not there or in the way: one line, exit code 2, and what was there stays as it was."""

from __future__ import annotations

import pytest

from tests.support.files import contents

RUN = "--data.crop 32 32 --data.workers 0 --data.batch_size 1 --model.size tiny --model.image_size 32 32 "
RUN += "--loop.steps 1"
FAULTS = [
    ("prepare", "cityscapes --root R/gone --out R/o", "gone"),
    ("prepare", "coco --images R/gone --annotations R/gone --out R/o", "gone"),
    ("evaluate", "--checkpoint R/gone --datasets R/gone --out R/o", "gone"),
    ("finetune", "R/gone.yaml", "gone.yaml: no such configuration file"),
    ("finetune", "--out R --model.size tiny", "data.shards: the list is empty"),
    ("finetune", f"--out R --data.shards R/gone {RUN}", "gone"),
    ("finetune", f"--out R/out --data.shards SCENES {RUN}", "already holds files"),
    ("finetune", f"--out R/out/eomt/notes.txt --data.shards SCENES {RUN}", "notes.txt"),
]


@pytest.mark.parametrize(("job", "arguments", "text"), FAULTS)
def test_a_mistake_is_one_line(end, tmp_path, scene_shards, job, arguments, text):
    (tmp_path / "out/eomt").mkdir(parents=True)
    (tmp_path / "out/eomt/notes.txt").write_text("mine")
    before = contents(tmp_path)
    words = arguments.replace("R/", f"{tmp_path}/").replace("SCENES", scene_shards).split()
    code, lines = end(job, *(tmp_path if word == "R" else word for word in words))
    assert (code, len(lines)) == (2, 1), lines
    assert text in lines[0]
    assert contents(tmp_path) == before
