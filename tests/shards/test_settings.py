from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import tyro

from shards.settings import flat_settings, load_config, parse_options, read_config, write_config
from shards.yaml_file import read_yaml
from tests.support.refused import refused
from trainer.config import FinetuneConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "jobs" / "configs").rglob("*.yaml"))


def load(*arguments: str) -> FinetuneConfig:
    return load_config(FinetuneConfig, arguments, program="jobs.finetune")


def test_a_written_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = load(
        "--seed", "3", "--data.shards", "a", "b", "--model.size", "tiny",
        "--loss.options.mask.num_points", "9",
        "--loss.options.logit_norm.temperature", "2", "--loss.classification", "logit_norm",
        "--loss.outlier", "rba", "--loss.options.rba.inlier_upper", "-0.5", "--paste.bank", "x",
        "--paste.probability", "1", "--loss.weights", "mask", "1", "dice", "2", "class", "3", "rba", "4",
    )  # fmt: skip
    write_config(config, tmp_path / "config.yaml")
    assert read_config(FinetuneConfig, tmp_path / "config.yaml") == config
    assert config.loss.options.mask.num_points == 9
    assert config.loss.options.rba.thresholds == (-0.5, -0.1)
    assert config.loss.weights == {"mask": 1.0, "dice": 2.0, "class": 3.0, "rba": 4.0}


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 4\noptim: {lr: 1e-3}\nloss: {weights: {mask: 1, dice: 2, class: 3}}\n")
    config = load(str(path), "--seed", "5", "--loss.weights.dice", "7")
    assert (config.seed, config.optim.lr) == (5, 0.001)
    assert config.loss.weights == {"mask": 1.0, "dice": 7.0, "class": 3.0}
    assert config.loop == load().loop


def test_weights_of_a_file_are_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "loss: {outlier: [rba], weights: {mask: 1, dice: 2, class: 3, rba: 4}}\n"
        "paste: {bank: a, probability: 1}\n"
    )
    config = load(str(path), "--loss.outlier", "--loss.weights", "mask", "5", "dice", "5", "class", "2")
    assert config.loss.weights == {"mask": 5.0, "dice": 5.0, "class": 2.0}
    assert load(str(path), "--loss.outlier", "--loss.weights").loss.weights == {}
    with refused("loss.weights: rba is no term of this loss; exactly one weight for"):
        load(str(path), "--loss.outlier")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_configuration_loads_and_says_how_to_run_it(path: Path) -> None:
    read_config(FinetuneConfig, path)
    assert path.read_text().startswith("#")
    assert f"-m jobs.finetune {path.relative_to(ROOT)}" in path.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lrr: 1}", "optim.lrr: unknown setting; perhaps you meant lr; known here: lr, layer_decay"),
        ("optim: {lr: fast}", "optim.lr: expected float, got 'fast'"),
        ("optim: 3", "optim: expected settings by name, got 3"),
        ("seed: 1.5", "seed: expected int, got 1.5"),
        ("name: [a]", "name: expected str, got ['a']"),
        ("data: {crop: [1]}", "data.crop: expected 2 values, got [1]"),
        ("data: {shards: a}", "data.shards: expected a list, got 'a'"),
        ("schedule: {masked_attention: maybe}", "got 'maybe'; allowed: annealed, never"),
        ("loss: {options: 3}", "loss.options: expected settings by name, got 3"),
        ("loss: {weights: 3}", "loss.weights: expected values by name, got 3"),
        ("loss: {options: {rba: {margn: 1}}}", "loss.options.rba.margn: unknown setting"),
        ("loss: {options: {rbaa: {}}}", "loss.options.rbaa: unknown setting; perhaps you meant rba; known"),
        ("loss: {options: {rba: {preset: best}}}", "preset: got 'best'; allowed: reachable, released, code"),
        (
            "{data: {crop: [32, 32]}, model: {image_size: [64, 64]}}",
            "data.crop [32, 32] and model.image_size [64, 64] differ",
        ),
        ("name: a/b", "name: got 'a/b'; 120 letters, digits, "),
        ("seed: 4294967296", "seed must be in 0..4294967295, got 4294967296"),
        (
            "loss: {classification: isomax_plus}",
            "isomax_plus needs model.class_head isomax, not linear; with",
        ),
        (
            "{model: {class_head: isomax}, loss: {classification: logit_norm}}",
            "logit_norm needs model.class_head linear, not isomax; with isomax take isomax_plus",
        ),
        (
            "{loss: {outlier: [uno]}, paste: {bank: a, probability: 1}}",
            "loss.outlier: uno needs model.outlier_class trained, not none",
        ),
        ("loss: {weights: {mask: -5, dice: 1, class: 1}}", "loss.weights.mask must be 0 or more, got -5.0"),
        (f"optim: {{lr: {'9' * 400}}}", "optim.lr: expected float, got 999"),
        ("a: " + "[" * 1500, "not a YAML file"),
        ("- 1", "the file: expected settings by name, got [1]"),
        ("a: [", "not a YAML file"),
        ("seed: 1\noptim:\n  lr: 1\n  lr: 2\n", "optim.lr: given twice, in line 3 and in line 4"),
        ("optim: {lr: .inf}", "optim.lr: got inf; a finite number is needed"),
        ("loop: {steps: 1:30}", "loop.steps: expected int, got '1:30'"),
        ("loop: {steps: 010}", "loop.steps: expected int, got '010'"),
        ("loop: {compile: yes}", "loop.compile: expected true or false, got 'yes'"),
        ("loop: {compile: off}", "loop.compile: expected true or false, got 'off'"),
        ("seed: 2026-11-28", "seed: expected int, got '2026-11-28'"),
        ("optim: {lr: 1}\noptim: {lr: 2}", "optim: given twice, in line 1 and in line 2"),
        ("optim: {lr: 1, 'lr': 2}", "optim.lr: given twice, in line 1 and in line 1"),
        ("loss: {weights: {dice: 1,\n dice: 2}}", "loss.weights.dice: given twice, in line 1 and in line 2"),
        ("{0: a, 0x0: b}", "0x0: given twice, in line 1 and in line 1"),
        ("seed: !!bool x", "not a YAML file: "),
        ("seed: !!timestamp x", "not a YAML file: "),
        ("seed: !!int ''", "not a YAML file: "),
        ("name: 1:30", "name: got '1:30'; 120 letters"),
        ("name: =", "name: got '='; 120 letters"),
        ("a: &a [1, *a]", "an alias stands within what it repeats"),
        ("a: &a {<<: *a}", "an alias stands within what it repeats"),
        ("a: !!python/object/apply:os.system [x]", "not a YAML file: could not determine a constructor"),
        (f"seed: {'9' * 5000}", "not a YAML file: Exceeds the limit"),
        ("{" * 5_000, "not a YAML file: "),
        ("- " * 5_000, "not a YAML file: "),
        ('name: "a/\\e[31m\\nerror: forged"', r"name: got 'a/\x1b[31m\nerror: forged'"),
        (f"loop: {{steps: {'x' * 10_000}}}", "loop.steps: expected int, got 'xxx"),
    ],
    ids=lambda text: str(text)[:30],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with refused(f"c.yaml: .*{re.escape(message)}") as error:
        load(str(path))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 900


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loop.stepps", "3"], "unrecognized options: --loop.stepps, 3; perhaps you meant --loop.steps; -"),
        (["--loss.options.rba.margn", "1"], "options: --loss.options.rba.margn, 1; perhaps you meant --loss"),
        (["--loop.steps", "many"], "error parsing --loop.steps: could not convert|invalid"),
        (["--loop.steps", "0"], "loop.steps must be at least 1, got 0"),
        (["--schedule.masked_attention", "x"], "invalid choice 'x' for argument '--schedule.masked_atten"),
        (["nowhere.yaml"], "nowhere.yaml: no such configuration file"),
        (["--seed"], r"--seed: expected int, got \[\]"),
        (["--data.crop", "32"], r"--data.crop: expected 2 values, got \['32'\]"),
        (["--loss.weights", "mask"], "--loss.weights: expected values by name, got 'mask'"),
        (["--loop.compile", "yes"], "invalid choice 'yes' for argument '--loop.compile'. Expected one of"),
        (["--seed", "1", "2"], r"--seed: expected int, got \['1', '2'\]; --help lists every option"),
        (["-x"], "unrecognized options: -x"),
        (["--optim.lr", "nan"], "--optim.lr: got nan; a finite number is needed"),
        (["--schedule.poly_power", "inf"], "--schedule.poly_power: got inf; a finite number is needed"),
        (["--loss.weights", "dice", "nan"], "loss.weights.dice: got nan; a finite number is needed"),
    ],
    ids=lambda a: str(a)[:40],
)
def test_mistakes_on_the_command_line_are_one_line(arguments: list[str], message: str) -> None:
    with refused(message) as error:
        load(*arguments)
    assert "\n" not in str(error.value)
    assert "─" not in str(error.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramOptions:
    """Options of a program of its own."""

    files: tyro.conf.Positional[tuple[Path, ...]] = ()
    out: Path
    limit: int | None = 3
    dry_run: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class OtherOptions:
    """Another subcommand."""

    scale: float = 1.0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a", "b", "--out", "o"], {"files": (Path("a"), Path("b"))}),
        (["--out=o", "a", "--limit", "None"], {"files": (Path("a"),), "limit": None}),
        (["--dry-run", "a", "--out", "o"], {"files": (Path("a"),), "dry_run": True}),
        (["--out", "o", "--dry_run", "False", "--limit", "-5"], {"limit": -5}),
        (["--out", "x", "--out", "o", "--dry-run"], {"dry_run": True}),
    ],
    ids=str,
)
def test_words_become_options(arguments: list[str], expected: dict[str, Any]) -> None:
    options = parse_options(ProgramOptions, arguments, program="jobs.x")
    assert options == ProgramOptions(out=Path("o"), **expected)


def test_the_first_word_names_the_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = (
        Annotated[ProgramOptions, tyro.conf.subcommand("one")]
        | Annotated[OtherOptions, tyro.conf.subcommand("two")]
    )
    assert parse_options(kinds, ["two", "--scale", "2"], program="jobs.x") == OtherOptions(scale=2.0)
    with refused("expected one of {one, two}; --help lists every option"):
        parse_options(kinds, ["three"], program="jobs.x")
    with refused("missing --out; --help lists every option"):
        parse_options(kinds, ["one"], program="jobs.x")
    with pytest.raises(SystemExit) as stop:
        parse_options(kinds, ["two", "--help"], program="jobs.x")
    assert stop.value.code == 0
    assert "--scale FLOAT" in capsys.readouterr().out


def test_a_file_without_a_required_setting_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("limit: 2\n")
    with refused("c.yaml: missing out$"):
        read_config(ProgramOptions, tmp_path / "c.yaml")


def test_settings_flatten_to_dotted_plain_values() -> None:
    flat = flat_settings(load())
    assert flat["loop.steps"] == 20000
    assert flat["data.crop"] == "[1024, 1024]"
    assert all(isinstance(value, str | int | float | bool) for value in flat.values())


@pytest.mark.parametrize("name", ["no", "on", "010", "2026-11-28", "1_2", "0b1"])
def test_names_stay_names_through_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "c.yaml").write_text(f"name: {name}\noptim: {{lr: 1e-3}}\nloop: {{steps: 10_000}}\n")
    config = load(str(tmp_path / "c.yaml"))
    assert (config.name, config.optim.lr, config.loop.steps) == (name, 1e-3, 10_000)
    write_config(config, tmp_path / "d.yaml")
    assert read_config(FinetuneConfig, tmp_path / "d.yaml") == config


def test_an_anchor_bomb_is_refused_and_an_anchor_is_read(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    (tmp_path / "c.yaml").write_text(bomb)
    with refused(r"c\.yaml: its values have more than 4,194,304 characters"):
        load(str(tmp_path / "c.yaml"))
    merged = "optim: &o {lr: 1}\nloss: {options: {mask: &m {num_points: 5}}}\n"
    (tmp_path / "c.yaml").write_text(merged)
    assert load(str(tmp_path / "c.yaml")).optim.lr == 1
    (tmp_path / "c.yaml").write_text("{1: &a {x: 1, y: 2}, 2: {<<: *a, y: 3}}")
    assert read_yaml(tmp_path / "c.yaml") == {1: {"x": 1, "y": 2}, 2: {"x": 1, "y": 3}}


def test_home_and_variables_are_filled_into_places_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.delenv("NOWHERE", raising=False)
    text = "data: {shards: [$DATA/a, '${DATA}/b-{0..3}.tar', ~/c, 's3://x/~'], cache: ~}\n"
    text += "validation: {split: $DATA}\n"
    (tmp_path / "c.yaml").write_text(text.replace("cache: ~", "cache: '~'"))
    config = load(str(tmp_path / "c.yaml"), "--paste.bank", "$DATA/bank", "--out=~/runs")
    assert config.data.shards == ("/data/a", "/data/b-{0..3}.tar", "/home/me/c", "s3://x/~")
    assert (config.data.cache, config.paste.bank, config.out) == ("/home/me", "/data/bank", "/home/me/runs")
    assert config.validation.split == "$DATA"
    options = parse_options(ProgramOptions, ["~/a", "--out", "${DATA}/o"], program="jobs.x")
    assert (options.files, options.out) == ((Path("/home/me/a"),), Path("/data/o"))
    with refused(r"--paste\.bank: \$NOWHERE/a: the variable NOWHERE of the env"):
        load("--paste.bank", "$NOWHERE/a")
