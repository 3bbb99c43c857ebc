"""Evaluations of one checkpoint by every way to start one, a sweep of temperatures, and a table of runs."""

from __future__ import annotations

import json
from pathlib import Path

from tests.golden.bench import ANOMALY, RUNS, SHARDS, Bench
from tests.golden.record import Findings

PROTOCOLS = ("native", "course-512", "smiyc", "fishyscapes", "rba")
SCORES = ("MSP", "MaxLogit", "MaxEntropy", "RbA", "Energy", "MaskEnergy", "EAM", "SoleClaim")
"""All that the baseline can answer."""
SETS = ("--datasets", ANOMALY, "--cityscapes", SHARDS)
BASELINE = ("--checkpoint", f"{RUNS}/baseline", *SETS)
SHARED = (*BASELINE, "--protocol", *PROTOCOLS, "--scores", "MSP", "SoleClaim", "--pictures", 1)
"""What is evaluated by every way: a score of evidence and one of queries, with component metrics."""
WIDE = (*BASELINE, "--protocol", *PROTOCOLS, "--scores", *SCORES, "--components", False)
TABLES = ("results.json", "results.md", "results.tex", "per_image.csv")
"""Of which the text is kept; results.csv has the numbers of results.json, and its hash must do."""
TASKS = 3


def make_evaluate(bench: Bench) -> None:
    """Evaluate the baseline by one process, two ranks, three tasks, and by one that was killed on the way."""
    bench.need("world", "losses")
    programs, found = bench.programs, bench.findings
    printed = programs.succeed("evaluate", *SHARED, "--out", "evaluate/one_process").printed
    found.hashed_text("evaluate/one_process/printed", printed)
    programs.launch(2, "evaluate", *SHARED, "--out", "evaluate/two_ranks")
    for task in (2, 0, 1):
        programs.succeed("evaluate", *SHARED, "--out", "evaluate/three_tasks", "--task", f"{task}/{TASKS}")
    _evaluate_killed(bench)
    _note_results(found, "evaluate/one_process", bench.work / "evaluate/one_process")
    for way in ("one_process", "two_ranks", "three_tasks", "killed"):
        found.folder(f"evaluate/{way}/bytes", bench.work / "evaluate" / way, _is_result)
    _note_equal_ways(found)
    programs.succeed("evaluate", *WIDE, "--out", "evaluate/all_scores")
    _note_results(found, "evaluate/all_scores", bench.work / "evaluate/all_scores")
    found.folder("evaluate/all_scores/bytes", bench.work / "evaluate/all_scores", _is_result)
    _evaluate_other_scores(bench)


def _evaluate_killed(bench: Bench) -> None:
    """Kill an evaluation when it has finished one part, and start it again."""
    out = bench.work / "evaluate/killed"
    command = (*SHARED, "--out", "evaluate/killed")
    killed = bench.programs.kill_when(lambda: any(out.glob("cells/*.npz")), "evaluate", *command)
    if not killed or (out / "results.json").exists():
        raise RuntimeError("evaluate/killed: ended before it was killed")
    bench.programs.succeed("evaluate", *command)


def _evaluate_other_scores(bench: Bench) -> None:
    """Evaluate the scores that need a head of their own, a limit, and the weights that were averaged."""
    for run, score in (
        ("isomax_plus", "MinDistance"),
        ("mixture", "UNO"),
        ("validated", "SoleClaim"),
        ("lora", "RbA"),
    ):
        out = f"evaluate/{run}"
        words = ("--checkpoint", f"{RUNS}/{run}", *SETS, "--scores", "MSP", score, "--limit", 2)
        bench.programs.succeed("evaluate", *words, "--components", False, "--name", "named", "--out", out)
        _note_results(bench.findings, out, bench.work / out)
        bench.findings.folder(f"{out}/bytes", bench.work / out, _is_result)


def _is_result(within: str) -> bool:
    """Say whether a file of an evaluation's folder is a result; what it keeps to go on has dates within."""
    return not within.startswith(("cells/", "."))


def _note_equal_ways(found: Findings) -> None:
    """Note whether the files of all four ways are the same, and which differ."""
    ways = ("two_ranks", "three_tasks", "killed")
    of_way = {way: _hashes(found, f"evaluate/{way}/bytes/") for way in ("one_process", *ways)}
    one = of_way["one_process"]
    for way in ways:
        other = of_way[way]
        differing = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
        told = f"differs from one process in {', '.join(differing)}" if differing else "equals one process"
        found.text(f"evaluate/{way}/is", told)


def _hashes(found: Findings, start: str) -> dict[str, object]:
    return {name.removeprefix(start): value for name, value in found.values.items() if name.startswith(start)}


def _note_results(found: Findings, name: str, folder: Path) -> None:
    """Note the tables of a folder as text; of the JSON, a record a line."""
    for table in TABLES:
        path = folder / table
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            found.long_text(f"{name}/{table}", _a_record_a_line(text) if table == "results.json" else text)


def _a_record_a_line(text: str) -> str:
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in json.loads(text)) + "\n"


def make_temperature(bench: Bench) -> None:
    """Save predictions, and sweep the temperature over them, with and without a validation set."""
    bench.need("world", "losses")
    programs, found, work = bench.programs, bench.findings, bench.work
    (work / "temperature/own.yaml").write_text("PastedOnes: {use: validation, name: Mine}\n")
    sets = work / "temperature/sets"
    sets.mkdir()
    for source, name in (
        (work / "world/pasted/PastedVal", "PastedOnes"),
        (work / ANOMALY / "fs_static", "fs_static"),
    ):
        (sets / name).symlink_to(source)
    asked = ("--datasets", "temperature/sets", "--sets", "temperature/own.yaml", "--cityscapes", SHARDS)
    saved = (
        "--components",
        False,
        "--limit",
        2,
        "--cache",
        "temperature/cache",
        "--out",
        "temperature/evaluated",
    )
    programs.succeed("evaluate", "--checkpoint", f"{RUNS}/baseline", *asked, *saved)
    cache = ("--cache", "temperature/cache")
    for name, words in (
        ("chosen", ("--validation", "PastedOnes", "--oracle", True)),
        ("fixed", ("--scores", "MSP", "RbA", "--grid", 0.5, 2)),
    ):
        out = f"temperature/{name}"
        outcome = programs.succeed("temperature", *cache, *words, "--out", out)
        found.long_text(f"{out}/printed", outcome.printed)
        _note_results(found, out, work / out)
        found.long_text(f"{out}/sweep.csv", (work / out / "sweep.csv").read_text(encoding="utf-8"))
        found.folder(f"{out}/bytes", work / out)
    refused = programs.run("temperature", *cache, "--validation", "fs_static", "--out", "temperature/refused")
    found.text("temperature/refused", f"exit code {refused.code}\n{refused.last_line}")


def make_collect(bench: Bench) -> None:
    """Collect two seeds of one run, beside a third run and one without results."""
    bench.need("world", "losses")
    runs = ("twin-seed0", "twin-seed1", "rba")
    for name in runs:
        words = ("--checkpoint", f"{RUNS}/{name}", *SETS, "--scores", "MSP", "RbA", "--components", False)
        bench.programs.succeed("evaluate", *words, "--out", f"collect/{name}/eval")
        (bench.work / "collect" / name / "config.yaml").write_bytes(
            (bench.work / RUNS / name / "config.yaml").read_bytes()
        )
    (bench.work / "collect/unfinished").mkdir()
    given = [f"collect/{name}" for name in runs]
    for table, folders in (("pair", given[1:]), ("all", [*given, "collect/unfinished"])):
        out = f"collect/{table}"
        bench.programs.succeed("collect", *folders, "--out", out)
        again = bench.programs.succeed("collect", *folders, "--out", out, "--replace", True)
        bench.findings.hashed_text(f"{out}/printed", again.printed)
        _note_results(bench.findings, out, bench.work / out)
        text = (bench.work / out / "differences.json").read_text(encoding="utf-8")
        bench.findings.long_text(f"{out}/differences.json", text)
        bench.findings.folder(f"{out}/bytes", bench.work / out)
