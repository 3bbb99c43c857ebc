"""Documents say what is true: links lead somewhere, and documented commands have the options they use."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from eval.predict.scores import QUERY_SCORES, SCORES
from shards.settings import read_config
from slurm.sweep import SweepConfig
from trainer.config import FinetuneConfig
from trainer.losses.options import BASES, CLASS_HEADS, OUTLIER_CLASS_TERM, OUTLIER_OPTIONS

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("jobs/configs", "jobs/classes", "slurm/examples")
DOCUMENTS = sorted(
    [
        *(path for folder in (".", "docs") for path in (ROOT / folder).glob("*.md")),
        *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.yaml")),
    ]
)
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def commands_of(text: str) -> list[list[str]]:
    """List the documented `... jobs.NAME ...` commands, continued lines joined, as words from NAME on."""
    joined = re.sub(r"\\\n#?\s*", " ", text)
    found = re.findall(r"-m jobs\.([a-z_]+[^`\n]*)", joined)
    return [shlex.split(line.split(" #")[0]) for line in found if "..." not in line]


COMMANDS = sorted({shlex.join(words) for path in DOCUMENTS for words in commands_of(path.read_text())})


@cache
def help_of(job: str, *subcommand: str) -> str:
    """Return the text of a program's `--help`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as stop:
        importlib.import_module(f"jobs.{job}").main([*subcommand, "--help"])
    assert stop.value.code == 0
    return printed.getvalue()


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        assert target.startswith("http") or (path.parent / target).exists(), f"{path}: {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_named_modules_exist(path: Path) -> None:
    """Benchmarks apart, whose results outlive them."""
    packages = "shards|eval|models|trainer|outlier_paste|slurm|jobs|tests"
    for name in re.findall(rf"(?<![\w/])((?:{packages})(?:/\w+)+\.py)\b", path.read_text()):
        assert (ROOT / name).is_file(), name


def test_the_readme_lists_every_program() -> None:
    programs = {path.stem for path in (ROOT / "jobs").glob("*.py") if "run_program(main)" in path.read_text()}
    table = re.findall(r"^\| (`[a-z_`, ]+`) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(re.findall(r"[a-z_]+", " ".join(table))) == programs


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if path.suffix == ".md"], ids=lambda path: path.name
)
def test_lines_are_short_and_the_readme_is(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]
    assert path.name != "README.md" or len(lines) <= 100


SNIPPETS = [
    pytest.param(text, id=f"{path.name}-{i}")
    for path in DOCUMENTS
    for i, text in enumerate(re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("text", SNIPPETS)
def test_a_documented_configuration_loads(tmp_path: Path, text: str) -> None:
    (tmp_path / "snippet.yaml").write_text(text)
    read_config(SweepConfig if "\nresources:" in text else FinetuneConfig, tmp_path / "snippet.yaml")


def test_the_losses_are_documented_by_name() -> None:
    text = (ROOT / "docs/losses.md").read_text()
    for name in (*BASES, *CLASS_HEADS, *OUTLIER_OPTIONS, OUTLIER_CLASS_TERM):
        assert f"`{name}`" in text, name
    table = re.findall(r"^\| (\w+(?:, \w+)*) \|", (ROOT / "docs/evaluation.md").read_text(), re.MULTILINE)
    assert {*SCORES, *QUERY_SCORES} <= set(", ".join(table).split(", "))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_has_its_options_and_files(command: str) -> None:
    job, *words = shlex.split(command)
    subcommand = words[:1] if job in ("prepare", "doctor") else []
    known = help_of(job, *subcommand)
    for word in words:
        if word.startswith("--"):
            option = re.escape(word).replace(r"\-", "[-_]")  # both spellings are understood
            assert re.search(rf"{option}\b", known), f"jobs.{job} has no option {word}"
        if word.endswith(".yaml") and not word.isupper() and word not in ("CONFIG.yaml", "SWEEP.yaml"):
            assert (ROOT / word).is_file(), word
