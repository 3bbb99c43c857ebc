"""The card of an export: what the hub reads off it, and that every edit is found."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from eval.report.record import Record, render_json
from jobs.doctor import main as doctor
from jobs.export import main as export
from models.weights.checkpoint import load_model
from shards.errors import InputError
from tests.models.tiny import make_model, save

ORIGIN = "dinov2_vitb14_reg4_pretrain.pth, sha256 00ff, licence: as its publisher says (DINOv2: Apache-2.0)"
CONFIG = """
data: {shards: [/home/me/data/cityscapes]}
paste: {bank: /home/me/data/coco-objects}
loss: {classification: cross_entropy, outlier: [rba]}
loop: {steps: 40}
"""


def make_record(checkpoint: Path, **changes: object) -> Record:
    fields = {
        "model": "mine", "checkpoint": str(checkpoint), "score": "RbA", "temperature": 1.0,
        "temperature_from": None, "dataset": "FS Lost & Found", "protocol": "fishyscapes", "num_images": 100,
        "num_pixels": 12345, "ap": 0.123456789, "ap_ci": (0.1, 0.2), "fpr95": 0.5, "fpr95_ci": None,
        "auroc": 0.75, "miou": None, **changes,
    }  # fmt: skip
    return Record(**fields)  # type: ignore[arg-type]


@pytest.fixture(scope="module", name="run")
def _run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with results of its checkpoint, and of another."""
    run = tmp_path_factory.mktemp("runs") / "mine"
    checkpoint = save(make_model(origin=ORIGIN), run / "checkpoints" / "step-0000040")
    (run / "config.yaml").write_text(CONFIG)
    (run / "eval").mkdir()
    other = make_record(checkpoint.with_name("step-0000020"), ap=0.9)
    (run / "eval" / "results.json").write_text(render_json([make_record(checkpoint), other]))
    return run


@pytest.fixture(scope="module", name="exported")
def _exported(run: Path) -> Path:
    out = run.parent / "exported"
    export(["--checkpoint", str(run), "--to", "huggingface", "--out", str(out)])
    return out


def test_the_hub_reads_the_numbers_of_this_checkpoint_off_the_card(exported: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard.load(exported / "README.md").data
    assert (data.license, data.library_name, data.model_name) == ("apache-2.0", "transformers", "mine")
    found = {result.metric_type: result for result in data.eval_results}
    assert {kind: result.metric_value for kind, result in found.items()} == {
        "average_precision": 0.123456789, "fpr95": 0.5, "auroc": 0.75,
    }  # fmt: skip
    ap = found["average_precision"]
    assert (ap.dataset_name, ap.dataset_config, ap.dataset_type) == (
        "FS Lost & Found", "fishyscapes", "fs-lost-found",
    )  # fmt: skip
    assert ap.metric_args == {"score": "RbA", "interval_95": [0.1, 0.2]}
    text = (exported / "README.md").read_text()
    trained = ("Shards `cityscapes`; pasted from `coco-objects`", "outlier terms: rba", "`step-0000040`")
    assert [part for part in (ORIGIN, *trained) if part not in text] == []
    assert "/home/me" not in text


@pytest.mark.parametrize(
    ("origin", "licence"),
    [
        ("x.pth, sha256 1, licence: DINOv3 License, https://ai.meta.com", ("other", "dinov3-license")),
        ("x.pth, licence: as its publisher says (DINOv2: Apache-2.0)", ("other", "as-its-publisher-says")),
        ("x.pth, sha256 1, licence: CC BY-NC 4.0", ("other", "cc-by-nc-4.0")),
        ("x.pth, sha256 1, licence: apache-2.0", ("apache-2.0", None)),
        ("", ("unknown", None)),
    ],
)  # fmt: skip
def test_a_licence_is_that_of_the_base_weights(
    tmp_path: Path, origin: str, licence: tuple[str, str | None]
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    place = save(make_model(origin=origin), tmp_path / "weights")
    export(["--checkpoint", str(place), "--to", "safetensors", "--out", str(tmp_path / "out")])
    data = hub.ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.license, data.get("license_name")) == licence
    assert data.eval_results is None
    assert "None: no results of this checkpoint" in (tmp_path / "out" / "README.md").read_text()


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Return an edit of a text file, which must change it."""

    def edit(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return edit


def flip(name: str, at: int) -> Callable[[Path], None]:
    """Return an edit of one bit of a file."""

    def edit(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[at] ^= 1
        (folder / name).write_bytes(content)

    return edit


EDITS: list[tuple[Callable[[Path], object], str]] = [
    (flip("model.safetensors", -1), "model.safetensors: is another file than what was exported"),
    (flip("model.safetensors", 9), "model.safetensors: is another file"),
    (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: is missing"),
    (replace("config.json", '"car"', '"bus"'), "config.json: is another file"),
    (lambda f: (f / "config.json").unlink(), "config.json: is missing"),
    (lambda f: (f / "model.json").write_text("{}"), "model.json: is not in what was exported"),
    (lambda f: (f / "ema.safetensors").write_bytes(b"x"), "ema.safetensors: is not in"),
    (replace("README.md", "0.123456789", "0.923456789"), "README.md: was edited"),
    (replace("README.md", "license: apache-2.0", "license: mit"), "README.md: was edited"),
    (replace("README.md", "<!-- sha256", "<!-- sha255"), "README.md: was edited"),
    (replace("README.md", "\n## Files", "\nBetter.\n\n## Files"), "README.md: was edited"),
    (lambda f: (f / "README.md").write_bytes(b"\xff"), "README.md: is no UTF-8"),
]


@pytest.mark.parametrize(("edit", "message"), EDITS, ids=range(len(EDITS)))
def test_every_edit_is_found(
    tmp_path: Path, exported: Path, edit: Callable[[Path], object], message: str
) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    edit(copy)
    with pytest.raises(InputError, match=re.escape(f"{copy}/") + message):
        doctor(["checkpoint", str(copy)])


def test_a_whole_export_is_said_to_hold(
    exported: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor(["checkpoint", str(exported)])
    assert "card     README.md, which holds for the 3 files beside it" in capsys.readouterr().out
    doctor(["checkpoint", str(run)])
    assert "card" not in capsys.readouterr().out


@pytest.fixture(name="hub")
def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for huggingface_hub, whose repositories are folders."""
    hub = ModuleType("huggingface_hub")

    def snapshot_download(name: str, revision: str | None = None, **_: object) -> str:
        if not (tmp_path / "hub" / name).is_dir() or revision not in (None, "main"):
            raise RuntimeError(f"404: no {name}\nat {revision}")
        return str(tmp_path / "hub" / name)

    def upload_folder(repo_id: str, folder_path: str, **_: object) -> None:
        shutil.copytree(folder_path, tmp_path / "hub" / repo_id)

    hub.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    hub.upload_folder = upload_folder  # type: ignore[attr-defined]
    hub.create_repo = lambda name, **_: f"https://hub/{name}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return tmp_path / "hub"


def test_an_export_is_pushed_and_read_back_by_its_name(
    tmp_path: Path, run: Path, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--to", "safetensors", "--out", str(tmp_path / "out"), "--push", "me/tiny")
    export(["--checkpoint", str(run), *place])
    assert "; uploaded to https://hub/me/tiny" in capsys.readouterr().out
    weights = load_model(Path("hf:me/tiny@main")).state_dict()
    assert all((weights[name] == value).all() for name, value in load_model(run).state_dict().items())
    doctor(["checkpoint", "hf:me/tiny"])
    assert "no problem found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--checkpoint hf:me/none --to safetensors", "hf:me/none: 404: no me/none at None"),
        ("--checkpoint hf:me --to safetensors", "hf:me: expected hf:org/name or hf:org/name@REVISION"),
        ("--checkpoint RUN --to safetensors --push me", "--push: got 'me'; expected org/name"),
        ("--checkpoint RUN --to smiyc --datasets . --push me/x", "--push: uploads weights; --to is smiyc"),
    ],
)
def test_what_the_hub_cannot_give_or_take_is_one_line(
    tmp_path: Path, run: Path, hub: Path, words: str, message: str
) -> None:
    given = words.replace("RUN", str(run)).split()
    with pytest.raises(InputError, match=re.escape(message)):
        export([*given, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_without_huggingface_hub_its_package_is_named(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    place = ("--to", "safetensors", "--out", str(tmp_path / "out"), "--push", "me/x")
    with pytest.raises(InputError, match="--push me/x: huggingface_hub is not installed; pip install"):
        export(["--checkpoint", str(run), *place])
